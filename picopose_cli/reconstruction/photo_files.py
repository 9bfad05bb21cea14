"""Where the photographs of an object are: a plain folder with cameras.json, BOP scenes, or its onboarding sequences."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import rotation_deviation
from picopose_cli.base.types import Array
from picopose_cli.bop.images import read_alpha, read_depth_m, read_image_rgb, read_mask
from picopose_cli.reconstruction.views import Photograph


@dataclass(frozen=True)
class PhotoFile:
    """The files of a photograph; `T_cam_from_obj` (4,4) metres.

    `silhouette` is the mask, None for the image's alpha channel; `visible` mask and depth map: None without one.
    """

    name: str
    image: Path
    silhouette: Path | None
    visible: Path | None
    camera: CameraModel
    T_cam_from_obj: Array
    depth: Path | None = None
    depth_scale: float = 1.0


@dataclass(frozen=True)
class PhotoFolder:
    """The photographs of an object and those that cannot be used, each name with the reason."""

    obj_id: int
    photos: tuple[PhotoFile, ...]
    problems: dict[str, str]

    def sha256(self) -> str:
        """Return the SHA-256 of the images, masks and poses; raises PicoPoseError if a file is unreadable."""
        digest = hashlib.sha256()
        for photo in self.photos:
            digest.update(np.round(photo.T_cam_from_obj, 9).tobytes() + repr(photo.camera).encode())
            for path in (photo.image, photo.silhouette, photo.visible):
                try:
                    digest.update(b"" if path is None else path.read_bytes())
                except OSError as error:
                    raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path) from error
        return digest.hexdigest()


def load_photograph(file: PhotoFile, *, use_depth: bool) -> Photograph:
    """Read the files of a photograph; raises PicoPoseError when one cannot be read or has another size."""
    image = read_image_rgb(file.image)
    size_hw = (image.shape[0], image.shape[1])
    silhouette = read_alpha(file.image) if file.silhouette is None else read_mask(file.silhouette, size_hw)
    if not silhouette.any():
        raise PicoPoseError("the mask is empty", where=file.silhouette or file.image, fix="leave the image out")
    visible = silhouette if file.visible is None else read_mask(file.visible, size_hw)
    depth_m = None
    if use_depth and file.depth is not None and isinstance(file.camera, Pinhole):
        depth_m = read_depth_m(file.depth, file.depth_scale)
        if depth_m.shape != size_hw:
            what = f"the depth map is {depth_m.shape[1]}x{depth_m.shape[0]} px, its image {size_hw[1]}x{size_hw[0]}"
            raise PicoPoseError(what, where=file.depth, fix="register the depth to the image")
    return Photograph(file.name, image, silhouette, visible, file.camera, file.T_cam_from_obj, depth_m)


def check_rigid(T: Array) -> str | None:
    """Return what is wrong with a pose (4,4), None where it is a rigid transform."""
    R = T[:3, :3]
    if not np.isfinite(T).all() or rotation_deviation(R) > 1e-2 or np.linalg.det(R) < 0:
        return "T_cam_from_obj is not a rigid transform"
    return "T_cam_from_obj has a last row other than 0 0 0 1" if not np.allclose(T[3], [0, 0, 0, 1]) else None
