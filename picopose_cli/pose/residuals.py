"""What the robust solver minimises: rows of weighted residuals in the image, for many candidate poses at once.

A row says where a point of the object should appear, and how accurately that is known. Its residual r is in standard
deviations of the row's own noise. A 2D-3D correspondence has the residual (projected - observed) / std, a vector. A
contour line says nothing about the position along the contour: its residual is the distance along the line alone,
normal . (projected - observed) / std. A measured depth says how far the point is from a surface in metres: its
residual is normal . (point - measured) / std. Kinds of rows with different noise can therefore be solved together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.types import Array, Correspondences

PAIR_STD_PX = 4.0
"""Standard deviation of a correspondence of stage 3, crop px, whatever the crop's scale."""


@dataclass(frozen=True)
class Residuals:
    """Rows of one kind of B candidate poses, padded to N rows each by rows of weight 0; f64 tensors on one device.

    `uv` (B,N,2) observed, image px; `xyz_obj_m` (B,N,3) metres; `weight` (B,N) >= 0; `std_px` (B,N) > 0, image px.
    `kernel_scale` (B,N) > 0 multiplies the scales of the robust kernel, which are in standard deviations: it is high
    for rows that are much more accurate than a start. `normal` (B,N,2): unit normals of contour lines in the image;
    None: correspondences.
    """

    uv: Tensor
    xyz_obj_m: Tensor
    weight: Tensor
    std_px: Tensor
    kernel_scale: Tensor
    normal: Tensor | None = None

    def __post_init__(self) -> None:
        _check_rows(self, self.std_px, {"uv": (2,), "xyz_obj_m": (3,), "normal": (2,)})


@dataclass(frozen=True)
class PlaneResiduals:
    """Rows of B candidate poses that hold points of the object to planes, padded as those of `Residuals`; f64 tensors.

    The residual of a row is (normal . (R xyz_obj_m + t) - offset_m) / std_m: `xyz_obj_m` (B,N,3) metres, `normal`
    (B,N,3) unit vectors in the camera's frame, `offset_m` (B,N), `std_m` (B,N) > 0; `weight` and `kernel_scale` (B,N)
    as of `Residuals`.
    """

    xyz_obj_m: Tensor
    normal: Tensor
    offset_m: Tensor
    weight: Tensor
    std_m: Tensor
    kernel_scale: Tensor

    def __post_init__(self) -> None:
        _check_rows(self, self.std_m, {"xyz_obj_m": (3,), "normal": (3,)})


def _check_rows(residuals: Residuals | PlaneResiduals, std: Tensor, lengths: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError when a tensor is not f64, or not of the shape of `std` and its own length."""
    for name in (field.name for field in fields(residuals)):
        rows = getattr(residuals, name)
        shape = (*std.shape[:2], *lengths.get(name, ()))
        if rows is not None and (rows.shape != shape or rows.dtype != torch.float64):
            raise ValueError(f"{name} is {rows.dtype} {tuple(rows.shape)}, needs float64 {shape}")


@dataclass(frozen=True)
class PosePairs:
    """The correspondences that a pose was solved from, `K` (3,3) px of their image, and their standard deviation."""

    correspondences: Correspondences
    K: Array
    std_px: float


def pair_residuals(correspondences: Sequence[Correspondences], std_px: Array, device: torch.device) -> Residuals:
    """Return the rows of B candidates' correspondences, which weigh their certainty.

    `std_px` (B,) image px: standard deviation of a candidate's right correspondences.
    """
    count = max((len(pairs.certainty) for pairs in correspondences), default=0)
    rows = np.zeros((6, len(correspondences), count))
    for candidate, pairs in enumerate(correspondences):
        used = rows[:, candidate, : len(pairs.certainty)]
        used[:2], used[2:5], used[5] = pairs.uv_image.T, pairs.xyz_obj_m.T, pairs.certainty
    on_device = torch.from_numpy(rows).to(device)
    weight = on_device[5]
    return Residuals(
        on_device[:2].permute(1, 2, 0),
        on_device[2:5].permute(1, 2, 0),
        weight,
        torch.from_numpy(std_px.astype(np.float64)).to(device)[:, None].expand(weight.shape),
        torch.ones_like(weight),
    )
