"""Objects made from scanned meshes: read from a folder, simplified, rescaled and painted at random."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import MESH_SUFFIXES
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.mesh_size import mesh_bounds_m
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.simplify import simplify_mesh
from picopose_cli.synthesis.appearance import recoloured_cad
from picopose_cli.synthesis.objects import TEXTURE_PX, SyntheticObject, colour_vertices, paint_with_contrast
from picopose_cli.synthesis.shapes import Shape, Tile

_LOG = logging.getLogger(__name__)

MAX_FACES = 5000
"""Scanned meshes are simplified to about this number of faces: crops of 224 px show no more detail."""

_RECOLOURED_SHARE = 0.5
"""Of CAD models. They keep their pattern: a cup without it has no rotation."""


class MeshFolder:
    """The meshes of a folder (PLY as in BOP, OBJ or GLB, in mm), each read and simplified on first use.

    A mesh that cannot be used is logged, listed in `problems` and skipped.
    """

    def __init__(self, folder: Path) -> None:
        """List the meshes; raises PicoPoseError when there is none."""
        if not folder.is_dir():
            raise PicoPoseError("is not a folder", where=folder, fix="pass a folder of meshes")
        self.paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in MESH_SUFFIXES)
        if not self.paths:
            raise PicoPoseError("contains no .ply, .obj or .glb file", where=folder, fix="pass a folder of meshes")
        self.problems: dict[Path, PicoPoseError] = {}
        self._meshes: dict[int, Mesh] = {}

    def load(self, index: int) -> Mesh | None:
        """Return a mesh, centred, in metres, of at most about MAX_FACES faces, or None when it cannot be used."""
        path = self.paths[index]
        if index not in self._meshes and path not in self.problems:
            try:
                mesh = read_mesh(path)
            except PicoPoseError as error:
                _LOG.warning("mesh skipped: %s", error)
                self.problems[path] = error
            else:
                self._meshes[index] = _centred(simplify_mesh(mesh, MAX_FACES))
        return self._meshes.get(index)

    def make_object(self, seed: int | Sequence[int], key: str) -> SyntheticObject:
        """Return a random object of the folder, rescaled and painted at random.

        Raises PicoPoseError when no mesh of the folder can be used.
        """
        rng = np.random.default_rng(seed)
        for index in rng.permutation(len(self.paths)):
            mesh = self.load(int(index))
            if mesh is not None:
                name = f"{key}-{self.paths[index].stem}"
                painted = _painted(rng, _rescaled(rng, mesh))
                cad = recoloured_cad(rng, painted) if rng.random() < _RECOLOURED_SHARE else None
                return SyntheticObject(name, painted, cad)
        raise PicoPoseError(
            "no mesh of the folder can be used", where=self.paths[0].parent, fix="check the warnings in the log"
        )


def _centred(mesh: Mesh) -> Mesh:
    low, high = mesh_bounds_m(mesh)
    return replace(mesh, vertices_m=mesh.vertices_m - (low + high) / 2)


def _rescaled(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Return half of the meshes scaled a little along their axes: more shapes from the same scans."""
    if rng.random() < 0.5:
        return mesh
    scale = np.exp(rng.uniform(-0.25, 0.25, 3)) * np.exp(rng.uniform(-0.3, 0.3))
    return replace(mesh, vertices_m=mesh.vertices_m * scale)


def _painted(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Return the mesh with its own colours (70 % of those that have any), a new texture, new colours, or none."""
    coloured = mesh.texture_rgb is not None or mesh.vertex_rgb is not None
    if coloured and rng.random() < 0.7:
        return mesh
    appearance = rng.random()
    if appearance < 0.7:
        shape = project_texture(mesh)
        texture = paint_with_contrast(rng, shape.tiles, TEXTURE_PX)
        return Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture)
    if appearance < 0.8 or coloured:
        return Mesh(mesh.vertices_m, mesh.faces, vertex_rgb=colour_vertices(rng, mesh.vertices_m))
    return Mesh(mesh.vertices_m, mesh.faces)


def project_texture(mesh: Mesh) -> Shape:
    """Return a mesh with texture coordinates: each face is projected onto the side of the bounding box it faces most.

    The texture has six tiles, one for each side.
    """
    corners = mesh.vertices_m[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.abs(normals).argmax(axis=1)
    positive = np.take_along_axis(normals, axis[:, None], axis=1)[:, 0] > 0
    side = 2 * axis + positive  # (F,)
    key, inverse = np.unique(mesh.faces * 6 + side[:, None], return_inverse=True)
    vertices, side = mesh.vertices_m[key // 6], key % 6  # (N,3), (N,): a vertex for each side it belongs to
    across, up = np.array([1, 1, 0, 0, 0, 0])[side], np.array([2, 2, 2, 2, 1, 1])[side]
    low = vertices.min(axis=0)
    size = float(np.ptp(vertices, axis=0).max())
    picked = np.stack([np.take_along_axis(vertices - low, index[:, None], axis=1)[:, 0] for index in (across, up)], -1)
    uv = ((0.02 + 0.96 * picked / size) + np.stack([side % 3, side // 3], axis=-1)) / (3, 2)
    tiles: tuple[Tile, ...] = tuple((i % 3 / 3, i // 3 / 2, (i % 3 + 1) / 3, (i // 3 + 1) / 2) for i in range(6))
    return Shape(vertices, inverse.reshape(-1, 3).astype(np.int32), uv.astype(np.float32), tiles)
