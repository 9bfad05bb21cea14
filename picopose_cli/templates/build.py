"""From rendered views to a template bank: crop each view as the network was trained to see it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.environment import package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import move_origin
from picopose_cli.base.grid import cell_centre_pixels, cell_corner_pixels, round_to_micrometres
from picopose_cli.base.types import Array, Provenance, RenderedView, TemplateBank
from picopose_cli.rendering.mesh_size import check_diameter, mesh_centre_m, mesh_diameter_m, stray_text
from picopose_cli.rendering.meshes import mesh_sha256, read_mesh
from picopose_cli.rendering.renderers import Renderer, open_renderer
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask, square_box
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera


@dataclass(frozen=True)
class Template:
    """One cropped view: the fields of `TemplateBank` of the same names, in the singular and without the leading V."""

    crop_rgb: Array
    mask: Array
    depth_corner_m: Array
    depth_centre_m: Array
    A_crop_from_image: Array


def render_bank(
    obj_id: int,
    mesh_path: Path,
    *,
    mesh_unit: str,
    kind: str,
    threads: int = 1,
    known_diameter_m: float | None = None,
) -> TemplateBank:
    """Render the 162 views of a mesh file with the renderer `kind` and return the object's bank.

    The cameras point at the centre of the mesh's box; poses are those of the mesh's own frame. Up to `threads` views
    are rendered at a time where the renderer allows it. Raises PicoPoseError when the mesh cannot be used, its diameter
    is not about `known_diameter_m`, or a view shows nothing of it.
    """
    mesh = read_mesh(mesh_path, mesh_unit)
    if known_diameter_m is not None:
        check_diameter(mesh, mesh_unit, known_diameter_m, mesh_path)
    diameter_m, centre_m = mesh_diameter_m(mesh), mesh_centre_m(mesh)
    K, poses = template_camera(), move_origin(place_views(diameter_m), -centre_m)
    renderer = open_renderer(kind, mesh, K, TEMPLATE_SIZE_HW)
    try:
        templates = _render_views(renderer, poses, threads if renderer.thread_safe else 1)
    except _EmptyViewError as error:
        raise PicoPoseError(f"view {error} shows nothing of the mesh", where=mesh_path, fix="check the mesh") from error
    finally:
        renderer.close()
    provenance = Provenance(
        mesh_path.name, mesh_sha256(mesh_path), mesh_unit, renderer.name, renderer.detail, versions_text(),
        notes="; ".join(filter(None, (*mesh.notes, stray_text(mesh)))),
    )  # fmt: skip
    return replace(join_templates(obj_id, templates, K, poses, diameter_m, provenance), centre_m=centre_m)


class _EmptyViewError(Exception):
    """A view without a pixel of the object; its text is the view's index."""


def _render_views(renderer: Renderer, poses: Array, threads: int) -> list[Template]:
    def render(view_id: int) -> Template:
        view = renderer.render(poses[view_id])
        if not view.alpha.any():
            raise _EmptyViewError(str(view_id))
        return make_template(view)

    cv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # the views are rendered in parallel; OpenCV's own threads would compete with them
    try:
        if threads == 1:
            return [render(view_id) for view_id in range(len(poses))]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(render, range(len(poses))))
    finally:
        cv2.setNumThreads(cv_threads)


def make_template(view: RenderedView) -> Template:
    """Crop a view to the square around its object.

    Raises PicoPoseError when too few pixels show the object.
    """
    box = square_box(view.alpha)
    return Template(
        crop_rgb=np.rint(crop_colour(view.rgb, box) * 255).astype(np.uint8),
        mask=crop_mask(view.alpha == 255, box),
        depth_corner_m=np.asarray(view.depth_m[cell_corner_pixels(box)], np.float32),
        depth_centre_m=np.asarray(view.depth_m[cell_centre_pixels(box)], np.float32),
        A_crop_from_image=crop_affine(box),
    )


def join_templates(
    obj_id: int, templates: Sequence[Template], K: Array, poses: Array, diameter_m: float, provenance: Provenance
) -> TemplateBank:
    """Return the bank of V templates seen by camera K (3,3) at `poses` (V,4,4), T_tmpl_from_obj in metres."""
    return TemplateBank(
        obj_id=obj_id,
        crops_rgb=np.stack([template.crop_rgb for template in templates]),
        masks=np.stack([template.mask for template in templates]),
        depth_corner_m=np.stack([template.depth_corner_m for template in templates]),
        # rounded as in banks of format 1, so that poses stay the same to the last digit
        depth_centre_m=round_to_micrometres(np.stack([template.depth_centre_m for template in templates])),
        K=K,
        A_crop_from_image=np.stack([template.A_crop_from_image for template in templates]),
        T_tmpl_from_obj=poses,
        diameter_m=diameter_m,
        provenance=provenance,
    )


def versions_text() -> str:
    """Return the versions of the packages that a bank depends on, as `name=version` joined by blanks."""
    return " ".join(f"{name}={version}" for name, version in package_versions().items())
