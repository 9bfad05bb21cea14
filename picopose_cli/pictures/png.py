"""PNG files of RGB images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import Array


def write_png(path: Path, image_rgb: Array) -> None:
    """Write an image (h,w,3) u8 RGB whole or not at all; raises PicoPoseError when it cannot be written."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(image_rgb[..., ::-1]))
    if not done:
        raise RuntimeError("the picture could not be encoded")
    atomic_write_bytes(path, bytes(data))
