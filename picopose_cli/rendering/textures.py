"""Texture files: found under the name that a mesh or material gives them, and decoded to 8 bits a channel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.texts import shorten
from picopose_cli.base.types import Array

_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # Pillow: broken or no image


def is_file(path: Path) -> bool:
    """Return whether a path is a file; a name that the system cannot use (too long, a zero byte) is not."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; see `is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def find_named_file(folder: Path, name: str) -> Path | None:
    """Return the file that a mesh in `folder` names, or None.

    Names written on Windows are understood: backslashes, a path of another machine (the file beside the mesh counts)
    and another case of letters.
    """
    unix = name.strip().strip('"').replace("\\", "/")
    base = unix.rpartition("/")[2]
    for candidate in (folder / name, folder / unix, folder / base):
        if base and is_file(candidate):
            return candidate
    same = [path for path in sorted(folder.iterdir()) if path.name.lower() == base.lower() and is_file(path)]
    return same[0] if same else None


def find_texture(mesh: Path, name: str) -> Path:
    """Return the texture file that a mesh or its material names; raises PicoPoseError when there is none."""
    found = find_named_file(mesh.parent, name)
    if found is None:
        raise PicoPoseError(
            f"the texture {shorten(name)!r} is missing", where=mesh, fix="put it beside the mesh, as the file names it"
        )
    return found


def unused_texture_error(mesh: Path) -> PicoPoseError:
    """Return the error of a mesh that names a texture but has neither texture coordinates nor other colours."""
    return PicoPoseError(
        "none of its faces uses the texture that the mesh names", where=mesh, fix="export texture coordinates as well"
    )


def read_texture(path: Path) -> Array:
    """Return a texture (h,w,3) u8; 16-bit and floating-point images are scaled to 8 bits.

    Raises PicoPoseError when the file is not an image that can be read.
    """
    try:
        with Image.open(path) as image:
            image.verify()  # the checksums of a PNG, which are not compared when it is decoded
        with Image.open(path) as image:
            image.load()
            return image_rgb(image)
    except _UNREADABLE as error:
        rgb = _read_deep_tiff(path) if isinstance(error, UnidentifiedImageError) else None
        if rgb is None:
            raise PicoPoseError("the texture cannot be read", where=path, fix="export it again") from error
        return rgb


def image_rgb(image: Image.Image) -> Array:
    """Return the colours (h,w,3) u8 of a decoded image of any mode."""
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_8_bits(np.asarray(image))[..., None], 3, axis=-1)
    return np.asarray(image.convert("RGB"))


def _read_deep_tiff(path: Path) -> Array | None:
    """Return the colours of a TIFF of 16 bits a channel, which Pillow does not know; None for any other file.

    Of other formats OpenCV reads damaged files too, which are to be refused.
    """
    data = np.fromfile(path, np.uint8)
    if data[:4].tobytes() not in (b"II*\0", b"MM\0*"):
        return None
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    return None if image is None else np.ascontiguousarray(_to_8_bits(np.asarray(image))[..., ::-1])


def _to_8_bits(values: Array) -> Array:
    """Return values (...) u8: 16-bit integers are divided by 257, floats in [0, 1] multiplied by 255."""
    if values.dtype.kind == "f":
        scaled = np.nan_to_num(values.astype(np.float64)) * (255.0 if np.nanmax(values, initial=0.0) <= 1 else 1.0)
    else:
        is_deep = values.dtype.itemsize > 1 and values.max(initial=0) > 255
        scaled = values.astype(np.float64) / (257.0 if is_deep else 1.0)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
