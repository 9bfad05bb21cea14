"""Rigid transforms, pinhole projection and 2D affine maps on numpy arrays (metres, pixels, OpenCV camera axes)."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.types import Array

PIXEL_CENTRE_PX = 0.5
"""Offset of a pixel's centre from its index: every renderer of this project samples there."""


def make_T(R: Array, t: Array) -> Array:
    """Return rigid transforms (..., 4, 4) from rotations (..., 3, 3) and translations (..., 3)."""
    T = np.zeros((*np.broadcast_shapes(R.shape[:-2], t.shape[:-1]), 4, 4), np.result_type(R, t, np.float32))
    T[..., :3, :3] = R
    T[..., :3, 3] = t
    T[..., 3, 3] = 1
    return T


def invert_T(T: Array) -> Array:
    """Return the inverses (..., 4, 4) of rigid transforms (..., 4, 4)."""
    R_inverse = np.swapaxes(T[..., :3, :3], -1, -2)
    return make_T(R_inverse, -(R_inverse @ T[..., :3, 3:])[..., 0])


def move_origin(T_b_from_a: Array, origin_a: Array) -> Array:
    """Return transforms (..., 4, 4) from frame a with its origin moved to the points `origin_a` (..., 3) of frame a.

    With -`origin_a` the origin is moved back. An origin of zeros changes nothing, to the bit.
    """
    R, t = T_b_from_a[..., :3, :3], T_b_from_a[..., :3, 3]
    return make_T(R, t + (R @ origin_a[..., None])[..., 0])


def transform_points(T_b_from_a: Array, xyz_a: Array) -> Array:
    """Map points (..., N, 3) from frame a to frame b with (..., 4, 4)."""
    return xyz_a @ np.swapaxes(T_b_from_a[..., :3, :3], -1, -2) + T_b_from_a[..., None, :3, 3]


def project_points(K: Array, xyz_cam: Array) -> Array:
    """Project camera-frame points (..., N, 3) with pinhole K (..., 3, 3) to image pixels (..., N, 2), (x, y)."""
    homogeneous = xyz_cam @ np.swapaxes(K, -1, -2)
    uv: Array = homogeneous[..., :2] / homogeneous[..., 2:]
    return uv


def backproject_pixels(K: Array, uv: Array, depth_m: Array) -> Array:
    """Lift image points (..., 2), (x, y) in px, at depths (...) in metres to camera-frame points (..., 3)."""
    homogeneous = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1)
    return (homogeneous @ np.linalg.inv(K).T) * depth_m[..., None]


def pixel_index_affine(A_b_from_a: Array) -> Array:
    """Return an affine map (3,3) of positions from the outer corner as OpenCV takes it: (2,3), of pixel indices."""
    to_centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])  # OpenCV counts from the centre of the first pixel
    return np.asarray((np.linalg.inv(to_centre) @ A_b_from_a @ to_centre)[:2])


def apply_affine(A_b_from_a: Array, xy_a: Array) -> Array:
    """Map 2D points (..., N, 2) with affine matrices (..., 3, 3) in homogeneous form."""
    return xy_a @ np.swapaxes(A_b_from_a[..., :2, :2], -1, -2) + A_b_from_a[..., None, :2, 2]


def rotation_angle_rad(R_a: Array, R_b: Array) -> Array:
    """Return the geodesic angle (...) in radians between rotations (..., 3, 3), accurate near zero too."""
    # ||R_a - R_b||_F = 2 sqrt(2) sin(angle / 2)
    chord = np.linalg.norm(R_a - R_b, axis=(-2, -1)) / (2 * np.sqrt(2))
    angle: Array = 2 * np.arcsin(np.clip(chord, 0, 1))
    return angle


def rotation_deviation(R: Array) -> Array:
    """Return by how much matrices (...,3,3) are no rotations or reflections: the largest entry (...) of |R R^T - I|."""
    deviation: Array = np.abs(R @ np.swapaxes(R, -1, -2) - np.eye(3)).max(axis=(-2, -1))
    return deviation


def distinct_rotations(R: Array, least_rad: float, count: int) -> list[int]:
    """Return the indices of up to `count` rotations (N,3,3) that differ by more than an angle from all before them."""
    chosen: list[int] = []
    largest_trace = 1 + 2 * np.cos(least_rad)
    for i, one in enumerate(R):
        if (np.einsum("nij,ij->n", R[chosen], one) < largest_trace).all():
            chosen.append(i)
            if len(chosen) == count:
                break
    return chosen


def ray_rotation(t: Array) -> Array:
    """Return the least rotations (N,3,3) that turn the optical axis into the direction of `t` (N,3), in front."""
    x, y, z = (t / np.linalg.norm(t, axis=1, keepdims=True)).T
    k = 1 / (1 + z)  # Rodrigues' formula for the axis (-y, x, 0)
    R = np.stack([1 - k * x * x, -k * x * y, x, -k * x * y, 1 - k * y * y, y, -x, -y, z], axis=1)
    return R.reshape(-1, 3, 3)


def mask_iou(one: Array, other: Array) -> float:
    """Return the intersection over union of two masks (H,W) bool of the same size, 0 where both are empty."""
    return int(np.count_nonzero(one & other)) / max(int(np.count_nonzero(one | other)), 1)


ImageSlices = tuple[slice, slice]
"""Rows and columns of an image."""


def mask_slices(mask: Array, margin_px: int = 0) -> ImageSlices | None:
    """Return the rows and columns that a mask (H,W), non-zero inside, spans, None for an empty one.

    They are extended by a margin, but not beyond the image.
    """
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    tight = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
    return grown_slices(tight, margin_px, mask)


def grown_slices(slices: ImageSlices, margin_px: int, image: Array) -> ImageSlices:
    """Return slices with a margin around them, but not beyond an image (H,W,...)."""
    rows, cols = (
        slice(max(side.start - margin_px, 0), min(side.stop + margin_px, size))
        for side, size in zip(slices, image.shape, strict=False)
    )
    return rows, cols
