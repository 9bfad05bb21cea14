"""The size of a mesh: its box, its diameter, and whether both are plausible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import METRES_PER_UNIT, Array, Mesh

_OTHER_UNITS = {"inches": 0.0254, "micrometres": 1e-6, "decimetres": 0.1, "feet": 0.3048}
"""Units that can be recognised but not read."""
SMALLEST_MM, LARGEST_MM = 5.0, 5000.0
"""Diameters outside this range mean that the file is in another unit."""
CENTRED_SHARE = 1e-3
"""A mesh is centred when the centre of its box is within this share of the box's diagonal of the origin: meshes of BOP
are to within rounding, and in a template it is a third of a pixel."""
DIAMETER_RATIOS = (0.8, 1.25)
"""A diameter of models_info.json outside this range times the mesh's own is of another unit or object."""

_DIRECTIONS = 400
_STRAY_AREA, _STRAY_BOX = 0.01, 0.1


def mesh_diameter_m(mesh: Mesh) -> float:
    """Return the diagonal in metres of the axis-aligned box around the vertices that faces use."""
    low, high = mesh_bounds_m(mesh)
    return float(np.linalg.norm(high - low))


def mesh_bounds_m(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and highest corner (3,) in metres of the vertices that faces use, object frame."""
    vertices = _used_vertices(mesh)
    return vertices.min(axis=0), vertices.max(axis=0)


def mesh_centre_m(mesh: Mesh) -> NDArray[np.float64]:
    """Return the centre (3,) in metres of the mesh's box, object frame; the origin for a mesh that is centred on it."""
    low, high = mesh_bounds_m(mesh)
    centre: NDArray[np.float64] = (low + high) / 2
    is_centred = np.linalg.norm(centre) <= CENTRED_SHARE * np.linalg.norm(high - low)
    return np.zeros(3) if is_centred else centre


def largest_distance_m(mesh: Mesh) -> float:
    """Return the largest distance in metres between two vertices, BOP's diameter, at most 0.5 % too small.

    It is the largest width of the mesh along many directions.
    """
    vertices = _used_vertices(mesh)
    along = vertices @ _half_sphere(_DIRECTIONS).T
    return float(np.ptp(along, axis=0).max())


def exact_diameter_m(mesh: Mesh) -> float:
    """Return BOP's diameter, the largest distance in metres between two vertices.

    One end is searched among the outermost vertices along many directions, the other among all.
    """
    vertices = _used_vertices(mesh)
    along = vertices @ _half_sphere(_DIRECTIONS).T
    outermost = np.unique([along.argmin(axis=0), along.argmax(axis=0)])
    return max(float(np.linalg.norm(vertices - vertices[index], axis=1).max()) for index in outermost)


def check_size(mesh: Mesh, unit: str, path: Path) -> None:
    """Raise PicoPoseError when the size of a mesh that was read in `unit` is implausible."""
    diameter_mm = mesh_diameter_m(mesh) * 1000
    if not SMALLEST_MM <= diameter_mm <= LARGEST_MM:
        raise PicoPoseError(
            f"its diameter in {unit} is {diameter_mm:.4g} mm, not {SMALLEST_MM:g} to {LARGEST_MM:g} mm",
            where=path,
            fix="pass the file's own unit as --mesh-unit",
        )


def check_diameter(mesh: Mesh, unit: str, diameter_m: float, path: Path) -> None:
    """Compare a mesh that was read in `unit` with its diameter of models_info.json.

    Raises PicoPoseError, with the unit that would fit, when their ratio is outside `DIAMETER_RATIOS`.
    """
    own_m = largest_distance_m(mesh)
    ratio = diameter_m / own_m
    if DIAMETER_RATIOS[0] <= ratio <= DIAMETER_RATIOS[1]:
        return
    raise PicoPoseError(
        f"its diameter in {unit} is {own_m * 1000:.4g} mm, but models_info.json has {diameter_m * 1000:.4g} mm",
        where=path,
        fix=_unit_fix(ratio * METRES_PER_UNIT[unit]) or stray_text(mesh) or "one of them is wrong or of another object",
    )


def stray_text(mesh: Mesh) -> str:
    """Return a warning where 99 % of the mesh's area is in a tenth of its box, else nothing."""
    corners = mesh.vertices_m[mesh.faces]  # (F,3,3)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    tail = _STRAY_AREA / 6  # at both ends of three axes
    low = [_quantile(corners[..., axis].min(axis=1), area, tail) for axis in range(3)]
    high = [_quantile(corners[..., axis].max(axis=1), area, 1 - tail) for axis in range(3)]
    size = np.ptp(corners.reshape(-1, 3), axis=0)
    shares = np.maximum(np.array(high) - low, 0)[size > 0] / size[size > 0]
    if not area.sum() > 0 or np.prod(shares) > _STRAY_BOX:
        return ""
    return "99 % of its area is in a tenth of its bounding box: remove stray triangles that are far from the object"


def _unit_fix(metres_per_unit: float) -> str:
    """Return what to do for a file whose unit has about this length, nothing where it is no unit's."""
    low, high = DIAMETER_RATIOS
    for unit, metres in METRES_PER_UNIT.items():
        if low <= metres_per_unit / metres <= high:
            return f"the mesh seems to be in {unit}: pass --mesh-unit {unit}"
    for name, metres in _OTHER_UNITS.items():
        if low <= metres_per_unit / metres <= high:
            return f"the mesh seems to be in {name}: export it in mm"
    return ""


def _used_vertices(mesh: Mesh) -> Array:
    used = np.zeros(len(mesh.vertices_m), bool)
    used[mesh.faces] = True
    return mesh.vertices_m if used.all() else mesh.vertices_m[used]


def _half_sphere(count: int) -> Array:
    """Return evenly spread unit vectors (count,3), one of each opposite pair."""
    height = (np.arange(count) + 0.5) / count
    azimuth = np.pi * (1 + np.sqrt(5)) * np.arange(count)
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], axis=1)


def _quantile(values: Array, weights: Array, share: float) -> float:
    """Return the value below which a share of the weights is."""
    order = np.argsort(values)
    position = np.searchsorted(np.cumsum(weights[order]), share * weights.sum())
    return float(values[order[min(position, len(order) - 1)]])
