"""LighterGlue: the LightGlue matcher (Lindenberger et al., ICCV 2023) at the size trained for XFeat's keypoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from picopose_cli.network.local_features import DESCRIPTOR_WIDTH, Keypoints

WIDTH = 96
LAYERS = 6
MIN_SCORE = 0.1
"""Pairs of a lower match probability are no matches, as the authors have it."""

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (N,48) of the angles by which positions rotate queries and keys."""


class LightGlue(nn.Module):
    """Six layers of attention within and across two sets of keypoints, then an assignment; no pruning of keypoints."""

    def __init__(self) -> None:
        super().__init__()
        self.input_projection = nn.Linear(DESCRIPTOR_WIDTH, WIDTH)
        self.frequencies = nn.Linear(2, WIDTH // 2, bias=False)
        self.layers = nn.ModuleList(_Layer() for _ in range(LAYERS))
        self.assignment_projection = nn.Linear(WIDTH, WIDTH)
        self.matchability = nn.Linear(WIDTH, 1)

    def match(
        self, a: Keypoints, size_a: tuple[int, int], b: Keypoints, size_b: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Match the keypoints of two images of sizes (height, width).

        Returns the indices (M,2) int64 of the matches in `a` and `b`, ascending in `a`, and their probabilities (M,)
        f32, all at least MIN_SCORE. Each keypoint is in one match at most.
        """
        log_probabilities = self.assign(a, size_a, b, size_b)
        if not log_probabilities.numel():
            device = log_probabilities.device
            return torch.zeros(0, 2, dtype=torch.int64, device=device), torch.zeros(0, device=device)
        best, of_a = log_probabilities.max(1)  # (N,)
        index = torch.arange(len(of_a), device=of_a.device)
        is_match = (log_probabilities.argmax(0)[of_a] == index) & (best.exp() > MIN_SCORE)
        return torch.stack([index, of_a], 1)[is_match], best.exp()[is_match]

    def assign(self, a: Keypoints, size_a: tuple[int, int], b: Keypoints, size_b: tuple[int, int]) -> Tensor:
        """Return the logarithms (N,M) f32 of the probabilities that keypoint n of `a` and m of `b` are a match."""
        features_a, features_b = self._project(a), self._project(b)
        rotation_a, rotation_b = self._rotation(a, size_a), self._rotation(b, size_b)
        for layer in self.layers:
            features_a, features_b = layer(features_a, features_b, rotation_a, rotation_b)
        scale = WIDTH**-0.25
        projected_a = self.assignment_projection(features_a) * scale
        projected_b = self.assignment_projection(features_b) * scale
        similarity = (projected_a @ projected_b.T).float()  # (N,M)
        matchable_a = F.logsigmoid(self.matchability(features_a).float())
        matchable_b = F.logsigmoid(self.matchability(features_b).float())
        probabilities: Tensor = similarity.log_softmax(1) + similarity.log_softmax(0) + matchable_a + matchable_b.T
        return probabilities

    def _project(self, keypoints: Keypoints) -> Tensor:
        projected: Tensor = self.input_projection(keypoints.descriptors.to(self.matchability.weight.dtype))
        return projected

    def _rotation(self, keypoints: Keypoints, size: tuple[int, int]) -> Rotation:
        """Return the rotations of positions relative to the centre, in halves of the image's longer side."""
        height, width = size
        centre = keypoints.xy.new_tensor([width / 2, height / 2])
        positions = (keypoints.xy - centre) / (max(size) / 2)
        angles = F.linear(positions, self.frequencies.weight.float())
        dtype = self.frequencies.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)


class _Layer(nn.Module):
    """Attention within each image, then from each image to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = _SelfAttention()
        self.cross_attention = _CrossAttention()

    def forward(self, a: Tensor, b: Tensor, rotation_a: Rotation, rotation_b: Rotation) -> tuple[Tensor, Tensor]:
        a, b = self.self_attention(a, rotation_a), self.self_attention(b, rotation_b)
        updated: tuple[Tensor, Tensor] = self.cross_attention(a, b)
        return updated


class _SelfAttention(nn.Module):
    """Attention among the keypoints of one image; queries and keys are rotated by their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.update = _update()

    def forward(self, features: Tensor, rotation: Rotation) -> Tensor:
        projected = self.query_key_value(features)  # (N,288): queries, keys, values
        query, key, value = projected.split(WIDTH, 1)
        message = self.output(_attend(_rotated(query, rotation), _rotated(key, rotation), value))
        updated: Tensor = features + self.update(torch.cat([features, message], 1))
        return updated


class _CrossAttention(nn.Module):
    """Attention between the keypoints of two images, with one projection for queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.update = _update()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        key_a, key_b = self.query_key(a), self.query_key(b)
        message_a = self.output(_attend(key_a, key_b, self.value(b)))
        message_b = self.output(_attend(key_b, key_a, self.value(a)))
        return a + self.update(torch.cat([a, message_a], 1)), b + self.update(torch.cat([b, message_b], 1))


def _update() -> nn.Sequential:
    """Return the layers that make the change of features from features and message."""
    width = 2 * WIDTH
    return nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, WIDTH))


def _rotated(features: Tensor, rotation: Rotation) -> Tensor:
    """Return features (N,96) with channels i and 48 + i rotated by angle i."""
    cosine, sine = rotation
    first, second = features.chunk(2, 1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], 1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention (N,96) of one head."""
    # PyTorch's fused kernels take four dimensions only.
    attended = F.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])
    return attended[0, 0]
