"""The example that the demo leaves: one image with mask and camera, and a script that estimates the pose in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, unwritable_error
from picopose_cli.base.types import Array

_SCRIPT = '''"""The pose of one object in one image, with the Python class of picopose."""

from pathlib import Path

import cv2
import numpy as np

from picopose_cli import PoseEstimator

here = Path(__file__).resolve().parent
estimator = PoseEstimator({weights})  # without a file: the small network that ships with picopose
obj_id = estimator.add_mesh(here / {mesh})
image_rgb = cv2.imread(str(here / "image.png"))[:, :, ::-1]
mask = cv2.imread(str(here / "mask.png"), cv2.IMREAD_GRAYSCALE) > 0
K = np.array({K})  # px
(pose,) = estimator.estimate(image_rgb, K, [(obj_id, mask)])
print(f"confidence {{pose.confidence:.2f}}")
print(pose.T_cam_from_obj)  # 4x4, metres: x_cam = T_cam_from_obj @ x_obj
'''


@dataclass(frozen=True)
class Example:
    """The script of an example, and the arguments of picopose that do the same."""

    arguments: list[str]
    script: Path


def write_example(
    folder: Path, *, image: Path, mask: Path, mesh: Path, K: Array, weights: Path | None = None
) -> Example:
    """Copy an image and a mask to a folder, with the camera and a script beside them.

    `K` (3,3) px. Raises PicoPoseError when the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(image, folder / "image.png")
        shutil.copyfile(mask, folder / "mask.png")
    except OSError as error:
        raise unwritable_error(folder, error) from error
    (fx, _, cx), (_, fy, cy) = K[:2].tolist()
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    atomic_write_bytes(folder / "camera.json", (json.dumps(camera) + "\n").encode())
    used = None if weights is None else str(weights.resolve())
    text = _SCRIPT.format(weights="" if used is None else repr(used), mesh=repr(relpath(mesh, folder)), K=K.tolist())
    atomic_write_bytes(folder / "estimate.py", text.encode())
    arguments = [
        "estimate",
        str(folder / "image.png"),
        "--mesh",
        str(mesh),
        "--mask",
        str(folder / "mask.png"),
    ]
    arguments += ["--camera", str(folder / "camera.json")] + ([] if weights is None else ["--weights", str(weights)])
    return Example(arguments, folder / "estimate.py")


def folder_size(folder: Path, pattern: str = "*") -> int:
    """Return the bytes of the files below a folder whose names match a pattern; raises PicoPoseError if unreadable."""
    try:
        return sum(path.stat().st_size for path in folder.rglob(pattern) if path.is_file())
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror})", where=folder) from error
