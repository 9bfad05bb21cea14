"""Cameras of single images: four numbers, or one of the files in which people keep a camera matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.cameras import parse_camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import finite_number, finite_numbers
from picopose_cli.base.types import Array
from picopose_cli.bop.json_files import read_json_object

_FORMS = "use fx,fy,cx,cy, or a file: JSON with fx, fy, cx, cy or cam_K, BOP's scene_camera.json, or 4 or 9 numbers"
_MOST_BYTES = 10_000
_NAMES = ("fx", "fy", "cx", "cy")


def read_K(text: str, image: Path) -> Array:
    """Return the matrix K (3,3) f64, px, of an image from `fx,fy,cx,cy` or a file.

    Of a scene_camera.json the entry whose id is the image's name is taken. Raises PicoPoseError when there is no such
    file or entry, or it is not a pinhole camera.
    """
    numbers = _numbers(text)
    if numbers is not None:
        return _matrix(numbers, text)
    path = Path(text)
    if not path.is_file():
        raise PicoPoseError(f"--camera {text!r} is neither four numbers nor a file", fix=_FORMS)
    if path.suffix == ".json":
        return _from_json(read_json_object(path), path, image)
    return _matrix(_read_numbers(path), path)


def read_depth_scale(text: str, image: Path) -> float:
    """Return the depth_scale of the camera that `read_K` takes: millimetres of one unit, 1 where there is none.

    Raises PicoPoseError where it is not a positive number.
    """
    path = Path(text)
    if _numbers(text) is not None or path.suffix != ".json":
        return 1.0
    content = read_json_object(path)
    is_one = any(name in content for name in ("cam_K", "cam_model", *_NAMES))
    entry = content if is_one else _entry_of(content, path, image)
    scale = finite_number(entry.get("depth_scale", 1.0)) if isinstance(entry, dict) else None
    if scale is None or scale <= 0:
        raise PicoPoseError("depth_scale is not a positive number", where=path, fix="correct it, or pass --depth-scale")
    return scale


def _numbers(text: str) -> list[float] | None:
    """Return the numbers of a text, None when it is something else."""
    try:
        return [float(part) for part in text.replace(",", " ").replace(";", " ").split()]
    except ValueError:
        return None


def _read_numbers(path: Path) -> list[float]:
    try:
        text = path.read_bytes()[:_MOST_BYTES].decode("utf-8", "replace")
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix=_FORMS) from error
    numbers = _numbers(text)
    if numbers is None:
        raise PicoPoseError("is not a list of numbers", where=path, fix=_FORMS)
    return numbers


def _from_json(content: Mapping[str, Any], path: Path, image: Path) -> Array:
    if all(name in content for name in _NAMES):
        numbers = finite_numbers([content[name] for name in _NAMES], 4)
        return _matrix([] if numbers is None else numbers.tolist(), path)
    is_one = "cam_K" in content or "cam_model" in content
    camera = parse_camera(content if is_one else _entry_of(content, path, image))
    if camera.K is None:
        raise PicoPoseError(camera.problem or "is not a pinhole camera", where=path, fix=_FORMS)
    return camera.K


def _entry_of(content: Mapping[str, Any], path: Path, image: Path) -> Any:
    """Return the entry of a scene_camera.json whose id is the image's name."""
    number = image.stem.lstrip("0") or "0"
    by_number = {key.lstrip("0") or "0": value for key, value in content.items()}
    if number not in by_number:
        what = f"has no camera of image {image.stem!r}, nor fx, fy, cx, cy or cam_K"
        raise PicoPoseError(what, where=path, fix=_FORMS)
    return by_number[number]


def _matrix(numbers: list[float], where: str | Path) -> Array:
    if len(numbers) == 4:
        fx, fy, cx, cy = numbers
        numbers = [fx, 0, cx, 0, fy, cy, 0, 0, 1]
    camera = parse_camera({"cam_K": numbers})
    if camera.K is None:
        what = f"has {len(numbers)} numbers, needs fx, fy, cx, cy or the nine of a pinhole matrix"
        what = what if len(numbers) != 9 else f"is no camera: {camera.problem}"
        raise PicoPoseError(what, where=where, fix=_FORMS)
    return np.asarray(camera.K)
