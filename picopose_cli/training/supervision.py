"""The true outputs of the stages for pairs with known geometry, computed in torch on the batch's device.

Crop pixels and cells are those of the released network: the centre of cell (row, col) of a grid with cells of s crop px
is at ((col + .5) s, (row + .5) s), and a position in cells is a crop position divided by s.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from picopose_cli.base.types import CROP_PX, GRID_CELLS
from picopose_cli.network.affine import compose_affine
from picopose_cli.network.offsets import cell_indices
from picopose_cli.training.batches import PairBatch, ViewBatch

DEPTH_TOLERANCE = 0.03
"""Tolerance of the depth, as a share of the object's diameter: a template point whose depth differs by more from the
observation's is occluded by the object itself."""
MIN_CORNERS = 2
"""Number of the four fine cells around a coarse cell's centre that must show the object."""


@dataclass(frozen=True)
class TrueAffine:
    """The true 2D similarity of N pairs in crop px, f32.

    `translation_px` (N,2) is the displacement of the object's projected origin from `origin_tmpl_crop` (N,2), the other
    values are `scale` (N,) and the in-plane `angle_rad` (N,).
    """

    translation_px: Tensor
    scale: Tensor
    angle_rad: Tensor
    origin_tmpl_crop: Tensor

    @property
    def cos_sin(self) -> Tensor:
        """Cosine and sine (N,2) of the in-plane angle."""
        return torch.stack([self.angle_rad.cos(), self.angle_rad.sin()], 1)

    @property
    def A_obs_from_tmpl(self) -> Tensor:
        """The similarity (N,3,3) in crop px."""
        return compose_affine(self.translation_px, self.scale, self.cos_sin, self.origin_tmpl_crop)


@dataclass(frozen=True)
class TrueFlow:
    """True flow from template cells to the observation: `flow` (N,2,g,g) in cells (x, y), `valid` (N,g,g) bool."""

    flow: Tensor
    valid: Tensor


def true_affine(observation: ViewBatch, template: ViewBatch) -> TrueAffine:
    """Return the true output of stage 2 for N pairs.

    The scale is that at the object's origin; the angle is the first Euler angle "zxy" of the rotation from the
    template's to the observation's camera (source: released code). A rotation of the crop itself, as by augmentation,
    counts as in-plane rotation.
    """
    origin_obs, origin_tmpl = _origin_crop_px(observation), _origin_crop_px(template)
    z_obs, z_tmpl = observation.T_cam_from_obj[:, 2, 3], template.T_cam_from_obj[:, 2, 3]
    crop_scale = _scale(observation.A_crop_from_image) / _scale(template.A_crop_from_image)
    focal = observation.K[:, 0, 0] / template.K[:, 0, 0]
    R = observation.T_cam_from_obj[:, :3, :3] @ template.T_cam_from_obj[:, :3, :3].transpose(1, 2)
    angle = torch.atan2(R[:, 1, 0], R[:, 1, 1])
    angle = angle + _angle(observation.A_crop_from_image) - _angle(template.A_crop_from_image)
    return TrueAffine(
        (origin_obs - origin_tmpl).float(),
        (z_tmpl / z_obs * crop_scale * focal).float(),
        torch.atan2(angle.sin(), angle.cos()).float(),
        origin_tmpl.float(),
    )


def true_flow(batch: PairBatch, grids: tuple[int, ...]) -> tuple[TrueFlow, ...]:
    """Return the true flow of N pairs on template grids of the given sides (64 divided by powers of 2).

    A cell is valid when the template shows the object at the cell's centre, the true position is inside the
    observation's mask, and the observation's own depth there agrees: self-occluded parts are not valid.
    """
    return tuple(_flow_on_grid(batch, grid) for grid in grids)


def depth_on_grid(depth_centre_m: Tensor, grid: int) -> Tensor:
    """Return depths (B,grid,grid) m at the centres of coarser cells from depths (B,64,64), 0 where not visible.

    A coarse centre is the common corner of four fine cells: the depth is the harmonic mean of those that show the
    object (exact on a plane, where inverse depth is linear in the image), if at least `MIN_CORNERS` do.
    """
    if grid == GRID_CELLS:
        return depth_centre_m
    step = GRID_CELLS // grid
    low = torch.arange(grid, device=depth_centre_m.device) * step + step // 2 - 1
    corners = torch.stack([depth_centre_m[:, low + i][:, :, low + j] for i in (0, 1) for j in (0, 1)])  # (4,B,g,g)
    seen = corners > 0
    inverse = torch.where(seen, 1 / corners.clamp(min=1e-6), torch.zeros_like(corners)).sum(0)
    count = seen.sum(0)
    return torch.where(count >= MIN_CORNERS, count / inverse.clamp(min=1e-6), torch.zeros_like(inverse))


def inverse(matrices: Tensor) -> Tensor:
    """Return the inverses of matrices (B,n,n), unchecked: a check would make the host wait for the device."""
    inverted: Tensor = torch.linalg.inv_ex(matrices).inverse
    return inverted


def _flow_on_grid(batch: PairBatch, grid: int) -> TrueFlow:
    cell_px = CROP_PX / grid
    depth = depth_on_grid(batch.template.depth_centre_m, grid)
    cells = cell_indices(depth[:, None])  # (2,g,g)
    centres_px = ((cells + 0.5) * cell_px).flatten(1).T.double()  # (g*g,2)
    xyz_obs = _lift_to_observation(batch, centres_px, depth.flatten(1).double())  # (B,g*g,3)
    target_px, in_front = _project_to_crop(batch.observation, xyz_obs)
    seen = (depth.flatten(1) > 0) & in_front & _in_mask(batch.observation.masks, target_px)
    seen = seen & _depth_agrees(batch, target_px, xyz_obs[..., 2])
    flow = (target_px / cell_px).transpose(1, 2).reshape(-1, 2, grid, grid).float() - cells
    valid = seen.view(-1, grid, grid)
    return TrueFlow(torch.where(valid[:, None], flow, torch.zeros_like(flow)), valid)


def _lift_to_observation(batch: PairBatch, crop_px: Tensor, depth_m: Tensor) -> Tensor:
    """Return points (B,N,3) m in the observation's camera frame, of template crop positions (N,2) at depths (B,N) m."""
    template = batch.template
    rays_from_crop = inverse(template.A_crop_from_image @ template.K)  # (B,3,3)
    rays = _homogeneous(crop_px) @ rays_from_crop.transpose(1, 2)  # (B,N,3)
    T: Tensor = batch.observation.T_cam_from_obj @ inverse(template.T_cam_from_obj)
    lifted: Tensor = (rays * depth_m[..., None]) @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]
    return lifted


def _project_to_crop(view: ViewBatch, xyz_cam: Tensor) -> tuple[Tensor, Tensor]:
    """Return crop positions (B,N,2) of camera points (B,N,3), and which (B,N) are in front of the camera."""
    projected = xyz_cam @ (view.A_crop_from_image @ view.K).transpose(1, 2)
    in_front = projected[..., 2] > 1e-6
    return projected[..., :2] / torch.where(in_front, projected[..., 2], 1.0)[..., None], in_front


def _in_mask(masks: Tensor, crop_px: Tensor) -> Tensor:
    """Return whether each crop position (B,N,2) is inside the mask (B,S,S), as (B,N) bool."""
    side = masks.shape[-1]
    index = crop_px.floor().clamp(-1, side).long()
    inside = ((index >= 0) & (index < side)).all(-1)
    x, y = index.clamp(0, side - 1).unbind(-1)
    found: Tensor = masks.flatten(1).gather(1, y * side + x) & inside
    return found


def _depth_agrees(batch: PairBatch, target_px: Tensor, z_m: Tensor) -> Tensor:
    """Return whether the observation has about the depth `z_m` (B,N) at crop positions (B,N,2), as (B,N) bool.

    Its inverse depth is interpolated between the cells that show the object.
    """
    depth = batch.observation.depth_centre_m[:, None]  # (B,1,64,64)
    seen = (depth > 0).float()
    both = torch.cat([seen / depth.clamp(min=1e-6), seen], 1)
    where = (target_px / (CROP_PX / 2) - 1).clamp(-2, 2).float()[:, None]  # corner convention, as align_corners=False
    inverse, weight = F.grid_sample(both, where, padding_mode="border", align_corners=False)[:, :, 0].unbind(1)
    z_seen = weight / inverse.clamp(min=1e-6)
    return (weight > 0.1) & ((z_seen - z_m).abs() < DEPTH_TOLERANCE * batch.diameter_m[:, None])


def _origin_crop_px(view: ViewBatch) -> Tensor:
    """Return the object's projected origin (B,2) in crop px."""
    crop_px, _ = _project_to_crop(view, view.T_cam_from_obj[:, None, :3, 3])
    return crop_px[:, 0]


def _homogeneous(xy: Tensor) -> Tensor:
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)


def _scale(A: Tensor) -> Tensor:
    """Return the scale (B,) of 2D similarities (B,3,3)."""
    length: Tensor = torch.linalg.vector_norm(A[:, :2, 0], dim=1)
    return length


def _angle(A: Tensor) -> Tensor:
    """Return the angle (B,) of 2D similarities (B,3,3)."""
    return torch.atan2(A[:, 1, 0], A[:, 0, 0])
