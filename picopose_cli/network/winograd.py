"""3x3 convolutions with a quarter of the multiplications, for the CPU (Lavin and Gray, arXiv 1509.09308).

Tiles of 4x4 outputs are made from tiles of 6x6 inputs: both and the kernel go to a basis of 36 products, where the
convolution is 36 matrix products over channels. In f32 the rounding is that of a direct convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

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
    if not _pays(features, weight):
        return F.conv2d(features, weight, bias, padding=1)
    kernel = _transform(_KERNEL, weight.flatten(2).permute(2, 0, 1))  # (36,O,C)
    convolved = torch.cat([_convolved(image, kernel) for image in features[:, None]])
    return convolved if bias is None else convolved + bias[:, None, None]


def _pays(features: Tensor, weight: Tensor) -> bool:
    """Whether the fast way is possible and faster."""
    pairs, _, height, width = features.shape
    plain = features.device.type == "cpu" and features.dtype == torch.float32
    inference = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    whole = height % _TILE == 0 and width % _TILE == 0
    return (
        plain
        and inference
        and whole
        and min(weight.shape[:2]) >= _LEAST_CHANNELS
        and pairs * height * width >= _LEAST_CELLS
    )


def _convolved(image: Tensor, kernel: Tensor) -> Tensor:
    """Return (1,O,h,w) of one image (1,C,h,w): one at a time, since the intermediate arrays then stay in cache."""
    height, width = image.shape[2:]
    padded = F.pad(image[0], (1, 1, 1, 1))
    windows = padded.unfold(1, _TILE + 2, _TILE).unfold(2, _TILE + 2, _TILE)  # (C,h/4,w/4,6,6), a view
    tiles = windows.permute(3, 4, 0, 1, 2).reshape((_TILE + 2) ** 2, len(padded), -1)  # (36,C,tiles)
    products = kernel @ _transform(_INPUT, tiles)  # (36,O,tiles)
    outputs = _transform(_OUTPUT, products).view(_TILE, _TILE, -1, height // _TILE, width // _TILE)
    return outputs.permute(2, 3, 0, 4, 1).reshape(1, -1, height, width)


def _transform(matrix: _Matrix, values: Tensor) -> Tensor:
    """Apply a matrix (m,n) to the rows and columns that the first axis of (n*n,...) holds; (m*m,...)."""
    one_axis = torch.tensor(matrix, dtype=values.dtype)
    both_axes = torch.kron(one_axis, one_axis)
    return (both_axes @ values.reshape(len(values), -1)).view(-1, *values.shape[1:])
