"""Banks from ready-made template images, laid out as the PicoPose authors publish theirs.

DIR/000001/000000.png          view 0 of object 1: 640 x 480, RGB and alpha
DIR/000001/000000_depth.png    its depth in whole millimetres, 16 bit
DIR/object_poses/000001.npy    T_cam_from_obj (V,4,4), millimetres, OpenCV axes; any number of views
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import rotation_deviation
from picopose_cli.base.grid import lift_cell_corners
from picopose_cli.base.types import MM_PER_M, Array, Provenance, RenderedView, TemplateBank
from picopose_cli.templates.bank import MAX_VIEWS
from picopose_cli.templates.build import Template, join_templates, make_template, versions_text
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, template_camera

IMAGES_KIND = "images"
"""Renderer and mesh unit of a bank built from images."""
_POSES_FOLDER = "object_poses"


def image_object_ids(folder: Path) -> list[int]:
    """Return the sorted ids of the objects with a folder of images or a pose file.

    Raises PicoPoseError when there is none.
    """
    if not folder.is_dir():
        raise PicoPoseError("the folder of template images does not exist", where=folder, fix="check --from-images")
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    names |= {path.stem for path in (folder / _POSES_FOLDER).glob("*.npy")}
    found = sorted(int(name) for name in names if name.isdecimal() and len(name) == 6)
    if not found:
        raise PicoPoseError("there are no template images", where=folder, fix="see the README for the layout")
    return found


def images_sha256(folder: Path, obj_id: int) -> str:
    """Return the SHA-256 of everything that the bank of an object is built from; raises PicoPoseError if unreadable."""
    poses = _poses_path(folder, obj_id)
    digest = hashlib.sha256()
    for path in (poses, *sorted(_images_folder(folder, obj_id).glob("*.png"))):
        try:
            digest.update(path.name.encode() + path.read_bytes())
        except OSError as error:
            raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path) from error
    return digest.hexdigest()


def read_image_bank(folder: Path, obj_id: int) -> TemplateBank:
    """Build the bank of an object from its template images, made with the released template camera.

    Raises PicoPoseError when poses, views or depths are missing or damaged, or an image has another size or no alpha.
    """
    poses, K = _read_poses(_poses_path(folder, obj_id)), template_camera()
    views = _images_folder(folder, obj_id)
    _check_count(views, len(poses))
    templates, seen = [], []
    for view_id, pose in enumerate(poses):
        view = _read_view(views / f"{view_id:06d}.png", views / f"{view_id:06d}_depth.png")
        try:
            templates.append(make_template(view))
        except PicoPoseError as error:
            where = views / f"{view_id:06d}.png"
            raise PicoPoseError("the view shows nothing", where=where, fix="render it again") from error
        seen.append(_visible_points(templates[-1], K, pose))
    diameter_m = float(np.linalg.norm(np.ptp(np.concatenate(seen), axis=0)))
    provenance = Provenance(
        views.name, images_sha256(folder, obj_id), IMAGES_KIND, IMAGES_KIND, str(folder), versions_text()
    )
    return join_templates(obj_id, templates, K, poses, diameter_m, provenance)


def _visible_points(template: Template, K: Array, T_tmpl_from_obj: Array) -> Array:
    """Return the object-frame points (N,3) of the cells with depth, metres."""
    xyz_obj_m = lift_cell_corners(template.depth_corner_m, K, template.A_crop_from_image, T_tmpl_from_obj)
    points: Array = xyz_obj_m[template.depth_corner_m > 0]
    return points


def _images_folder(folder: Path, obj_id: int) -> Path:
    return folder / f"{obj_id:06d}"


def _poses_path(folder: Path, obj_id: int) -> Path:
    return folder / _POSES_FOLDER / f"{obj_id:06d}.npy"


def _read_poses(path: Path) -> Array:
    """Return T_tmpl_from_obj (V,4,4) f64 in metres."""
    fix = "give T_cam_from_obj (V,4,4) in millimetres"
    try:
        poses = np.asarray(np.load(path, allow_pickle=False), np.float64)
    except (OSError, ValueError, EOFError) as error:
        raise PicoPoseError(f"the poses cannot be read ({error})", where=path, fix=fix) from error
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise PicoPoseError(f"the poses have shape {poses.shape}", where=path, fix=fix)
    if len(poses) > MAX_VIEWS:
        raise PicoPoseError(f"there are {len(poses)} views", where=path, fix=f"give at most {MAX_VIEWS}")
    R = poses[:, :3, :3]
    rigid = np.isfinite(poses).all() and (poses[:, 3] == [0, 0, 0, 1]).all() and rotation_deviation(R).max() < 1e-3
    if not rigid or (np.linalg.det(R) < 0).any() or (poses[:, 2, 3] <= 0).any():
        raise PicoPoseError(
            "a pose is not a rigid transform with the object in front of the camera", where=path, fix=fix
        )
    poses[:, :3, 3] /= MM_PER_M
    return poses


def _check_count(views: Path, count: int) -> None:
    found = [path for path in views.glob("*.png") if not path.stem.endswith("_depth")]
    if len(found) > count:
        raise PicoPoseError(
            f"there are {len(found)} images but {count} poses", where=views, fix="give one pose for each image"
        )


def _read_view(colour_path: Path, depth_path: Path) -> RenderedView:
    rgba, depth_mm = _read_png(colour_path), _read_png(depth_path)
    height, width = TEMPLATE_SIZE_HW
    if rgba.shape != (height, width, 4) or rgba.dtype != np.uint8:
        raise PicoPoseError(f"is {_describe(rgba)}, not {width}x{height} RGB and alpha", where=colour_path)
    if depth_mm.shape != (height, width) or depth_mm.dtype.kind not in "ui":
        raise PicoPoseError(f"is {_describe(depth_mm)}, not {width}x{height} of 16-bit depth", where=depth_path)
    if rgba[..., 3].any() and not depth_mm.any():
        raise PicoPoseError("has no depth, but its image shows the object", where=depth_path)
    return RenderedView(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3], (depth_mm / MM_PER_M).astype(np.float32))


def _read_png(path: Path) -> Array:
    if not path.is_file():
        raise PicoPoseError("the template image is missing", where=path, fix="give an image and a depth for each pose")
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow: broken or no PNG
        raise PicoPoseError(f"cannot be read ({error})", where=path, fix="copy or render it again") from error


def _describe(image: Array) -> str:
    channels = 1 if image.ndim == 2 else image.shape[2]
    return f"{image.shape[1]}x{image.shape[0]} with {channels} channels of {image.dtype}"
