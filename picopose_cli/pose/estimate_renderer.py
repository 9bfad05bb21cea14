"""Renders of estimates, for refinement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Mesh, RenderedView
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.software import SoftwareRenderer


class EstimateRenderer:
    """Renders objects at estimated poses; thread-safe.

    `meshes` are (path, unit) by object id. A mesh is read when it is first needed; `errors` has those that could not be
    read, which are not tried again.
    """

    def __init__(self, meshes: Mapping[int, tuple[Path, str]]) -> None:
        self.errors: dict[int, PicoPoseError] = {}
        self._meshes = meshes
        self._ready: dict[int, SoftwareRenderer] = {}
        self._lock = Lock()

    def __call__(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> RenderedView:
        """Return the object at a pose (4,4), metres, in the square image of the camera `K` (3,3), px.

        Raises PicoPoseError when there is no mesh or it cannot be read.
        """
        return self._renderer(obj_id, K, side_px).with_camera(K, (side_px, side_px)).render_quickly(T_cam_from_obj)

    def depth(self, obj_id: int, T_cam_from_obj: Array, K: Array, side_px: int) -> Array:
        """Return the depth (S,S) f32 in metres alone, 0 outside of the object; as `__call__` otherwise."""
        return self._renderer(obj_id, K, side_px).with_camera(K, (side_px, side_px)).render_depth(T_cam_from_obj)

    def _renderer(self, obj_id: int, K: Array, side_px: int) -> SoftwareRenderer:
        if obj_id not in self._meshes:
            raise PicoPoseError(f"object {obj_id} has no mesh")
        with self._lock:
            if obj_id in self.errors:
                raise self.errors[obj_id]
            if obj_id not in self._ready:
                self._ready[obj_id] = SoftwareRenderer(self._read_mesh(obj_id), K, (side_px, side_px))
            return self._ready[obj_id]

    def _read_mesh(self, obj_id: int) -> Mesh:
        try:
            return read_mesh(*self._meshes[obj_id])
        except PicoPoseError as error:
            self.errors[obj_id] = error
            raise
