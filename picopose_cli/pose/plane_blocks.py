"""The sums that the robust solver needs over rows that hold points of the object to planes; see `row_blocks`.

A row's residual is linear in the pose: with D = normal^T it adds G = D^T S D and f = D^T S e like rows in the image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from picopose_cli.pose.residuals import PlaneResiduals
from picopose_cli.pose.row_blocks import BLOCK_ROWS, BlockLayout, RobustSums, moments, monomials


class PlaneBlocks:
    """The rows of B candidates that are distances from planes, in blocks."""

    def __init__(self, residuals: PlaneResiduals) -> None:
        """Split the rows into blocks."""
        self._layout = BlockLayout(residuals.weight)
        gather = self._layout.gather
        kernel_squared = gather(residuals.kernel_scale, 1.0)[:, None] ** 2
        self._monomials = monomials([gather(column) for column in residuals.xyz_obj_m.unbind(-1)])
        self._normal = torch.stack([gather(column) for column in residuals.normal.unbind(-1)], dim=1)
        self._offset_m = gather(residuals.offset_m)[:, None]
        self._precision = 1 / (gather(residuals.std_m, 1.0)[:, None] ** 2 * kernel_squared)
        self._weight = gather(residuals.weight)[:, None] * kernel_squared

    def robust_sums(self, T_cam_from_obj: Tensor, scale: float) -> RobustSums:
        """Return the sums for poses (B,H,4,4) under the kernel of `scale`, in standard deviations."""

        def of_chunk(part: slice, T: Tensor) -> Tensor:
            e = self._distances(part, T)
            kernel = self._kernel(part, e, scale)
            agreement = self._weight[part] * kernel
            total = agreement.sum(dim=-1, keepdim=True)
            weight = agreement * kernel * self._precision[part]
            f, G = self._products(part, weight, e)
            points = self._monomials[part]
            return torch.cat([total, moments(points[:, :4], f), moments(points, G)], dim=-1)

        sums = self._layout.sum(T_cam_from_obj[:, :, :3], of_chunk).permute(2, 0, 1).contiguous()
        candidate_poses = sums.shape[1:]
        return RobustSums(sums[0], sums[13:].view(10, 6, *candidate_poses), sums[1:13].view(4, 3, *candidate_poses))

    def agreement(self, T_cam_from_obj: Tensor, scale: float) -> Tensor:
        """Return the `agreement` (B,H) alone of `robust_sums`."""

        def of_chunk(part: slice, T: Tensor) -> Tensor:
            kernel = self._kernel(part, self._distances(part, T), scale)
            return (self._weight[part] * kernel).sum(dim=-1, keepdim=True)

        return self._layout.sum(T_cam_from_obj[:, :, :3], of_chunk)[..., 0]

    def _distances(self, part: slice, T: Tensor) -> Tensor:
        """Return the signed distances (t,H,rows) of the points from their planes, metres; T (t,H,3,4)."""
        count, poses = T.shape[:2]
        points = torch.bmm(T.reshape(count, poses * 3, 4), self._monomials[part, :4])
        x, y, z = points.view(count, poses, 3, BLOCK_ROWS).unbind(2)
        n_x, n_y, n_z = self._normal[part, :, None].unbind(1)
        return (n_x * x).addcmul_(n_y, y).addcmul_(n_z, z).sub_(self._offset_m[part])

    def _kernel(self, part: slice, distances: Tensor, scale: float) -> Tensor:
        """Return 1 / (1 + r^2 / scale^2)."""
        return (distances * distances).mul_(self._precision[part]).mul_(scale**-2).add_(1.0).reciprocal_()

    def _products(self, part: slice, weight: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight normal e (t,H,3,rows) and the entries xx, xy, yy, xz, yz, zz of weight normal normal^T."""
        n_x, n_y, n_z = self._normal[part, :, None].unbind(1)
        by_x, by_y, by_z = weight * n_x, weight * n_y, weight * n_z
        f = torch.stack([by_x * e, by_y * e, by_z * e], dim=2)
        return f, torch.stack([by_x * n_x, by_x * n_y, by_y * n_y, by_x * n_z, by_y * n_z, by_z * n_z], dim=2)
