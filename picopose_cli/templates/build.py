"""From rendered views to a template bank: crop each view as the network was trained to see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.environment import package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import invert_T, transform_points
from picopose_cli.base.types import GRID_CELLS, Array, Provenance, RenderedView, TemplateBank
from picopose_cli.rendering.meshes import mesh_diameter_m, mesh_sha256, read_mesh
from picopose_cli.rendering.renderers import Renderer, open_renderer
from picopose_cli.templates.crops import (
    cell_centre_pixels,
    crop_affine,
    crop_colour,
    crop_mask,
    resize_nearest,
    square_box,
)
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera


@dataclass(frozen=True)
class Template:
    """One view as it stands in a bank: see the fields of `structs.TemplateBank`, here without the leading V."""

    crop_rgb: Array
    mask: Array
    xyz_obj_m: Array
    depth_centre_m: Array
    A_crop_from_image: Array


def render_bank(obj_id: int, mesh_path: Path, *, mesh_unit: str, kind: str, threads: int = 1) -> TemplateBank:
    """Render the 162 views of a mesh file with the renderer `kind` and return the object's bank.

    `threads` draw views side by side where the renderer allows it. Raises PicoPoseError when the mesh cannot be used
    or nothing of it is seen in a view.
    """
    mesh = read_mesh(mesh_path, mesh_unit)
    diameter_m = mesh_diameter_m(mesh)
    K, poses = template_camera(), place_views(diameter_m)
    renderer = open_renderer(kind, mesh, K, TEMPLATE_SIZE_HW)
    try:
        templates = _draw_views(renderer, K, poses, threads if renderer.thread_safe else 1)
    except _EmptyViewError as error:
        raise PicoPoseError(f"nothing is seen in view {error}", where=mesh_path, fix="check the mesh") from error
    finally:
        renderer.close()
    provenance = Provenance(
        mesh_path.name, mesh_sha256(mesh_path), mesh_unit, renderer.name, renderer.detail, versions_text()
    )
    return join_templates(obj_id, templates, K, poses, diameter_m, provenance)


class _EmptyViewError(Exception):
    """A view without a pixel of the object; says which."""


def _draw_views(renderer: Renderer, K: Array, poses: Array, threads: int) -> list[Template]:
    def draw(view_id: int) -> Template:
        view = renderer.render(poses[view_id])
        if not view.alpha.any():
            raise _EmptyViewError(str(view_id))
        return make_template(view, K, poses[view_id])

    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the views are what runs side by side; OpenCV's own threads would only get in their way
    try:
        if threads == 1:
            return [draw(view_id) for view_id in range(len(poses))]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(draw, range(len(poses))))
    finally:
        cv2.setNumThreads(cv_threads)


def make_template(view: RenderedView, K: Array, T_tmpl_from_obj: Array) -> Template:
    """Crop a view seen by camera K (3,3) at `T_tmpl_from_obj` (4,4) metres.

    Raises PicoPoseError when too little is seen for a crop.
    """
    box = square_box(view.alpha)
    return Template(
        crop_rgb=np.rint(crop_colour(view.rgb, box) * 255).astype(np.uint8),
        mask=crop_mask(view.alpha == 255, box),
        xyz_obj_m=_released_points(view.depth_m, box, K, T_tmpl_from_obj),
        depth_centre_m=_centre_depth(view.depth_m, box),
        A_crop_from_image=crop_affine(box),
    )


def _released_points(depth_m: Array, box: tuple[int, int, int, int], K: Array, T_tmpl_from_obj: Array) -> Array:
    """Return the object-frame points (64,64,3) f32 of the cells as the released network saw them.

    PARITY: a cell takes the depth of its top-left pixel, and that is lifted at the pixel's index as if its centre lay
    there: together about 1.7 crop px away from the cell's centre. Cells without depth are lifted too: they hold the
    camera's centre, and the released code hands it to PnP where the network is sure of such a cell.
    """
    r0, r1, c0, c1 = box
    depth = resize_nearest(depth_m[r0:r1, c0:c1], GRID_CELLS).astype(np.float64)
    side = r1 - r0
    index = resize_nearest(np.tile(np.arange(side, dtype=np.float32), (side, 1)), GRID_CELLS)[0].astype(np.float64)
    x, y = np.meshgrid(c0 + index, r0 + index)
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T
    xyz_obj = transform_points(invert_T(T_tmpl_from_obj), (rays * depth[..., None]).reshape(-1, 3))
    return xyz_obj.reshape(rays.shape).astype(np.float32)


def _centre_depth(depth_m: Array, box: tuple[int, int, int, int]) -> Array:
    """Return the depth (64,64) f32 at the pixels in which the cells' centres, (i + .5) * 3.5 crop px, lie."""
    return np.asarray(depth_m[cell_centre_pixels(box)], np.float32)


def join_templates(
    obj_id: int, templates: Sequence[Template], K: Array, poses: Array, diameter_m: float, provenance: Provenance
) -> TemplateBank:
    """Return the bank of V templates whose `poses` (V,4,4) are T_tmpl_from_obj in metres."""
    return TemplateBank(
        obj_id=obj_id,
        crops_rgb=_stack(template.crop_rgb for template in templates),
        masks=_stack(template.mask for template in templates),
        xyz_obj_m=_stack(template.xyz_obj_m for template in templates),
        depth_centre_m=_stack(template.depth_centre_m for template in templates),
        K=K,
        A_crop_from_image=_stack(template.A_crop_from_image for template in templates),
        T_tmpl_from_obj=poses,
        diameter_m=diameter_m,
        provenance=provenance,
    )


def _stack(arrays: Iterable[Array]) -> Array:
    return np.stack(list(arrays))


def versions_text() -> str:
    """Return the versions of what a bank is made with, as `name=version` joined by blanks."""
    return " ".join(f"{name}={version}" for name, version in package_versions().items())
