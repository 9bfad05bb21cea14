"""Renders of estimates: an object as a template camera sees it from the direction of an estimated pose."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T, move_origin, ray_rotation
from picopose_cli.base.types import Array, Mesh, TemplateView
from picopose_cli.rendering.mesh_size import mesh_centre_m, mesh_diameter_m
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates.build import make_template
from picopose_cli.templates.views import DISTANCE_DIAMETERS, TEMPLATE_SIZE_HW, template_camera


class EstimateRenderer:
    """Renders objects at estimated poses as the templates of a bank are rendered; thread-safe.

    `meshes` are (path, unit) by object id. A mesh is read when it is first needed; `errors` has those that could not be
    read, which are not tried again.
    """

    def __init__(self, meshes: Mapping[int, tuple[Path, str]]) -> None:
        self.errors: dict[int, PicoPoseError] = {}
        self._meshes = meshes
        self._K = template_camera()
        self._ready: dict[int, tuple[SoftwareRenderer, float, Array]] = {}
        self._lock = Lock()

    def __call__(self, obj_id: int, T_cam_from_obj: Array) -> TemplateView:
        """Return the object as a template camera sees it from the viewing direction of a pose.

        `T_cam_from_obj` (4,4) metres. Raises PicoPoseError when there is no mesh, it cannot be read or nothing of the
        object is in the image.
        """
        if obj_id not in self._meshes:
            raise PicoPoseError(f"object {obj_id} has no mesh")
        renderer, diameter_m, centre_m = self._renderer(obj_id)
        T = template_pose(T_cam_from_obj, diameter_m, centre_m)
        template = make_template(renderer.render(T))
        crop = template.A_crop_from_image
        return TemplateView(template.crop_rgb, template.mask, template.depth_centre_m, self._K, crop, T, centre_m)

    def _renderer(self, obj_id: int) -> tuple[SoftwareRenderer, float, Array]:
        with self._lock:
            if obj_id in self.errors:
                raise self.errors[obj_id]
            if obj_id not in self._ready:
                mesh = self._read_mesh(obj_id)
                renderer = SoftwareRenderer(mesh, self._K, TEMPLATE_SIZE_HW)
                self._ready[obj_id] = renderer, mesh_diameter_m(mesh), mesh_centre_m(mesh)
            return self._ready[obj_id]

    def _read_mesh(self, obj_id: int) -> Mesh:
        try:
            return read_mesh(*self._meshes[obj_id])
        except PicoPoseError as error:
            self.errors[obj_id] = error
            raise


def template_pose(T_cam_from_obj: Array, diameter_m: float, centre_m: Array) -> Array:
    """Return the pose T_tmpl_from_obj (4,4) of a template that sees the object as the camera sees it along its ray.

    The object's `centre_m` (3,) is on the optical axis at the templates' distance, without an in-plane rotation.
    """
    T = move_origin(T_cam_from_obj, centre_m)
    R = ray_rotation(T[None, :3, 3])[0].T @ T[:3, :3]
    return move_origin(make_T(R, np.array([0.0, 0.0, DISTANCE_DIAMETERS * diameter_m])), -centre_m)
