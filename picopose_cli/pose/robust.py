"""Robust least squares for many candidate poses at once: damped Gauss-Newton steps under a narrowing kernel.

Wrong rows lose their weight while the kernel narrows, as in RANSAC, but without random draws: the same rows always give
the same pose, to the bit on one type of device, whatever other candidates are solved with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from picopose_cli.pose.row_blocks import RobustSums

KERNEL_SCALES = (10.0, 5.0, 2.5)
"""Scales of the Geman-McClure kernel in standard deviations: stage 2 errs by tens of crop px, stage 3 by several."""
MAX_STEPS = 5
"""Gauss-Newton steps per kernel; fewer if the cost stops falling."""
DAMPING = 1e-4
"""Share of the normal equations' diagonal that is added to it."""

_SECOND = [[4, 5, 6], [5, 7, 8], [6, 8, 9]]
"""Places of the monomials x_a x_b among the moments."""
_FRACTIONS = 7
"""Terms of the continued fraction of the tangent: exact to the last bits up to 45 degrees."""


class Rows(Protocol):
    """Rows of one kind of B candidates; see `RobustSums`."""

    def robust_sums(self, T_cam_from_obj: Tensor, scale: float) -> RobustSums:
        """Return the sums for poses (B,H,4,4) under the kernel of `scale`, in standard deviations."""

    def agreement(self, T_cam_from_obj: Tensor, scale: float) -> Tensor:
        """Return the `agreement` (B,H) alone of `robust_sums`."""


def minimise(kinds: Sequence[Rows], T_start: Tensor, scales: Sequence[float] = KERNEL_SCALES) -> Tensor:
    """Return the poses (B,H,4,4) near `T_start` (B,H,4,4) f64 that minimise the weighted kernels of the residuals.

    `kinds`: the rows of the same B candidates, by kind; `scales` of the kernel, in standard deviations, one after the
    other. Each of a candidate's H starts is followed by itself; one that is not finite stays as it is.
    """
    with torch.inference_mode(), torch.autocast(T_start.device.type, enabled=False):
        T = T_start
        for scale in scales:
            T = _descend(kinds, T, scale)
        return T


def _descend(kinds: Sequence[Rows], T: Tensor, scale: float) -> Tensor:
    """Take steps under one kernel; each pose stops for good as soon as its cost does not fall."""
    sums = _sums(kinds, T, scale)
    falling = torch.ones_like(sums.agreement, dtype=torch.bool)
    for step in range(1, MAX_STEPS + 1):
        T_next = _step(T, sums)
        if step == MAX_STEPS:
            agreement = sum((rows.agreement(T_next, scale) for rows in kinds[1:]), kinds[0].agreement(T_next, scale))
            falling = falling & (agreement > sums.agreement)
        else:
            sums_next = _sums(kinds, T_next, scale)
            falling = falling & (sums_next.agreement > sums.agreement)  # false for NaN
            sums = RobustSums(
                *(torch.where(falling, new, old) for new, old in zip(_parts(sums_next), _parts(sums), strict=True))
            )
        T = torch.where(falling[..., None, None], T_next, T)
    return T


def _parts(sums: RobustSums) -> tuple[Tensor, Tensor, Tensor]:
    return sums.agreement, sums.G, sums.f


def _sums(kinds: Sequence[Rows], T: Tensor, scale: float) -> RobustSums:
    total = kinds[0].robust_sums(T, scale)
    for rows in kinds[1:]:
        more = rows.robust_sums(T, scale)
        total = RobustSums(total.agreement + more.agreement, total.G + more.G, total.f + more.f)
    return total


def _step(T: Tensor, sums: RobustSums) -> Tensor:
    """Return the poses (B,H,4,4) after one damped step.

    An update is a rotation about the object's origin followed by a shift: to first order a point moves by the cross
    product of the rotation vector with its offset from the origin, plus the shift.
    """
    matrix = T.permute(2, 3, 0, 1).contiguous()
    R, t = matrix[:3, :3], matrix[:3, 3]  # (3,3,B,H), (3,B,H)
    update = _solve(*_normal_equations(R, sums))
    moved = torch.cat(
        [_rotate(-update[:3], R).permute(2, 3, 0, 1), (t - update[3:]).permute(1, 2, 0)[..., None]], dim=-1
    )
    return torch.cat([moved, T[..., 3:, :]], dim=-2)


def _normal_equations(R: Tensor, sums: RobustSums) -> tuple[Tensor, Tensor]:
    """Return the normal matrices (6,6,B,H) and gradients (6,B,H) of an update (rotation, shift).

    With q = R X, the offset of a point from the object's origin, a row adds [q] G [q]^T, [q] G and G to the blocks of
    the matrix, and q x f and f to the gradient.
    """
    G = sums.G[:, [[0, 1, 3], [1, 2, 4], [3, 4, 5]]]  # (10,3,3,B,H)
    qG = _rotated(R, G[:3])  # (q,3,3,B,H)
    qqG = _rotated(R, _rotated(R, G[_SECOND, :]).transpose(0, 1))  # (q,q,3,3,B,H), symmetric in both pairs
    shift_rotation = _cross(qG)  # (3,3,B,H)
    one_side = _cross(qqG.transpose(1, 2))  # (3,q,3,B,H)
    rotation = _cross(one_side.permute(1, 2, 0, 3, 4))
    upper = torch.cat([rotation, shift_rotation], dim=1)
    lower = torch.cat([shift_rotation.transpose(0, 1), G[3]], dim=1)
    return torch.cat([upper, lower]), torch.cat([_cross(_rotated(R, sums.f[:3])), sums.f[3]])


def _rotated(R: Tensor, moments: Tensor) -> Tensor:
    """Return the rotation R (3,3,B,H) of the first axis of moments (3,...,B,H)."""
    x, y, z = R.reshape(3, 3, *(1,) * (moments.ndim - 3), *R.shape[2:]).unbind(1)
    return (x * moments[0]).addcmul_(y, moments[1]).addcmul_(z, moments[2])


def _cross(products: Tensor) -> Tensor:
    """Return the cross products of the first two axes, (3,3,...) -> (3,...)."""
    difference = products - products.transpose(0, 1)
    return torch.stack([difference[1, 2], difference[2, 0], difference[0, 1]])


def _solve(normal: Tensor, right: Tensor) -> Tensor:
    """Return the solutions (6,B,H) of damped normal equations (6,6,B,H), (6,B,H); 0 for what nothing depends on.

    Scaled to a diagonal of ones they need no pivots. Written in operations on whole tensors, because the batched
    solvers of libraries choose their method by the size of the batch.
    """
    diagonal = normal.flatten(0, 1)[::7]
    scale = torch.where(diagonal > 0, diagonal.rsqrt(), 0.0)
    rows = torch.cat([normal * scale, right[:, None]], dim=1).mul_(scale[:, None])
    rows.flatten(0, 1)[::8] = 1 + DAMPING
    for i in range(6):
        pivot_row = rows[i] / rows[i, i]
        rows.addcmul_(rows[:, i : i + 1].clone(), pivot_row, value=-1.0)
        rows[i] = pivot_row
    return rows[:, 6] * scale


def _rotate(rotation: Tensor, R: Tensor) -> Tensor:
    """Return matrices R (3,3,B,H) after rotations by vectors (3,B,H), by half a turn about those that are longer.

    By modified Rodrigues parameters, the axis times the tangent of a quarter of the angle, whose continued fraction
    takes no function that may depend on its argument's place in a tensor in the last bit.
    """
    squared = rotation.square().sum(dim=0)
    shorter = (math.pi**2 / squared.clamp(min=math.pi**2)).sqrt()
    quarter_squared = squared.clamp(max=math.pi**2) / 16
    fraction = torch.full_like(squared, 2 * _FRACTIONS + 1)
    for odd in range(2 * _FRACTIONS - 1, 0, -2):
        fraction = odd - quarter_squared / fraction
    parameters = rotation * (shorter / 4 / fraction)
    squared = parameters.square().sum(dim=0)
    once = _cross(parameters[:, None, None] * R)
    twice = _cross(parameters[:, None, None] * once)
    return R + (4 * (1 - squared) * once + 8 * twice) / (1 + squared) ** 2
