"""A plain folder of photographs: images/ (or the folder itself), masks/ or alpha channels, cameras.json, depth/.

cameras.json: {"photo_01.jpg": {"K": [9 numbers or 3 rows of 3], "T_cam_from_obj": [16 numbers or 4 rows of 4]}, ...};
translations in millimetres; `cam_model` in place of `K` for a fisheye, `depth_scale` (mm per unit) for depth maps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.cameras import CameraModel, parse_camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import finite_numbers
from picopose_cli.base.types import MM_PER_M, Array
from picopose_cli.bop.json_files import read_json_object
from picopose_cli.bop.layouts import IMAGE_EXTENSIONS
from picopose_cli.reconstruction.photo_files import PhotoFile, PhotoFolder, check_rigid

CAMERAS_FILE = "cameras.json"
_FIX = 'give each image {"K": [9 numbers], "T_cam_from_obj": [16 numbers]}, translations in millimetres'


def is_plain_folder(folder: Path) -> bool:
    """Return whether a folder has a cameras.json."""
    return (folder / CAMERAS_FILE).is_file()


def read_plain_folder(folder: Path, obj_id: int, masks: str) -> PhotoFolder:
    """Return the photographs that cameras.json names; `masks` is `files`, `alpha`, or `auto`: files if there are any.

    Raises PicoPoseError when cameras.json is damaged or there is no folder of masks that is asked for.
    """
    path = folder / CAMERAS_FILE
    images = folder / "images" if (folder / "images").is_dir() else folder
    mask_folder = folder / "masks"
    if masks == "files" and not mask_folder.is_dir():
        raise PicoPoseError("there is no folder of masks", where=mask_folder, fix="add it, or pass --masks alpha")
    use_files = masks == "files" or (masks == "auto" and mask_folder.is_dir())
    photos, problems = [], {}
    for name, entry in read_json_object(path).items():
        camera, T, depth_scale = _parse_entry(entry, name, path)
        mask = _same_stem(mask_folder, name) if use_files else None
        if Path(name).name != name or not (images / name).is_file():
            problems[name] = f"{images / name} does not exist"
        elif use_files and mask is None:
            problems[name] = f"there is no mask {Path(name).stem}.png in {mask_folder}"
        else:
            depth = _same_stem(folder / "depth", name)
            photos.append(PhotoFile(name, images / name, mask, None, camera, T, depth, depth_scale))
    return PhotoFolder(obj_id, tuple(photos), problems)


def _parse_entry(entry: Any, name: str, path: Path) -> tuple[CameraModel, Array, float]:
    """Return camera, T_cam_from_obj (4,4) in metres and depth_scale of an image's entry."""

    def broken(what: str) -> PicoPoseError:
        return PicoPoseError(f"image {name[:60]}: {what}", where=path, fix=_FIX)

    if not isinstance(entry, dict):
        raise broken("its entry is not an object")
    T = finite_numbers(_flat(entry.get("T_cam_from_obj")), 16)
    if T is None:
        raise broken("T_cam_from_obj is not 16 finite numbers")
    T_mm = T.reshape(4, 4).astype(np.float64)
    problem = check_rigid(T_mm)
    known = {key: entry[key] for key in ("cam_model", "depth_scale") if key in entry}
    K = {"cam_K": _flat(entry["K"])} if "K" in entry else {}
    camera = parse_camera(known | K)
    if problem or camera.model is None or camera.depth_problem:
        raise broken(str(problem or camera.problem or camera.depth_problem).replace("cam_K", "K"))
    T_mm[:3, 3] /= MM_PER_M
    return camera.model, T_mm, camera.depth_scale


def _flat(value: Any) -> Any:
    """Return rows of numbers as one list."""
    if isinstance(value, list) and value and all(isinstance(row, list) for row in value):
        return [number for row in value for number in row]
    return value


def _same_stem(folder: Path, name: str) -> Path | None:
    """Return the image of a folder that has the same name, in any format, or None."""
    stem = Path(name).stem
    candidates = (folder / f"{stem}{ext}" for ext in IMAGE_EXTENSIONS)
    return next((path for path in candidates if path.is_file()), None)
