"""Lighting of observed objects: ambient and Lambertian light and a highlight, computed at the vertices.

The result is one number per vertex, the shade, which the rasteriser interpolates beside the texture coordinates: up to
1 it scales the surface's own colour, what exceeds 1 is added as white.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.rasteriser import RasterMesh, make_raster_mesh
from picopose_cli.rendering.shading import Surface, make_surface

_CREASE_COS = np.cos(np.radians(40))
"""Cosine of the angle between the normals of adjacent faces from which on they show an edge."""
_HORIZON_SHARPNESS = 3.0
"""Of the border between bright and dark in what a mirror reflects."""


@dataclass(frozen=True)
class Light:
    """A distant lamp: `direction_cam` (3,) is the unit vector from the surface towards it, in the camera frame."""

    direction_cam: Array
    ambient: float
    diffuse: float
    specular: float
    shininess: float


@dataclass(frozen=True)
class Material:
    """How an object's surface reflects, in place of a scene's highlight: of its `mirror` share in [0, 1], a reflection.

    The reflected surroundings are bright above, dark below and brightest at the lamp, as a metal part shows them.
    """

    specular: float
    shininess: float
    mirror: float


def random_light(rng: np.random.Generator, strength: float) -> Light:
    """Return a random lamp on the camera's side or above; at `strength` 0 the light is uniform, at 1 most directed."""
    direction = rng.normal(size=3) + np.array([0.0, -0.7, -0.8])
    direction /= np.linalg.norm(direction)
    ambient = 1 - strength * rng.uniform(0.1, 0.6)
    glossy = rng.random() < 0.5 * strength
    specular = rng.uniform(0.1, 0.6) if glossy else 0.0
    return Light(direction, ambient, (1 - ambient) * rng.uniform(0.9, 1.3), specular, rng.uniform(5, 60))


@dataclass(frozen=True)
class LitMesh:
    """A mesh prepared for lighting: `raster_mesh`, vertices split at edges, and `normals` (N,3) f32, object frame.

    `surface` colours a textured mesh from its `uv` (N,2) f32; otherwise `vertex_rgb` (N,3) f32 or, where the mesh has
    no colour, None.
    """

    raster_mesh: RasterMesh
    normals: Array
    surface: Surface | None
    uv: Array | None
    vertex_rgb: Array | None


def make_lit_mesh(mesh: Mesh) -> LitMesh:
    """Return a mesh with normals that are smooth except at edges, independent of the seams of its texture."""
    vertex, normals, faces = _split_at_creases(mesh)
    raster_mesh = make_raster_mesh(mesh.vertices_m[vertex], faces)
    textured = mesh.uv is not None
    return LitMesh(
        raster_mesh,
        normals,
        make_surface(mesh) if textured else None,
        mesh.uv[vertex].astype(np.float32) if mesh.uv is not None else None,
        mesh.vertex_rgb[vertex].astype(np.float32) if mesh.vertex_rgb is not None else None,
    )


def light_mesh(
    lit_mesh: LitMesh, light: Light, T_cam_from_obj: Array, paint_rgb: Array, material: Material | None = None
) -> RasterMesh:
    """Return the mesh with the attributes to interpolate at this pose: (u, v, shade), or lit colours in [0, 255].

    `paint_rgb` (3,) in [0, 255] is the colour of a mesh that has none; without a `material`, its gloss is the light's.
    """
    shade = _shade(lit_mesh.normals, light, T_cam_from_obj, material)
    if lit_mesh.uv is not None:
        attributes = np.concatenate([lit_mesh.uv, shade[:, None]], axis=1)
    else:
        rgb = np.asarray(paint_rgb, np.float32) if lit_mesh.vertex_rgb is None else lit_mesh.vertex_rgb
        attributes = rgb * np.minimum(shade, 1)[:, None] + 255 * np.maximum(shade - 1, 0)[:, None]
    return replace(lit_mesh.raster_mesh, attributes=np.ascontiguousarray(attributes, np.float32))


def colour_samples(lit_mesh: LitMesh, attributes: Array, T_cam_from_obj: Array, samples_per_m: float) -> Array:
    """Return the colours (h,w,3) u8 of the interpolated `attributes` (h,w,3) f32 of a mesh from `light_mesh`."""
    if lit_mesh.surface is None:
        return np.asarray(cv2.convertScaleAbs(attributes))
    colours = lit_mesh.surface.colour(attributes, T_cam_from_obj, samples_per_m)
    shade = np.ascontiguousarray(attributes[..., 2])
    dimmed = cv2.multiply(colours, cv2.cvtColor(np.minimum(shade, 1), cv2.COLOR_GRAY2RGB), dtype=cv2.CV_8U)
    if shade.max() <= 1:
        return np.asarray(dimmed)
    highlight = cv2.convertScaleAbs(np.maximum(shade - 1, 0), None, 255)
    return np.asarray(cv2.add(dimmed, cv2.cvtColor(highlight, cv2.COLOR_GRAY2RGB)))


def _shade(normals: Array, light: Light, T_cam_from_obj: Array, material: Material | None) -> Array:
    R = T_cam_from_obj[:3, :3].astype(np.float32)
    lamp = R.T @ light.direction_cam.astype(np.float32)
    to_camera = -R.T @ (T_cam_from_obj[:3, 3] / np.linalg.norm(T_cam_from_obj[:3, 3])).astype(np.float32)
    halfway = (lamp + to_camera) / max(float(np.linalg.norm(lamp + to_camera)), 1e-6)
    shade = light.ambient + light.diffuse * np.maximum(normals @ lamp, 0)
    shade = np.minimum(shade, 1)
    specular, shininess = light.specular, light.shininess
    if material is not None:
        specular, shininess = material.specular, material.shininess
        shade = shade * (1 - material.mirror) + material.mirror * _reflected(normals, to_camera, lamp, -R[1])
    if specular:
        shade = shade + specular * np.maximum(normals @ halfway, 0) ** shininess
    return np.asarray(shade, np.float32)


def _reflected(normals: Array, to_camera: Array, lamp: Array, up: Array) -> Array:
    """Return the brightness (N,) of what a mirror with `normals` (N,3) shows; directions (3,) in the object frame."""
    towards = 2 * (normals @ to_camera)[:, None] * normals - to_camera
    sky = 0.55 + 0.4 * np.tanh(_HORIZON_SHARPNESS * (towards @ up))
    return np.asarray(sky + 0.5 * np.maximum(towards @ lamp, 0) ** 8)


def _split_at_creases(mesh: Mesh) -> tuple[Array, Array, Array]:
    """Return the original index (N,) and normal (N,3) f32 of each new vertex, and the faces (F,3) over new vertices."""
    corners = mesh.vertices_m[mesh.faces]  # (F, 3, 3)
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    if np.einsum("fi,fi->", corners[:, 0], weighted) < 0:  # the faces are oriented inwards
        weighted = -weighted
    of_face = _unit(weighted)
    place = _places(mesh.vertices_m)[mesh.faces]  # (F, 3): equal for corners at the same point, seam or not
    # Weighted by the angle at the corner, or a side divided into more triangles would have more weight.
    contribution = (of_face[:, None] * _corner_angles(corners)[..., None]).reshape(-1, 3)
    total = np.stack([np.bincount(place.ravel(), contribution[:, i]) for i in range(3)], axis=-1)
    smooth = _unit(total)[place]
    creased = np.einsum("fci,fi->fc", smooth, of_face) < _CREASE_COS
    normals = np.where(creased[..., None], of_face[:, None], smooth).reshape(-1, 3)
    # A smooth corner stays its vertex; at a crease there is a vertex for each direction of the faces.
    code = np.where(creased.reshape(-1, 1), np.rint(normals * 20) + 100, 0) @ (1, 256, 65536)
    key = mesh.faces.reshape(-1) * float(2**26) + code
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return mesh.faces.reshape(-1)[first], normals[first].astype(np.float32), inverse.reshape(-1, 3).astype(np.int32)


def _corner_angles(corners: Array) -> Array:
    """Return the angle (F,3) rad at each corner of triangles (F,3,3)."""
    forth, back = (_unit(np.roll(corners, shift, axis=1) - corners) for shift in (-1, 1))
    return np.asarray(np.arccos(np.clip(np.einsum("fci,fci->fc", forth, back), -1, 1)))


def _places(vertices_m: Array) -> Array:
    """Return an index (N,) for each vertex, equal for vertices at the same point."""
    span = max(float(np.ptp(vertices_m, axis=0).max()), 1e-9)
    cells = np.rint((vertices_m - vertices_m.min(axis=0)) / span * 2**20).astype(np.int64)
    return np.asarray(np.unique(cells @ (1 << 42, 1 << 21, 1), return_inverse=True)[1])


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30))
