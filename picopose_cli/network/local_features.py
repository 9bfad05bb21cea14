"""XFeat (Potje et al., CVPR 2024): descriptors of an image's cells, keypoints, and how reliable both are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CELL_PX = 8
"""Side of the square of pixels that one descriptor describes."""
SIZE_MULTIPLE_PX = 32
"""Height and width of an image must be multiples of it: the deepest map has this stride."""
DESCRIPTOR_WIDTH = 64

_NORM_EPSILON = 1e-5
_MIN_PROBABILITY = 0.02
"""Of a keypoint at a pixel. The authors take .05; in a small crop those would be few, and the matcher judges them."""
_NEIGHBOURHOOD_PX = 5
"""Side of the square of which only the most probable keypoint is kept, as the authors have it."""


@dataclass(frozen=True)
class DenseFeatures:
    """XFeat's three maps of B images on their grid of cells of 8 x 8 px, all f32.

    `descriptors` (B,64,H/8,W/8) of length 1; `keypoint_logits` (B,65,H/8,W/8): one value for each pixel of a cell,
    row-major, and the last for "no keypoint here"; `reliability` (B,1,H/8,W/8) in [0, 1].
    """

    descriptors: Tensor
    keypoint_logits: Tensor
    reliability: Tensor


@dataclass(frozen=True)
class Keypoints:
    """N keypoints of one image, sorted by score, best first.

    `xy` (N,2) px with the first pixel's centre at (.5, .5), `descriptors` (N,64) of length 1, `scores` (N,); all f32.
    """

    xy: Tensor
    descriptors: Tensor
    scores: Tensor


class LocalFeatureNetwork(nn.Module):
    """XFeat's backbone and heads with their batch normalisations folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.skip1 = nn.Conv2d(1, 24, 1)
        self.block1 = nn.Sequential(_layer(1, 4), _layer(4, 8, stride=2), _layer(8, 8), _layer(8, 24, stride=2))
        self.block2 = nn.Sequential(_layer(24, 24), _layer(24, 24))
        self.block3 = nn.Sequential(_layer(24, 64, stride=2), _layer(64, 64), _layer(64, 64, kernel=1))
        self.block4 = nn.Sequential(_layer(64, 64, stride=2), _layer(64, 64), _layer(64, 64))
        self.block5 = nn.Sequential(
            _layer(64, 128, stride=2), _layer(128, 128), _layer(128, 128), _layer(128, 64, kernel=1)
        )
        self.fusion = nn.Sequential(_layer(64, 64), _layer(64, 64), nn.Conv2d(64, DESCRIPTOR_WIDTH, 1))
        self.reliability = nn.Sequential(_layer(64, 64, kernel=1), _layer(64, 64, kernel=1), nn.Conv2d(64, 1, 1))
        self.keypoint = nn.Sequential(*(_layer(64, 64, kernel=1) for _ in range(3)), nn.Conv2d(64, CELL_PX**2 + 1, 1))

    def dense(self, images: Tensor) -> DenseFeatures:
        """Return the maps of `images` (B,3,H,W) or (B,1,H,W), of values in [0, 1].

        Colour does not matter, nor do an image's own brightness and contrast. Raises ValueError when a side is no
        multiple of 32.
        """
        _check_images(images)
        grey = _normalised(images.float().mean(1, keepdim=True))  # (B,1,H,W)
        inputs = grey.to(self.skip1.weight.dtype)
        quarter = self.block2(self.block1(inputs) + self.skip1(F.avg_pool2d(inputs, 4)))  # (B,24,H/4,W/4)
        eighth = self.block3(quarter)  # (B,64,H/8,W/8)
        sixteenth = self.block4(eighth)
        deepest = self.block5(sixteenth)
        fused = self.fusion(eighth + _resized(sixteenth, eighth) + _resized(deepest, eighth))
        return DenseFeatures(
            descriptors=F.normalize(fused.float(), dim=1),
            keypoint_logits=self.keypoint(F.pixel_unshuffle(inputs, CELL_PX)).float(),
            reliability=self.reliability(fused).float().sigmoid(),
        )

    def keypoints(self, dense: DenseFeatures, index: int, mask: Tensor | None = None, *, limit: int = 512) -> Keypoints:
        """Return the at most `limit` best keypoints of image `index`, at pixel centres, those inside `mask` only.

        `mask` (H,W) is nonzero inside. A keypoint's score is its probability times the reliability there; of equal
        scores the first in row-major order wins. No keypoints is a valid result. XFeat's keypoints lie 1.1 px above
        what they mark; between images of one rotation and scale that cancels. The centres of cells have no such offset.
        """
        probabilities = _pixel_probabilities(dense.keypoint_logits[index])  # (H,W)
        is_keypoint = (probabilities > _MIN_PROBABILITY) & (probabilities == _local_maxima(probabilities))
        if mask is not None:
            is_keypoint &= mask != 0
        rows, columns = is_keypoint.nonzero(as_tuple=True)
        grid = _grid_positions(rows, columns, probabilities.shape)
        scores = probabilities[rows, columns] * _sampled(dense.reliability[index], grid, "bilinear")[:, 0]
        best = scores.argsort(descending=True, stable=True)[:limit]
        descriptors = F.normalize(_sampled(dense.descriptors[index], grid[best], "bicubic"), dim=1)
        return Keypoints(torch.stack([columns, rows], 1)[best] + 0.5, descriptors, scores[best])


def _layer(width_in: int, width_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width_out, kernel, stride=stride, padding=kernel // 2)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(images.shape)}, need (B,3,H,W) or (B,1,H,W)")
    height, width = images.shape[2:]
    if height % SIZE_MULTIPLE_PX or width % SIZE_MULTIPLE_PX or not height * width:
        raise ValueError(f"images are {height} x {width} px, need multiples of {SIZE_MULTIPLE_PX}")


def _normalised(grey: Tensor) -> Tensor:
    """Return images (B,1,H,W) with mean 0 and variance 1 each."""
    variance, mean = torch.var_mean(grey, dim=(2, 3), correction=0, keepdim=True)
    return (grey - mean) * torch.rsqrt(variance + _NORM_EPSILON)


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


def _pixel_probabilities(logits: Tensor) -> Tensor:
    """Return the probability (H,W) of a keypoint at each pixel from the logits (65,H/8,W/8) of cells."""
    return F.pixel_shuffle(logits.softmax(0)[:-1], CELL_PX)[0]


def _local_maxima(probabilities: Tensor) -> Tensor:
    """Return the maximum in the neighbourhood of each pixel of probabilities (H,W)."""
    # On a CPU ten times as fast as max_pool2d, which also looks for the indices.
    (height, width), side = probabilities.shape, _NEIGHBOURHOOD_PX
    padded = F.pad(probabilities, (side // 2,) * 4)
    of_columns = reduce(torch.maximum, [padded[shift : shift + height] for shift in range(side)])
    return reduce(torch.maximum, [of_columns[:, shift : shift + width] for shift in range(side)])


def _grid_positions(rows: Tensor, columns: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the positions (N,2) of pixels at which the maps of cells are read, in [-1, 1].

    PARITY: exact would be (2 x + 1) / W - 1. LighterGlue knows descriptors from here, up to half a pixel off.
    """
    height, width = shape
    return torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], 1)


def _sampled(maps: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Return the values (N,C) of maps (C,h,w) at N positions of `_grid_positions`."""
    return F.grid_sample(maps[None], grid[None, None], mode=mode, align_corners=False)[0, :, 0].T
