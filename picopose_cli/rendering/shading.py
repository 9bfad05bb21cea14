"""Surface colours: vertex colours, a texture filtered to the view's resolution, or grey lit from the camera.

A Surface gives each vertex of a mesh three values to interpolate, and maps the interpolated values to colours.
Coloured and textured meshes are rendered without lighting, as in the released templates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import cv2
import numpy as np

from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.rasteriser import RasterMesh, make_raster_mesh

SAMPLES = 2
"""Colour samples along each side of a pixel."""
GREY_SHADED = (60.0, 120.0)
"""Brightness of a mesh without colour: the first at a grazing angle, the sum of both where it faces the camera."""


class Surface(Protocol):
    """Colours of a mesh: `raster_mesh` holds the values to interpolate, `colour` maps them to colours."""

    @property
    def raster_mesh(self) -> RasterMesh:
        """The mesh with three values per vertex to interpolate."""

    def colour(self, attributes: Array, T_cam_from_obj: Array, samples_per_m: float) -> Array:
        """Return colours (h,w,3) u8 of interpolated attributes (h,w,3) f32 at `samples_per_m`."""


def make_surface(mesh: Mesh) -> Surface:
    """Return the surface for a mesh's kind of colours."""
    if mesh.texture_rgb is not None and mesh.uv is not None:
        return _make_textured(mesh, mesh.uv, mesh.texture_rgb)
    if mesh.vertex_rgb is not None:
        return VertexColoured(make_raster_mesh(mesh.vertices_m, mesh.faces, mesh.vertex_rgb))
    corners = mesh.vertices_m[mesh.faces]  # (F,3,3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    split = np.arange(3 * len(mesh.faces), dtype=np.int32).reshape(-1, 3)
    return Grey(make_raster_mesh(corners.reshape(-1, 3), split, np.repeat(normals, 3, axis=0)))


@dataclass(frozen=True)
class VertexColoured:
    """Attributes are RGB in [0, 255]."""

    raster_mesh: RasterMesh

    def colour(self, attributes: Array, T_cam_from_obj: Array, samples_per_m: float) -> Array:  # noqa: ARG002
        """Return the interpolated colours."""
        return np.asarray(cv2.convertScaleAbs(attributes))


@dataclass(frozen=True)
class Grey:
    """Attributes are face normals in the object frame; every face has its own vertices, so edges stay sharp."""

    raster_mesh: RasterMesh

    def colour(self, attributes: Array, T_cam_from_obj: Array, samples_per_m: float) -> Array:  # noqa: ARG002
        """Return grey that is brightest where the surface faces the camera; both sides of a face are the same."""
        facing = np.abs(attributes @ T_cam_from_obj[2, :3].astype(np.float32))
        return np.repeat(cv2.convertScaleAbs(facing, None, GREY_SHADED[1], GREY_SHADED[0])[..., None], 3, axis=-1)


@dataclass(frozen=True)
class Textured:
    """Attributes are (u, v, 0), v = 0 at the texture's bottom row; outside [0, 1] the texture repeats."""

    raster_mesh: RasterMesh
    texels_per_m: float
    levels: list[Array] = field(repr=False)
    """The texture's mip levels, full resolution first."""
    repeats: bool

    def colour(self, attributes: Array, T_cam_from_obj: Array, samples_per_m: float) -> Array:  # noqa: ARG002
        """Return bilinear samples of the mip level whose texels are about as large as the samples."""
        level = np.rint(np.log2(max(self.texels_per_m / samples_per_m, 1.0)))
        texture = self.levels[min(int(level), len(self.levels) - 1)]
        height, width = texture.shape[:2]
        u, v = attributes[..., 0], attributes[..., 1]
        if self.repeats:
            u, v = u - np.floor(u), v - np.floor(v)
        # Texel centres at +0.5; row 0 of the array is the top.
        x, y = u * np.float32(width) - np.float32(0.5), np.float32(height - 0.5) - v * np.float32(height)
        return np.asarray(cv2.remap(texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))


def _make_textured(mesh: Mesh, uv: Array, texture_rgb: Array) -> Textured:
    attributes = np.concatenate([uv, np.zeros((len(uv), 1))], axis=1)
    repeats = bool(uv.min() < 0 or uv.max() > 1)
    raster_mesh = make_raster_mesh(mesh.vertices_m, mesh.faces, attributes)
    return Textured(raster_mesh, _texels_per_m(mesh, uv, texture_rgb), _mip_levels(texture_rgb), repeats)


def _texels_per_m(mesh: Mesh, uv: Array, texture_rgb: Array) -> float:
    """Return the texture's resolution on the surface: the root of texels over square metres of the whole mesh."""
    xyz, uv_faces = mesh.vertices_m[mesh.faces], uv[mesh.faces]
    area = np.linalg.norm(np.cross(xyz[:, 1] - xyz[:, 0], xyz[:, 2] - xyz[:, 0]), axis=1).sum()
    (a, b), (c, d) = (uv_faces[:, 1] - uv_faces[:, 0]).T, (uv_faces[:, 2] - uv_faces[:, 0]).T
    texels = np.abs(a * d - b * c).sum() * texture_rgb.shape[0] * texture_rgb.shape[1]
    return float(np.sqrt(texels / max(area, 1e-30)))


def _mip_levels(texture_rgb: Array) -> list[Array]:
    levels = [np.ascontiguousarray(texture_rgb)]
    while min(levels[-1].shape[:2]) > 1:
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA))
    return levels


def average_samples(colours: Array, covered: Array) -> tuple[Array, Array]:
    """Return rgb (h,w,3) and alpha (h,w) u8 of colours (2h,2w,3) and coverage (2h,2w) u8, 255 on the surface.

    A pixel is the mean of its four samples, black outside the surface: edges are blended with the black background.
    """
    colours = cv2.bitwise_and(colours, colours, mask=covered)
    size_wh = (covered.shape[1] // SAMPLES, covered.shape[0] // SAMPLES)
    rgb, alpha = (cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) for image in (colours, covered))
    return rgb, alpha
