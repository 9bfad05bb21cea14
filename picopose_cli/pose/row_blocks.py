"""Rows of residuals in blocks of fixed length, and the sums over rows that the robust solver needs.

Every sum is one over the rows of a block, and then one over a candidate's blocks, in order. A block's sums depend on
its rows and the pose alone, and a block of padding adds nothing: a candidate's sums are the same to the bit whatever
other candidates it is solved with, however long the padding is, and with any number of threads.

The sums from which a Gauss-Newton step is made are moments. Let a row's point be at X in the object's frame and appear
at (u, v) px from the principal point, with the inverse depth i. The derivative of (u, v) by the point's coordinates in
the camera, multiplied by the focal lengths, is D = i [1, 0, -u; 0, 1, -v]. A row adds G = D^T S D (3,3) and f = D^T S e
to the normal equations, multiplied by monomials of X, where e is the residual in px and S (2,2) its information matrix
times its robust weight. All that depends on single rows are the moments of G and f with the monomials of X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from picopose_cli.pose.residuals import Residuals

BLOCK_ROWS = 256
"""Rows of a block."""
CHUNK_BLOCKS = {"cpu": (64, False), "cuda": (1024, True)}
"""Blocks that are worked on at once, on a CPU about as many as its caches hold, and whether the last chunk is filled
up: CUDA chooses its kernels, and with them the order of a sum, by the size of a tensor."""
MAX_INVERSE_DEPTH = 1e9
"""Bound, 1 / m, that keeps points in the camera's own plane finite."""


@dataclass(frozen=True)
class RobustSums:
    """Sums over the rows of each candidate pose (B,H).

    `agreement` (B,H): sum of weight / (1 + r^2 / scale^2), which is the total weight minus the Geman-McClure cost;
    `G` (10,6,B,H): moments of the entries xx, xy, yy, xz, yz, zz of G with the monomials x, y, z, 1, xx, xy, xz, yy,
    yz, zz; `f` (4,3,B,H): moments of f with the first four; both in the camera's frame.
    """

    agreement: Tensor
    G: Tensor
    f: Tensor


class BlockLayout:
    """How the rows of B candidates are put in blocks; blocks without any weight are left out."""

    def __init__(self, weight: Tensor) -> None:
        """Lay out rows of `weight` (B,N)."""
        self._candidates, rows = weight.shape
        self._positions = max(-(-rows // BLOCK_ROWS), 1)  # blocks of a candidate
        used = _split(weight).any(dim=-1)
        self._candidate, self._position = used.nonzero(as_tuple=True)
        self._chunk_blocks, whole = CHUNK_BLOCKS[weight.device.type]
        self._filler = -len(self._candidate) % self._chunk_blocks if whole else 0
        self._place = F.pad(self._candidate, (0, self._filler)), F.pad(self._position, (0, self._filler))

    def gather(self, rows: Tensor, fill: float = 0.0) -> Tensor:
        """Return rows (B,N) in T blocks (T,rows), padded by `fill`."""
        return _split(rows, fill)[self._place]

    def of_blocks(self, values: Tensor) -> Tensor:
        """Return the values (B,...) of the candidates for each block (T,...)."""
        return values[self._place[0]]

    def sum(self, matrices: Tensor, of_chunk: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Return the sums (B,H,n) over each candidate's blocks of what `of_chunk` returns for some blocks, (t,H,n).

        `of_chunk` takes which blocks, and their matrices (t,H,3,4) of the candidates' poses, `matrices` (B,H,3,4).
        """
        of_block = F.pad(matrices[self._candidate], (0,) * 7 + (self._filler,))  # (T,H,3,4)
        starts = range(0, max(len(of_block), 1), self._chunk_blocks)
        parts = (slice(start, start + self._chunk_blocks) for start in starts)
        sums = torch.cat([of_chunk(part, of_block[part]) for part in parts])
        padded = matrices.new_zeros(self._candidates, self._positions, *sums.shape[1:])
        padded[self._candidate, self._position] = sums[: len(self._candidate)]
        total = padded[:, 0]
        for position in range(1, self._positions):  # one by one: the order of a sum over an axis depends on its length
            total = total + padded[:, position]
        return total


class RowBlocks:
    """The rows of one kind of B candidates that are residuals in the image, in blocks."""

    def __init__(self, residuals: Residuals, K: Tensor) -> None:
        """Split the rows into blocks; `K` (B,3,3) f64 of the images, on the residuals' device."""
        self._K = K
        self._layout = BlockLayout(residuals.weight)
        self._blocks = _gather(residuals, K, self._layout)

    def robust_sums(self, T_cam_from_obj: Tensor, scale: float) -> RobustSums:
        """Return the sums for poses (B,H,4,4) under the kernel of `scale`, in standard deviations."""
        sums = self._sum(T_cam_from_obj, lambda chunk, T: _robust_sums(chunk, T, scale)).permute(2, 0, 1).contiguous()
        candidate_poses = sums.shape[1:]
        agreement, f, G = sums[0], sums[1:13].view(4, 3, *candidate_poses), sums[13:]
        G = G.view(10, len(G) // 10, *candidate_poses)
        if self._blocks.normal is None:  # pairs have the entries xx = yy, xz, yz, zz
            same, x, y, z = G.unbind(1)
            G = torch.stack([same, torch.zeros_like(same), same, x, y, z], dim=1)
        return RobustSums(agreement, *self._undo_focal(G, f))

    def agreement(self, T_cam_from_obj: Tensor, scale: float) -> Tensor:
        """Return the `agreement` (B,H) alone of `robust_sums`."""

        def of_chunk(chunk: _Blocks, T: Tensor) -> Tensor:
            return (chunk.weight * _kernel(chunk, _project(chunk, T), scale)).sum(dim=-1, keepdim=True)

        return self._sum(T_cam_from_obj, of_chunk)[..., 0]

    def soft_inliers(self, T_cam_from_obj: Tensor) -> Tensor:
        """Return the sums (B,H) over the rows of weight times exp(-r^2 / 2), for poses (B,H,4,4)."""

        def of_chunk(chunk: _Blocks, T: Tensor) -> Tensor:
            shown = _project(chunk, T)
            squared = shown.squared_px * (chunk.precision * chunk.kernel_squared)
            gaussian = squared.mul_(-0.5).exp_().mul_(shown.in_front)
            return (chunk.weight / chunk.kernel_squared * gaussian).sum(dim=-1, keepdim=True)

        return self._sum(T_cam_from_obj, of_chunk)[..., 0]

    def _sum(self, T: Tensor, of_chunk: Callable[[_Blocks, Tensor], Tensor]) -> Tensor:
        """Return the sums (B,H,n) over each candidate's blocks of what `of_chunk` returns for blocks, (T,H,n)."""
        fx, skew, fy = (self._K[:, i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
        to_px = torch.stack([fx * T[:, :, 0] + skew * T[:, :, 1], fy * T[:, :, 1], T[:, :, 2]], dim=2)
        return self._layout.sum(to_px, lambda part, of_block: of_chunk(self._blocks.chunk(part), of_block))

    def _undo_focal(self, G: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moments of G and f in the camera's frame from those of `_robust_sums`."""
        fx, skew, fy = (self._K[:, i, j, None] for i, j in ((0, 0), (0, 1), (1, 1)))
        xx, xy, yy, xz, yz, zz = G.unbind(1)
        rows_xy, rows_yy = skew * xx + fy * xy, skew * xy + fy * yy
        entries = [fx * fx * xx, fx * rows_xy, skew * rows_xy + fy * rows_yy, -fx * xz, -skew * xz - fy * yz, zz]
        x, y, z = f.unbind(1)
        return torch.stack(entries, dim=1), torch.stack([fx * x, skew * x + fy * y, -z], dim=1)


@dataclass(frozen=True)
class _Blocks:
    """T blocks of rows.

    `monomials` (T,10,rows) of the points in metres. The other tensors have an axis of length 1 for a candidate's poses:
    `observed` (2,T,1,rows) px from the principal point; `normal` (2,T,1,rows) or None; `precision` (T,1,rows): 1 / px^2
    of a residual, over the squared kernel scale; `weight` (T,1,rows) times the squared kernel scale: with both, rows of
    any kernel scale are as rows of kernel scale 1. `kernel_squared` (T,1,rows).
    """

    monomials: Tensor
    observed: Tensor
    normal: Tensor | None
    precision: Tensor
    weight: Tensor
    kernel_squared: Tensor

    def chunk(self, part: slice) -> _Blocks:
        normal = None if self.normal is None else self.normal[:, part]
        rows = (self.precision, self.weight, self.kernel_squared)
        return _Blocks(self.monomials[part], self.observed[:, part], normal, *(one[part] for one in rows))


def _split(rows: Tensor, fill: float = 0.0) -> Tensor:
    """Return rows (B,N) padded and in blocks (B,n,rows)."""
    padded = F.pad(rows, (0, -rows.shape[1] % BLOCK_ROWS), value=fill)
    return padded.view(len(rows), padded.shape[1] // BLOCK_ROWS, BLOCK_ROWS)


def monomials(xyz: Sequence[Tensor]) -> Tensor:
    """Return the monomials (T,10,rows) of `RobustSums` of points with coordinates x, y, z, (T,rows) each."""
    x, y, z = xyz
    return torch.stack([x, y, z, torch.ones_like(x), x * x, x * y, x * z, y * y, y * z, z * z], dim=1)


def _gather(residuals: Residuals, K: Tensor, layout: BlockLayout) -> _Blocks:
    """Return the blocks of rows; `K` (B,3,3) of the images, px."""
    centre = layout.of_blocks(K)[:, :2, 2, None]
    observed = torch.stack([layout.gather(column) for column in residuals.uv.unbind(-1)], dim=1) - centre
    normal = None
    if residuals.normal is not None:
        normal = torch.stack([layout.gather(column)[:, None] for column in residuals.normal.unbind(-1)])
    kernel_squared = layout.gather(residuals.kernel_scale, 1.0)[:, None] ** 2
    std_px = layout.gather(residuals.std_px, 1.0)[:, None]
    return _Blocks(
        monomials([layout.gather(column) for column in residuals.xyz_obj_m.unbind(-1)]),
        observed.transpose(0, 1)[:, :, None].contiguous(),
        normal,
        1 / (std_px**2 * kernel_squared),
        layout.gather(residuals.weight)[:, None] * kernel_squared,
        kernel_squared,
    )


@dataclass(frozen=True)
class _Projection:
    """The rows' points in the cameras of the poses, all (T,H,rows).

    `u`, `v` px from the principal point; `inverse_depth` 1 / m, 0 behind the camera; `in_front` 1 or 0; `e_u`, `e_v`
    residual in px, of which only the part along the normal is left if there is one; `squared_px` its squared length.
    """

    u: Tensor
    v: Tensor
    inverse_depth: Tensor
    in_front: Tensor
    e_u: Tensor
    e_v: Tensor
    squared_px: Tensor


def _project(chunk: _Blocks, T: Tensor) -> _Projection:
    """Project a chunk's points; T (T,H,3,4) maps them into the camera and multiplies them by the focal lengths."""
    count, poses = T.shape[:2]
    points = torch.bmm(T.reshape(count, poses * 3, 4), chunk.monomials[:, :4])
    x, y, z = points.view(count, poses, 3, BLOCK_ROWS).unbind(2)
    inverse_depth = z.reciprocal().clamp_(0.0, MAX_INVERSE_DEPTH)
    u, v = x * inverse_depth, y * inverse_depth
    e_u, e_v = u - chunk.observed[0], v - chunk.observed[1]
    if chunk.normal is not None:
        along = e_u.mul_(chunk.normal[0]).addcmul_(e_v, chunk.normal[1])
        e_u, e_v = along * chunk.normal[0], along * chunk.normal[1]
    squared_px = (e_u * e_u).addcmul_(e_v, e_v)
    return _Projection(u, v, inverse_depth, inverse_depth.sign(), e_u, e_v, squared_px)


def _kernel(chunk: _Blocks, shown: _Projection, scale: float) -> Tensor:
    """Return 1 / (1 + r^2 / scale^2), 0 behind the camera; the squared residuals are used up."""
    return shown.squared_px.mul_(chunk.precision).mul_(scale**-2).add_(1.0).reciprocal_().mul_(shown.in_front)


def _robust_sums(chunk: _Blocks, T: Tensor, scale: float) -> Tensor:
    """Return each block's sums (T,H,n): agreement, moments (4,3) of f, of G (10,6), or (10,4) for pairs.

    Points are multiplied by the focal lengths. The entries z of f and xz, yz of G are negated.
    """
    shown = _project(chunk, T)
    kernel = _kernel(chunk, shown, scale)
    agreement = chunk.weight * kernel
    total = agreement.sum(dim=-1, keepdim=True)
    weight = agreement.mul_(kernel).mul_(chunk.precision).mul_(shown.inverse_depth)
    f = T.new_empty(*T.shape[:2], 3, BLOCK_ROWS)
    f_x, f_y, f_z = f.unbind(2)
    torch.mul(weight, shown.e_u, out=f_x)
    torch.mul(weight, shown.e_v, out=f_y)
    torch.mul(shown.u, f_x, out=f_z).addcmul_(shown.v, f_y)
    G = _pair_products(shown, weight) if chunk.normal is None else _line_products(chunk.normal, shown, weight)
    return torch.cat([total, moments(chunk.monomials[:, :4], f), moments(chunk.monomials, G)], dim=-1)


def _pair_products(shown: _Projection, weight: Tensor) -> Tensor:
    """Return the entries xx = yy, -xz, -yz, zz of weight D^T D, D = [1, 0, -u; 0, 1, -v], (T,H,4,rows)."""
    G = weight.new_empty(*weight.shape[:2], 4, BLOCK_ROWS)
    same, xz, yz, zz = G.unbind(2)
    torch.mul(weight, shown.inverse_depth, out=same)
    torch.mul(shown.u, same, out=xz)
    torch.mul(shown.v, same, out=yz)
    torch.mul(shown.u, xz, out=zz).addcmul_(shown.v, yz)
    return G


def _line_products(normal: Tensor, shown: _Projection, weight: Tensor) -> Tensor:
    """Return the entries xx, xy, yy, -xz, -yz, zz of weight d^T d, d = normal D, (T,H,6,rows)."""
    G = weight.new_empty(*weight.shape[:2], 6, BLOCK_ROWS)
    xx, xy, yy, xz, yz, zz = G.unbind(2)
    weight = weight * shown.inverse_depth
    along_z = (shown.u * normal[0]).addcmul_(shown.v, normal[1])
    by_x, by_y, by_z = weight * normal[0], weight * normal[1], weight * along_z
    for entry, one, other in (
        (xx, by_x, normal[0]),
        (xy, by_x, normal[1]),
        (yy, by_y, normal[1]),
        (xz, by_z, normal[0]),
        (yz, by_z, normal[1]),
        (zz, by_z, along_z),
    ):
        torch.mul(one, other, out=entry)
    return G


def moments(of_points: Tensor, entries: Tensor) -> Tensor:
    """Return the sums (T,H,m*n) over rows of monomials (T,m,rows) times entries (T,H,n,rows)."""
    poses, count = entries.shape[1:3]
    sums = torch.bmm(of_points, entries.flatten(1, 2).transpose(1, 2))  # (T,m,H*n)
    return sums.view(*sums.shape[:2], poses, count).transpose(1, 2).flatten(2)
