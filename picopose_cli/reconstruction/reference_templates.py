"""Templates that are photographs: real appearance with the exact geometry of the mesh in the photograph's own camera.

A template's camera has a matrix of its own and looks straight at the object. So a photograph is seen through a virtual
camera at the place of the real one, turned to the object, a homography; mask and depth are those of the mesh there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from picopose_cli.base.geometry import make_T, mask_iou, project_points, transform_points
from picopose_cli.base.grid import cell_centre_pixels, cell_corner_pixels, round_to_micrometres
from picopose_cli.base.types import CROP_PX, Array, Mesh, TemplateBank
from picopose_cli.reconstruction.hull import view_directions
from picopose_cli.reconstruction.pose_refinement import refine_poses
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates.build import Template
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask

NEAR_DEG = 9.0
"""Largest angle between a template's view and the photograph that takes its place: half of that between neighbours."""
_LEAST_VISIBLE = 0.97
_LEAST_IOU = 0.7
_POSE_ROUNDS = 3
_GAIN_RANGE = (0.5, 2.0)


@dataclass(frozen=True)
class _Placed:
    """A photograph in place of the template `view_id`, seen by a template camera at `T_tmpl_from_obj` (4,4)."""

    view_id: int
    template: Template
    T_tmpl_from_obj: Array


def use_photographs(
    bank: TemplateBank, mesh: Mesh, shape: Mesh, views: Sequence[ReferenceView]
) -> tuple[TemplateBank, int]:
    """Return a bank with photographs in place of the renders with nearly the same view, and their number.

    `mesh` is the bank's, with colours, `shape` the same with shared vertices, by which the views' poses are refined
    first. Photographs of which another object hides a part, or that do not show the mesh, are not used.
    """
    refined = refine_poses(Surface(shape.vertices_m, shape.faces), views, _POSE_ROUNDS)
    renderer = SoftwareRenderer(mesh, bank.K, (CROP_PX, CROP_PX))
    centre = mesh.vertices_m.min(axis=0) / 2 + mesh.vertices_m.max(axis=0) / 2
    placed = []
    for view_id, index in _nearest_views(bank, refined, centre):
        T = _facing_pose(refined[index], bank.T_tmpl_from_obj[view_id], centre)
        template = _photo_template(refined[index], renderer, mesh, bank.K, T)
        if template is not None:
            placed.append(_Placed(view_id, template, T))
    return _with_templates(bank, placed), len(placed)


def _nearest_views(bank: TemplateBank, views: Sequence[ReferenceView], centre: Array) -> list[tuple[int, int]]:
    """Return pairs of a template's view and the photograph nearest to it, each photograph once, nearest pairs first."""
    R, t = bank.T_tmpl_from_obj[:, :3, :3], bank.T_tmpl_from_obj[:, :3, 3]
    cameras = -(R.transpose(0, 2, 1) @ t[..., None])[..., 0] - centre
    cosine = cameras / np.linalg.norm(cameras, axis=1, keepdims=True) @ view_directions(views, centre).T
    pairs, used = list[tuple[int, int]](), set[int]()
    for flat in np.argsort(-cosine, axis=None, kind="stable"):
        view_id, index = divmod(int(flat), len(views))
        if cosine[view_id, index] < np.cos(np.deg2rad(NEAR_DEG)):
            break
        if index not in used and view_id not in (pair[0] for pair in pairs):
            pairs.append((view_id, index))
            used.add(index)
    return pairs


def _facing_pose(view: ReferenceView, T_tmpl_from_obj: Array, centre: Array) -> Array:
    """Return the pose (4,4) of a camera at the place of a view's that looks at a point, upright as a template is."""
    camera = view.centre_m
    forward = (centre - camera) / np.linalg.norm(centre - camera)
    right = T_tmpl_from_obj[0, :3] - (T_tmpl_from_obj[0, :3] @ forward) * forward
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    return make_T(R, -R @ camera)


def _photo_template(view: ReferenceView, renderer: SoftwareRenderer, mesh: Mesh, K: Array, T: Array) -> Template | None:
    """Return the template of a photograph, None where it does not show the whole mesh."""
    uv = project_points(K, transform_points(T, mesh.vertices_m))
    low, high = np.floor(uv.min(axis=0)).astype(int), np.ceil(uv.max(axis=0)).astype(int)
    half = (int((high - low).max()) + 1) // 2
    col, row = ((low + high) // 2).tolist()
    box, own = (row - half, row + half, col - half, col + half), (0, 2 * half, 0, 2 * half)
    to_box = np.array([[1.0, 0, half - col], [0, 1, half - row], [0, 0, 1]])
    drawn = renderer.with_camera(to_box @ K, (2 * half, 2 * half)).render(T)
    mask = crop_mask(drawn.alpha == 255, own)
    # from the photograph to the crop: the cameras share their centre
    H = crop_affine(own) @ to_box @ K @ T[:3, :3] @ view.T_cam_from_obj[:3, :3].T @ np.linalg.inv(view.K)
    unhidden, silhouette = (
        _warp(np.where(part, 255, 0).astype(np.uint8), H) > 127 for part in (view.unhidden, view.silhouette)
    )
    shows_it = (mask & unhidden).sum() >= _LEAST_VISIBLE * mask.sum() and mask_iou(mask, silhouette) >= _LEAST_IOU
    if not mask.any() or not shows_it:
        return None
    photo, render = _warp(view.rgb.astype(np.float32) / 255, H), crop_colour(drawn.rgb, own)
    gain = np.clip(render[mask].mean(axis=0) / np.maximum(photo[mask].mean(axis=0), 1e-3), *_GAIN_RANGE)
    seen = np.where(silhouette[..., None], photo * gain, render)  # beyond its mask a photograph shows the background
    covered = crop_colour(np.repeat(drawn.alpha[..., None], 3, axis=2), own)
    return Template(
        crop_rgb=np.rint(np.clip(seen, 0, 1) * covered * 255).astype(np.uint8),
        mask=mask,
        depth_corner_m=np.asarray(drawn.depth_m[cell_corner_pixels(own)], np.float32),
        depth_centre_m=np.asarray(drawn.depth_m[cell_centre_pixels(own)], np.float32),
        A_crop_from_image=crop_affine(box),
    )


def _warp(image: Array, H: Array) -> Array:
    """Return the crop (224,224,...) of a photograph by a homography (3,3) of positions from the outer corner."""
    to_centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    scale = float(np.sqrt(abs(np.linalg.det(H[:2, :2] / H[2, 2]))))
    if scale < 0.8:  # several pixels of the photograph fall into one of the crop
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.4 / scale))
    return np.asarray(cv2.warpPerspective(image, np.linalg.inv(to_centre) @ H @ to_centre, (CROP_PX, CROP_PX)))


def _with_templates(bank: TemplateBank, placed: Sequence[_Placed]) -> TemplateBank:
    changed = {
        name: getattr(bank, name).copy()
        for name in ("crops_rgb", "masks", "depth_corner_m", "depth_centre_m", "A_crop_from_image", "T_tmpl_from_obj")
    }
    for one in placed:
        changed["crops_rgb"][one.view_id] = one.template.crop_rgb
        changed["masks"][one.view_id] = one.template.mask
        changed["depth_corner_m"][one.view_id] = one.template.depth_corner_m
        changed["depth_centre_m"][one.view_id] = round_to_micrometres(one.template.depth_centre_m)
        changed["A_crop_from_image"][one.view_id] = one.template.A_crop_from_image
        changed["T_tmpl_from_obj"][one.view_id] = one.T_tmpl_from_obj
    return replace(bank, **changed)
