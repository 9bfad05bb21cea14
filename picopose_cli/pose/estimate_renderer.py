"""Renders of estimates, for refinement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Mesh, RenderedView
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.simplify import cluster_vertices
from picopose_cli.rendering.software import SoftwareRenderer, render_depth

MAX_FACES = 60_000
"""Meshes of more faces are simplified."""
COLOUR_CELLS, DEPTH_CELLS = 80, 60
"""Cells along a mesh's longest side in which its vertices become one, for renders in colour and of depth alone: the
outline of a curved surface is off by less than a tenth of a pixel in 448 px, and in depth of 224 px."""


@dataclass(frozen=True)
class _ReadyMesh:
    """What an object is rendered with: in colour, and its shape alone."""

    coloured: SoftwareRenderer
    shape: Mesh


class EstimateRenderer:
    """Renders objects at estimated poses; thread-safe.

    `meshes` are (path, unit) by object id. A mesh is read when it is first needed; `errors` has those that could not be
    read, which are not tried again.
    """

    def __init__(self, meshes: Mapping[int, tuple[Path, str]]) -> None:
        self.errors: dict[int, PicoPoseError] = {}
        self._meshes = meshes
        self._ready: dict[int, _ReadyMesh] = {}
        self._lock = Lock()

    def __call__(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> RenderedView:
        """Return the object at a pose (4,4), metres, in the square image of the camera `K` (3,3), px.

        Raises PicoPoseError when there is no mesh or it cannot be read.
        """
        return self._mesh(obj_id).coloured.with_camera(K, (side_px, side_px)).render_quickly(T_cam_from_obj)

    def depth(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> Array:
        """Return the depth (S,S) f32 in metres alone, 0 outside of the object; as `__call__` otherwise."""
        return render_depth(self._mesh(obj_id).shape, K, T_cam_from_obj, (0, 0, side_px, side_px))

    def _mesh(self, obj_id: int) -> _ReadyMesh:
        if obj_id not in self._meshes:
            raise PicoPoseError(f"object {obj_id} has no mesh")
        with self._lock:
            if obj_id in self.errors:
                raise self.errors[obj_id]
            if obj_id not in self._ready:
                mesh = self._read_mesh(obj_id)
                shape = Mesh(mesh.vertices_m, mesh.faces)
                if len(mesh.faces) > MAX_FACES:
                    mesh, shape = cluster_vertices(mesh, COLOUR_CELLS), cluster_vertices(shape, DEPTH_CELLS)
                self._ready[obj_id] = _ReadyMesh(SoftwareRenderer(mesh, np.eye(3), (1, 1)), shape)
            return self._ready[obj_id]

    def _read_mesh(self, obj_id: int) -> Mesh:
        try:
            return read_mesh(*self._meshes[obj_id])
        except PicoPoseError as error:
            self.errors[obj_id] = error
            raise
