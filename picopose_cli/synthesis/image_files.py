"""Images encoded for files, and JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import Array


def encode_image(image: Array, suffix: str = ".png", parameters: Sequence[int] = ()) -> bytes:
    """Return the file of an image (h,w) or (h,w,3) in BGR, in the format of `suffix`."""
    done, data = cv2.imencode(suffix, np.ascontiguousarray(image), parameters)
    if not done:
        raise RuntimeError("the image could not be encoded")
    return bytes(data)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file; raises PicoPoseError when the folder cannot be written."""
    atomic_write_bytes(path, json.dumps(content).encode())
