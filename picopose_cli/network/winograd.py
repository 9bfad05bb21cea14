"""3x3 convolutions with a quarter of the multiplications, for the CPU (Lavin and Gray, arXiv 1509.09308).

Tiles of 4x4 outputs are made from tiles of 6x6 inputs: both and the kernel go to a basis of 36 products, where the
convolution is 36 matrix products over channels. The rounding in f32 is some ten times that of a direct
convolution, about 2e-6 of the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from picopose_cli.network.products import is_plain_inference, linear

_Matrix = list[list[float]]

_TILE = 4
_LEAST_CHANNELS = 128
"""With fewer channels the change of basis costs more than the products save."""
_LEAST_CELLS = 2048
"""With fewer cells the kernel's change of basis does not pay."""

_INPUT: _Matrix = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
          [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
_KERNEL: _Matrix = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
           [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
_OUTPUT: _Matrix = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def conv3x3(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the convolution (N,O,h,w) of features (N,C,h,w), zero padded, with weight (O,C,3,3) and bias (O,), if any.

    Takes the fast way where that pays and nobody asks for gradients, else PyTorch's.
    """
    return convs3x3(features, [(weight, bias)])[0]


def convs3x3(features: Tensor, kernels: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
    """Return what `conv3x3` does of the same features for several weights and biases: their tiles are made once."""
    if not all(_pays(features, weight) for weight, _ in kernels):
        return [F.conv2d(features, weight, bias, padding=1) for weight, bias in kernels]
    transformed = [_transform(_KERNEL, weight.permute(2, 3, 0, 1).flatten(0, 1)) for weight, _ in kernels]  # (36,O,C)
    outputs = [_like_channels_last(features, len(weight)) for weight, _ in kernels]
    for n, image in enumerate(features):  # one at a time, since the intermediate arrays then stay in cache
        tiles = _tiles(image)
        for output, kernel, (_, bias) in zip(outputs, transformed, kernels, strict=True):
            convolved = _convolved(tiles, kernel, output.shape[2:])
            output[n] = convolved if bias is None else convolved.add_(bias[:, None, None])
    return outputs


def _pays(features: Tensor, weight: Tensor) -> bool:
    """Whether the fast way is possible and faster."""
    pairs, _, height, width = features.shape
    whole = height % _TILE == 0 and width % _TILE == 0
    large = min(weight.shape[:2]) >= _LEAST_CHANNELS and pairs * height * width >= _LEAST_CELLS
    return is_plain_inference(features) and whole and large


def _like_channels_last(features: Tensor, channels: int) -> Tensor:
    shape = len(features), channels, *features.shape[2:]
    return torch.empty(shape, dtype=features.dtype, memory_format=torch.channels_last)


def _tiles(image: Tensor) -> Tensor:
    """Return the transformed tiles (36,tiles,C) of an image (C,h,w)."""
    padded = F.pad(image.permute(1, 2, 0), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(0, _TILE + 2, _TILE).unfold(1, _TILE + 2, _TILE)  # (h/4,w/4,C,6,6), a view
    return _transform(_INPUT, windows.permute(3, 4, 0, 1, 2).reshape((_TILE + 2) ** 2, -1, len(image)))


def _convolved(tiles: Tensor, kernel: Tensor, size_hw: torch.Size) -> Tensor:
    """Return (O,h,w) of transformed tiles (36,tiles,C) and a transformed kernel (36,O,C)."""
    height, width = size_hw
    products = torch.stack([linear(tile, matrix) for tile, matrix in zip(tiles, kernel, strict=True)])  # (36,tiles,O)
    outputs = _transform(_OUTPUT, products).view(_TILE, _TILE, height // _TILE, width // _TILE, -1)
    return outputs.permute(4, 2, 0, 3, 1).reshape(-1, height, width)


def _transform(matrix: _Matrix, values: Tensor) -> Tensor:
    """Apply a matrix (m,n) to the rows and columns that the first axis of (n*n,...) holds; (m*m,...)."""
    one_axis = torch.tensor(matrix, dtype=values.dtype)
    both_axes = torch.kron(one_axis, one_axis)
    return linear(both_axes, values.reshape(len(values), -1).T).view(-1, *values.shape[1:])
