"""In-plane rotation of rendered observations on the device, without rendering them again."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from picopose_cli.base.types import CROP_PX, GRID_CELLS
from picopose_cli.training.batches import ViewBatch
from picopose_cli.training.supervision import inverse


def rotate_observations(view: ViewBatch, roll_rad: Tensor) -> ViewBatch:
    """Return B views rotated in the image plane by angles (B,) and cropped again, square around the rotated masks.

    The rotation becomes part of `A_crop_from_image`, so the geometry stays exact. Pixels outside a view's old crop are
    filled from the next view of the batch.
    """
    S = _rotate_and_crop(view.masks, roll_rad)  # new crop px from old crop px
    images = view.crops_rgb.permute(0, 3, 1, 2).float()  # (B,3,S,S)
    inside = _warp(torch.ones_like(images[:, :1]), S, CROP_PX, "nearest")
    colours = torch.where(inside > 0.5, _warp(images, S, CROP_PX, "bilinear"), images.roll(1, 0))
    masks = _warp(view.masks[:, None].float(), S, CROP_PX, "nearest")
    depth = _warp(view.depth_centre_m[:, None], S, GRID_CELLS, "nearest")
    return ViewBatch(
        colours.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1),
        masks[:, 0] > 0.5,
        depth[:, 0],
        view.K,
        S @ view.A_crop_from_image,
        view.T_cam_from_obj,
    )


def _rotate_and_crop(masks: Tensor, roll_rad: Tensor) -> Tensor:
    """Return the similarity (B,3,3) f64 that rotates masks (B,S,S) and fills the crop with their bounding square."""
    side = masks.shape[-1]
    centre = torch.arange(side, device=masks.device) + 0.5
    cos, sin = roll_rad.double().cos()[:, None, None], roll_rad.double().sin()[:, None, None]
    x, y = cos * centre - sin * centre[:, None], sin * centre + cos * centre[:, None]  # (B,S,S)
    (x_low, x_high), (y_low, y_high) = _range_inside(x, masks), _range_inside(y, masks)
    scale = side / torch.maximum(x_high - x_low, y_high - y_low).clamp(min=8)
    S = torch.zeros(len(masks), 3, 3, dtype=torch.float64, device=masks.device)
    S[:, 0, 0] = S[:, 1, 1] = scale * cos[:, 0, 0]
    S[:, 1, 0] = scale * sin[:, 0, 0]
    S[:, 0, 1] = -S[:, 1, 0]
    S[:, 0, 2] = side / 2 - scale * (x_low + x_high) / 2
    S[:, 1, 2] = side / 2 - scale * (y_low + y_high) / 2
    S[:, 2, 2] = 1
    return S


def _range_inside(values: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value (B,) inside masks (B,S,S), extended by half a pixel."""
    low = values.masked_fill(~masks, torch.inf).flatten(1).amin(1)
    high = values.masked_fill(~masks, -torch.inf).flatten(1).amax(1)
    empty = low > high
    return torch.where(empty, values.flatten(1).amin(1), low) - 0.5, torch.where(
        empty, values.flatten(1).amax(1), high
    ) + 0.5


def _warp(images: Tensor, S: Tensor, side: int, mode: str) -> Tensor:
    """Return images (B,C,side,side) transformed by similarities (B,3,3), new from old crop px; 0 outside."""
    to_unit = torch.tensor([[2 / CROP_PX, 0, -1], [0, 2 / CROP_PX, -1], [0, 0, 1]], device=S.device, dtype=S.dtype)
    from_unit = torch.tensor([[CROP_PX / 2, 0, CROP_PX / 2], [0, CROP_PX / 2, CROP_PX / 2], [0, 0, 1]]).to(S)
    theta = to_unit @ inverse(S) @ from_unit
    with torch.autocast(S.device.type, enabled=False):  # a grid in bf16 is off by up to 0.7 px
        grid = F.affine_grid(theta[:, :2].float(), [len(images), 1, side, side], align_corners=False)
    padding = "border" if mode == "bilinear" else "zeros"  # no dark seam at the border of the old crop
    return F.grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)
