"""The pictures of a report: each image once as a small JPEG, and the outline of every pose as an SVG path over it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.cameras import Camera, CameraModel
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Array, Mesh
from picopose_cli.bop.datasets import Dataset, read_scene_cameras
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.pictures.judged_results import JudgedResults
from picopose_cli.pictures.outlines import object_outlines
from picopose_cli.scoring.pose_errors import mssd

ImageKey = tuple[int, int]

LONGEST_SIDES_PX = ((100, 960), (400, 640), (1500, 480))
"""Up to so many images the longest side of each; with more it is SMALLEST_SIDE_PX."""
SMALLEST_SIDE_PX = 320
_JPEG_QUALITY = 78
_DETAIL = 2
"""Units of an outline along one pixel of the small image."""
NO_INSTANCE = -1.0
"""Error of an estimate in whose image there is no instance of its object."""


@dataclass(frozen=True)
class _View:
    """What outlines are drawn with: the camera, the image's (H,W) px and the units of an outline along one of them."""

    camera: CameraModel
    size_hw: tuple[int, int]
    scale: float


@dataclass
class Gallery:
    """What a report shows of images, as JSON values; see `report.html` for the order of an estimate's entries."""

    images: list[dict[str, Any]] = field(default_factory=list)
    estimates: list[list[Any]] = field(default_factory=list)
    truth: list[str] = field(default_factory=list)
    pairs: list[list[Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def make_gallery(files: Sequence[JudgedResults], on_progress: Callable[[int], None] = lambda _: None) -> Gallery:
    """Return the images and outlines of the estimates of result files of one data set.

    An image that cannot be read becomes a problem, and its estimates are listed without a picture. With two files their
    estimates of the same object are paired, those that differ most first. `on_progress(n)` counts images.
    """
    gallery = Gallery(problems=sorted({text for judged in files for text in judged.problems}))
    by_image: dict[ImageKey, list[tuple[int, int]]] = {}
    for index, judged in enumerate(files):
        for row, key in enumerate(zip(judged.table.scene_id.tolist(), judged.table.im_id.tolist(), strict=True)):
            by_image.setdefault(key, []).append((index, row))
    longest = longest_side_px(len(by_image))
    cameras = _read_cameras(files[0].dataset, {scene_id for scene_id, _ in by_image}, gallery.problems)
    places: dict[tuple[int, int], int] = {}
    for key in sorted(by_image):
        _add_image(gallery, files, key, cameras.get(key), by_image[key], longest, places)
        on_progress(1)
    if len(files) == 2:
        gallery.pairs = _pairs(files[0], files[1], places)
    return gallery


def longest_side_px(count: int) -> int:
    """Return the longest side of the small images of a report with so many."""
    return next((side for most, side in LONGEST_SIDES_PX if count <= most), SMALLEST_SIDE_PX)


def _read_cameras(dataset: Dataset, scene_ids: set[int], problems: list[str]) -> dict[ImageKey, Camera]:
    cameras: dict[ImageKey, Camera] = {}
    for scene_id in sorted(scene_ids):
        try:
            cameras |= {(scene_id, im_id): one for im_id, one in read_scene_cameras(dataset, scene_id).items()}
        except PicoPoseError as error:
            problems.append(f"scene {scene_id} has no outlines: {error}")
    return cameras


def _add_image(
    gallery: Gallery,
    files: Sequence[JudgedResults],
    key: ImageKey,
    camera: Camera | None,
    rows: Sequence[tuple[int, int]],
    longest: int,
    places: dict[tuple[int, int], int],
) -> None:
    """Add an image and its (file, row) estimates; `places` gets the index of each."""
    image: dict[str, Any] = {"scene": key[0], "im": key[1], "w": 1, "h": 1}
    view = None
    try:
        image_rgb = read_image_rgb(files[0].dataset.image_path(*key))
        small, scale = _shrink(image_rgb, longest)
        image |= {"w": small.shape[1] * _DETAIL, "h": small.shape[0] * _DETAIL, "jpg": _jpeg(small)}
        if camera is None or camera.model is None:
            gallery.problems.append(f"scene {key[0]}, image {key[1]} has no outlines: it has no camera")
        else:
            view = _View(camera.model, (image_rgb.shape[0], image_rgb.shape[1]), scale * _DETAIL)
    except PicoPoseError as error:
        gallery.problems.append(f"scene {key[0]}, image {key[1]}: {error}")
    truth: dict[int, int] = {}
    for index, row in rows:
        places[index, row] = len(gallery.estimates)
        gallery.estimates.append(_entry(gallery, files[index], index, row, view, truth))
    gallery.images.append(image)


def _entry(
    gallery: Gallery,
    judged: JudgedResults,
    index: int,
    row: int,
    view: _View | None,
    truth: dict[int, int],
) -> list[Any]:
    """Return [file, image, object, score, error, outline, index of the truth's outline or -1] of an estimate."""
    table, obj_id = judged.table, int(judged.table.obj_id[row])
    mesh, nearest = judged.meshes.get(obj_id), judged.nearest[row]
    line, truth_index = "", -1
    if mesh is not None and view is not None:
        line = _outline(mesh, view, table.T_cam_from_obj[row])
        if nearest is not None:
            if nearest.gt_id not in truth:
                truth[nearest.gt_id] = len(gallery.truth)
                gallery.truth.append(_outline(mesh, view, nearest.T_cam_from_obj))
            truth_index = truth[nearest.gt_id]
    error = float(judged.error[row])
    shown = None if np.isnan(error) else NO_INSTANCE if np.isinf(error) else round(error, 5)
    score = float(np.nan_to_num(table.score[row], neginf=0.0, posinf=0.0))
    return [index, len(gallery.images), obj_id, round(score, 5), shown, line, truth_index]


def _outline(mesh: Mesh, view: _View, T_cam_from_obj: Array) -> str:
    """Return the outline of a pose as the d of an SVG path, empty where the object is not in view."""
    lines = object_outlines(mesh, view.camera, T_cam_from_obj, view.size_hw, view.scale)
    rounded = (np.rint(line).astype(int).tolist() for line in lines)
    return "".join("M" + "L".join(f"{x} {y}" for x, y in line) + "Z" for line in rounded)


def _shrink(image_rgb: Array, longest: int) -> tuple[Array, float]:
    """Return an image of at most `longest` px and its scale."""
    height, width = image_rgb.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size_wh = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(image_rgb, size_wh, interpolation=cv2.INTER_AREA), scale


def _jpeg(image_rgb: Array) -> str:
    done, data = cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise RuntimeError("the picture could not be encoded")
    return base64.b64encode(data.tobytes()).decode()


def _pairs(a: JudgedResults, b: JudgedResults, places: Mapping[tuple[int, int], int]) -> list[list[Any]]:
    """Return [place in a, place in b, difference] of estimates of the same instance, largest difference first.

    The difference is the MSSD of one pose to the other over the diameter. Estimates are of the same instance when they
    are nearest to it, or without ground truth when they have the same rank among those of their object and image.
    """
    rows_a, rows_b = _by_instance(a), _by_instance(b)
    pairs = []
    for key in rows_a.keys() & rows_b.keys():
        obj_id = key[2]
        if obj_id not in a.meshes or obj_id not in a.infos:
            continue
        T_a, T_b = a.table.T_cam_from_obj[rows_a[key]], b.table.T_cam_from_obj[rows_b[key]]
        info = a.infos[obj_id]
        error_m = mssd(T_a[None], T_b[None], a.meshes[obj_id].vertices_m, symmetry_transforms(info)).min()
        difference = round(float(error_m) / info.diameter_m, 5)
        pairs.append([places[0, rows_a[key]], places[1, rows_b[key]], difference])
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0]))


def _by_instance(judged: JudgedResults) -> dict[tuple[int, int, int, int], int]:
    """Return the row of the best score of each (scene, image, object, instance or rank)."""
    table = judged.table
    found: dict[tuple[int, int, int, int], int] = {}
    ranks: dict[tuple[int, int, int], int] = {}
    for row in np.argsort(-table.score, kind="stable").tolist():
        key = (int(table.scene_id[row]), int(table.im_id[row]), int(table.obj_id[row]))
        nearest = judged.nearest[row]
        if nearest is None:
            ranks[key] = ranks.get(key, -1) + 1
        found.setdefault((*key, -1 - ranks[key] if nearest is None else nearest.gt_id), row)
    return found
