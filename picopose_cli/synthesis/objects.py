"""The objects of training: made from a seed, or scanned meshes from a folder; each with its templates."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.meshes import mesh_bounds_m, mesh_diameter_m, read_mesh
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.lighting import LitMesh, make_lit_mesh
from picopose_cli.synthesis.samples import CropView
from picopose_cli.synthesis.shapes import Shape, Tile, centred, distinct_shape, random_shape, random_size_m
from picopose_cli.synthesis.simplify import simplify_mesh
from picopose_cli.synthesis.textures import paint_object, solid_colours
from picopose_cli.templates.build import make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

_LOG = logging.getLogger(__name__)

_LEAST_CONTRAST = 18.0
"""Standard deviation of a texture, in levels of 255, below which it is as good as plain."""
_TEXTURE_PX = 384
MAX_FACES = 5000
"""Scanned meshes are simplified to this: at training's resolution more is not seen."""


@dataclass(frozen=True)
class SyntheticObject:
    """An object with its mesh, centred in its frame, and all that is kept of it while it is in use."""

    key: str
    mesh: Mesh
    _templates: dict[int, CropView] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def diameter_m(self) -> float:
        """Diagonal of the axis-aligned box."""
        return mesh_diameter_m(self.mesh)

    @cached_property
    def lit(self) -> LitMesh:
        """The mesh as observations need it."""
        return make_lit_mesh(self.mesh)

    @cached_property
    def poses(self) -> Array:
        """T_tmpl_from_obj (162,4,4) of the template views."""
        return place_views(self.diameter_m)

    @cached_property
    def _renderer(self) -> SoftwareRenderer:
        return SoftwareRenderer(self.mesh, template_camera(), TEMPLATE_SIZE_HW)

    def template(self, view_id: int) -> CropView:
        """Return a template as `render-templates` would draw it; each is drawn once and kept."""
        if view_id not in self._templates:
            K, T = template_camera(), self.poses[view_id]
            drawn = make_template(self._renderer.render(T))
            affine = drawn.A_crop_from_image.astype(np.float64)
            self._templates[view_id] = CropView(drawn.crop_rgb, drawn.mask, drawn.depth_centre_m, K, affine, T)
        return self._templates[view_id]


def nearest_views(poses: Array, T_cam_from_obj: Array, count: int) -> Array:
    """Return the `count` views (poses (V,4,4)) whose direction onto the object is nearest to that of a pose (4,4)."""
    direction = T_cam_from_obj[:3, :3].T @ T_cam_from_obj[:3, 3]  # from the camera to the origin, object frame
    directions = np.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
    cosine = directions @ direction / np.linalg.norm(directions, axis=1)
    return np.asarray(np.argsort(-cosine, kind="stable")[:count])


def make_distinct_mesh(seed: int | Sequence[int], size_m: tuple[float, float], texture_px: int) -> Mesh:
    """Return a textured mesh that looks different from every side, its longest side within `size_m`.

    For evaluation: an object that looks the same after a turn would be scored as wrong half of the time. Shapes that
    might (turned bodies, balls) are left out, and one texture covers all of the object.
    """
    rng = np.random.default_rng(seed)
    shape = centred(distinct_shape(rng), float(np.exp(rng.uniform(*np.log(size_m)))))
    return Mesh(
        shape.vertices, shape.faces, uv=shape.uv, texture_rgb=_paint_with_contrast(rng, shape.tiles, texture_px)
    )


def _paint_with_contrast(rng: np.random.Generator, tiles: Sequence[Tile], texture_px: int) -> Array:
    """Return a texture on which there is something to see: a plain one hides how its object is turned."""
    while True:
        texture = paint_object(rng, tiles, texture_px)
        if has_contrast(texture):
            return texture


def has_contrast(picture: Array) -> bool:
    """Tell whether there is more to see in a picture (h,w,3) u8 than on a plain one."""
    return float(picture[::4, ::4].astype(np.float32).std(axis=(0, 1)).max()) > _LEAST_CONTRAST


def make_procedural_object(seed: int | Sequence[int], key: str, *, texture_px: int = _TEXTURE_PX) -> SyntheticObject:
    """Return the object of a seed: shape, size and look; the same seed gives the same object."""
    rng = np.random.default_rng(seed)
    look = rng.random()
    # Without a texture only the shape tells the sides apart: it must not be a turned body.
    shape = random_shape(rng) if look < 0.88 else centred(distinct_shape(rng), random_size_m(rng))
    if look < 0.78:
        texture = _paint_with_contrast(rng, shape.tiles, texture_px)
        return SyntheticObject(key, Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture))
    if look < 0.88:
        return SyntheticObject(key, Mesh(shape.vertices, shape.faces, vertex_rgb=_solid(rng, shape.vertices)))
    return SyntheticObject(key, Mesh(shape.vertices, shape.faces))


def _solid(rng: np.random.Generator, vertices: Array) -> Array:
    return solid_colours(rng, vertices / max(float(np.abs(vertices).max()), 1e-9))


class MeshFolder:
    """The meshes of a folder (BOP-style PLY, OBJ or GLB in mm), each read and simplified when it is first asked for.

    A mesh that cannot be used is logged, listed in `problems` and passed over.
    """

    def __init__(self, folder: Path) -> None:
        """List the meshes; raises PicoPoseError when there is none."""
        if not folder.is_dir():
            raise PicoPoseError("is not a folder", where=folder, fix="pass a folder of meshes")
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".ply", ".obj", ".glb"})
        if not self.paths:
            raise PicoPoseError("holds no .ply, .obj or .glb", where=folder, fix="pass a folder of meshes")
        self.problems: dict[Path, PicoPoseError] = {}
        self._meshes: dict[int, Mesh] = {}

    def load(self, index: int) -> Mesh | None:
        """Return a mesh, centred, in metres, of at most about MAX_FACES faces; None when it cannot be used."""
        path = self.paths[index]
        if index not in self._meshes and path not in self.problems:
            try:
                mesh = read_mesh(path)
            except PicoPoseError as error:
                _LOG.warning("left out: %s", error)
                self.problems[path] = error
            else:
                self._meshes[index] = _centred(simplify_mesh(mesh, MAX_FACES))
        return self._meshes.get(index)

    def make_object(self, seed: int | Sequence[int], key: str) -> SyntheticObject:
        """Return a random object of the folder with its own look, or one painted over or painted where it has none.

        Raises PicoPoseError when no mesh of the folder can be used.
        """
        rng = np.random.default_rng(seed)
        for index in rng.permutation(len(self.paths)):
            mesh = self.load(int(index))
            if mesh is not None:
                name = f"{key}-{self.paths[index].stem}"
                return SyntheticObject(name, _dressed(rng, _rescaled(rng, mesh)))
        raise PicoPoseError("no mesh of the folder can be used", where=self.paths[0].parent, fix="see the log")


def _centred(mesh: Mesh) -> Mesh:
    low, high = mesh_bounds_m(mesh)
    return Mesh(mesh.vertices_m - (low + high) / 2, mesh.faces, mesh.vertex_rgb, mesh.uv, mesh.texture_rgb)


def _rescaled(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Scale a mesh a little along its axes: more shapes from the same scans."""
    if rng.random() < 0.5:
        return mesh
    scale = np.exp(rng.uniform(-0.25, 0.25, 3)) * np.exp(rng.uniform(-0.3, 0.3))
    return Mesh(mesh.vertices_m * scale, mesh.faces, mesh.vertex_rgb, mesh.uv, mesh.texture_rgb)


def _dressed(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    coloured = mesh.texture_rgb is not None or mesh.vertex_rgb is not None
    if coloured and rng.random() < 0.7:
        return mesh
    look = rng.random()
    if look < 0.7:
        shape = project_texture(mesh)
        texture = _paint_with_contrast(rng, shape.tiles, _TEXTURE_PX)
        return Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture)
    if look < 0.8 or coloured:
        return Mesh(mesh.vertices_m, mesh.faces, vertex_rgb=_solid(rng, mesh.vertices_m))
    return Mesh(mesh.vertices_m, mesh.faces)


def project_texture(mesh: Mesh) -> Shape:
    """Return a mesh with texture coordinates: each face is seen from the side of the box that it faces most."""
    corners = mesh.vertices_m[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.abs(normals).argmax(axis=1)
    positive = np.take_along_axis(normals, axis[:, None], axis=1)[:, 0] > 0
    side = 2 * axis + positive  # (F,)
    key, inverse = np.unique(mesh.faces * 6 + side[:, None], return_inverse=True)
    vertices, of_side = mesh.vertices_m[key // 6], key % 6
    across, up = np.array([1, 1, 0, 0, 0, 0])[of_side], np.array([2, 2, 2, 2, 1, 1])[of_side]
    low = vertices.min(axis=0)
    size = float(np.ptp(vertices, axis=0).max())
    picked = np.stack([np.take_along_axis(vertices - low, index[:, None], axis=1)[:, 0] for index in (across, up)], -1)
    uv = ((0.02 + 0.96 * picked / size) + np.stack([of_side % 3, of_side // 3], axis=-1)) / (3, 2)
    tiles: tuple[Tile, ...] = tuple((i % 3 / 3, i // 3 / 2, (i % 3 + 1) / 3, (i // 3 + 1) / 2) for i in range(6))
    return Shape(vertices, inverse.reshape(-1, 3).astype(np.int32), uv.astype(np.float32), tiles)
