"""Photographs of an object in BOP's scenes: one scene folder, or an onboarding's obj_000001_up and obj_000001_down.

Poses of both sequences are in the object's frame, so they are simply joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import GroundTruth
from picopose_cli.bop.datasets import Dataset, read_scene_cameras
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.layouts import find_image_layouts, list_folders
from picopose_cli.reconstruction.photo_files import PhotoFile, PhotoFolder

_SEQUENCE = re.compile(r"obj_(\d{6})(?:_(up|down|static))?")


def is_scene(folder: Path) -> bool:
    """Return whether a folder is a scene with cameras and poses."""
    return any(folder.glob("scene_camera*.json")) and any(folder.glob("scene_gt*.json"))


def sequences_of(folder: Path, obj_id: int | None) -> tuple[int | None, list[Path]]:
    """Return the object and its scene folders: the folder itself, or the onboarding sequences in it.

    Raises PicoPoseError when it has sequences of several objects and none is chosen, or none of the chosen one.
    """
    if is_scene(folder):
        named = _SEQUENCE.fullmatch(folder.resolve().name)
        return (int(named[1]) if named and obj_id is None else obj_id), [folder]
    found: dict[int, list[Path]] = {}
    for name in list_folders(folder):
        named = _SEQUENCE.fullmatch(name)
        if named and is_scene(folder / name):
            found.setdefault(int(named[1]), []).append(folder / name)
    if not found:
        return obj_id, []
    ids = ", ".join(map(str, sorted(found)))
    if obj_id is None and len(found) > 1:
        raise PicoPoseError(f"has sequences of objects {ids}", where=folder, fix="choose one with --object-id")
    chosen = next(iter(found)) if obj_id is None else obj_id
    if chosen not in found:
        raise PicoPoseError(f"has no sequence of object {chosen} (found: {ids})", where=folder, fix="check --object-id")
    return chosen, found[chosen]


def read_scenes(scenes: Sequence[Path], obj_id: int | None) -> PhotoFolder:
    """Return the photographs of an object in scenes; None: the only object that they show.

    Raises PicoPoseError when an annotation is damaged, or there are several objects and none is chosen.
    """
    photos: list[PhotoFile] = []
    problems: dict[str, str] = {}
    for scene in scenes:
        dataset = _as_dataset(scene)
        poses = read_ground_truth(dataset, 0)
        obj_id = _only_object(poses.values(), scene) if obj_id is None else obj_id
        cameras = read_scene_cameras(dataset, 0)
        for im_id, instances in sorted(poses.items()):
            name = f"{scene.name}/{im_id:06d}"
            mine = [one for one in instances if one.obj_id == obj_id]
            camera = cameras.get(im_id)
            if not mine:
                continue
            if len(mine) > 1:
                problems[name] = f"shows object {obj_id} {len(mine)} times"
            elif camera is None or camera.model is None:
                problems[name] = "has no camera" if camera is None else str(camera.problem)
            else:
                file = _photo_file(dataset, mine[0])
                if isinstance(file, str):
                    problems[name] = file
                else:
                    image, silhouette, visible, depth = file
                    T, scale = mine[0].T_cam_from_obj, camera.depth_scale
                    photos.append(PhotoFile(name, image, silhouette, visible, camera.model, T, depth, scale))
    return PhotoFolder(1 if obj_id is None else obj_id, tuple(photos), problems)


def _photo_file(dataset: Dataset, instance: GroundTruth) -> tuple[Path, Path, Path | None, Path | None] | str:
    """Return image, silhouette, visible mask and depth map of an instance, or what is missing.

    mask/ has whole outlines, mask_visib/ what nothing hides; with one of them it is both.
    """
    image = dataset.image_path(0, instance.im_id)
    if not image.is_file():
        return f"{image} does not exist"
    whole, visible = (_mask_path(dataset, folder, instance) for folder in ("mask", "mask_visib"))
    silhouette = whole or visible
    if silhouette is None:
        return f"has no mask {instance.im_id:06d}_{instance.gt_id:06d}.png in mask_visib or mask"
    depth = dataset.depth_path(0, instance.im_id)
    return image, silhouette, visible, (depth if depth.is_file() else None)


def _mask_path(dataset: Dataset, folder: str, instance: GroundTruth) -> Path | None:
    suffix = dataset.layout_of(0).suffix
    path = dataset.scene_dir(0) / f"{folder}{suffix}" / f"{instance.im_id:06d}_{instance.gt_id:06d}.png"
    return path if path.is_file() else None


def _only_object(instances: Iterable[Sequence[GroundTruth]], scene: Path) -> int:
    ids = sorted({one.obj_id for of_image in instances for one in of_image})
    if len(ids) != 1:
        what = f"shows objects {', '.join(map(str, ids))}" if ids else "shows no object"
        raise PicoPoseError(what, where=scene, fix="choose one with --object-id")
    return int(ids[0])


def _as_dataset(scene: Path) -> Dataset:
    """Return a data set of the scene alone."""
    layout, layouts = find_image_layouts({0: scene}, ())
    return Dataset(
        "", scene.parent, "", None, scene.parent, scene.parent, {0: scene}, layout, layouts, True, False, False, 0.0
    )
