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
        with torch.autocast(a.xy.device.type, enabled=False):  # in bf16 single probabilities are off by .9
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
        features = self.input_projection(torch.cat([a.descriptors, b.descriptors]))  # (N+M,96)
        angles = self.frequencies(torch.cat([_positions(a, size_a), _positions(b, size_b)]))  # (N+M,48)
        rotation, sizes = (angles.cos(), angles.sin()), [len(a.xy), len(b.xy)]
        for layer in self.layers:
            features = layer(features, rotation, sizes)
        projected_a, projected_b = torch.split(self.assignment_projection(features) * WIDTH**-0.25, sizes)
        matchable_a, matchable_b = torch.split(F.logsigmoid(self.matchability(features)), sizes)
        similarity = projected_a @ projected_b.T  # (N,M)
        log_probabilities: Tensor = similarity.log_softmax(1) + similarity.log_softmax(0) + matchable_a + matchable_b.T
        return log_probabilities


def _positions(keypoints: Keypoints, size: tuple[int, int]) -> Tensor:
    """Return positions (N,2) relative to the image's centre, in halves of its longer side."""
    height, width = size
    return (keypoints.xy - keypoints.xy.new_tensor([width / 2, height / 2])) / (max(size) / 2)


class _Layer(nn.Module):
    """Attention within each image, then from each image to the other.

    Features (N+M,96) are those of both images, one after the other, in all layers: linear layers take them together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = _SelfAttention()
        self.cross_attention = _CrossAttention()

    def forward(self, features: Tensor, rotation: Rotation, sizes: list[int]) -> Tensor:
        updated: Tensor = self.cross_attention(self.self_attention(features, rotation, sizes), sizes)
        return updated


class _SelfAttention(nn.Module):
    """Attention among the keypoints of each image; queries and keys are rotated by their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.update = _update_layers()

    def forward(self, features: Tensor, rotation: Rotation, sizes: list[int]) -> Tensor:
        query, key, value = self.query_key_value(features).split(WIDTH, 1)
        inputs = _rotated(query, rotation), _rotated(key, rotation), value
        images = zip(*(torch.split(part, sizes) for part in inputs), strict=True)
        attended = torch.cat([_attend(*image) for image in images])
        updated: Tensor = features + self.update(torch.cat([features, self.output(attended)], 1))
        return updated


class _CrossAttention(nn.Module):
    """Attention between the images; one projection is query and key, so one similarity serves both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.query_key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.update = _update_layers()

    def forward(self, features: Tensor, sizes: list[int]) -> Tensor:
        key_a, key_b = torch.split(self.query_key(features), sizes)
        value_a, value_b = torch.split(self.value(features), sizes)
        similarity = (key_a * WIDTH**-0.5) @ key_b.T  # (N,M)
        attended = torch.cat([similarity.softmax(1) @ value_b, similarity.T.softmax(1) @ value_a])
        updated: Tensor = features + self.update(torch.cat([features, self.output(attended)], 1))
        return updated


def _update_layers() -> nn.Sequential:
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
