"""The files of MegaPose's shards: reading a tar shard, and decoding one object of an image."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Container, Iterator
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.grid import cell_centre_pixels
from picopose_cli.base.json_numbers import finite_numbers
from picopose_cli.base.types import MM_PER_M, Array, Rle
from picopose_cli.bop.rle import decode_rle
from picopose_cli.synthesis.samples import CropView
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask, square_box


def read_shard(path: Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {part: file contents}) of a tar shard in its order; the parts of a key are consecutive.

    With `wanted` only these parts are read; the others are skipped in the file and their contents are empty.

    Raises PicoPoseError when the file is missing, truncated or not a tar archive.
    """
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(path, "r|" if wanted is None else "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name, _, part = Path(member.name).name.partition(".")
                if name != key and parts:
                    yield key, parts
                    parts = {}
                key, parts[part] = name, b""
                if wanted is None or part in wanted:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    parts[part] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PicoPoseError(f"the shard cannot be read ({error})", where=path, fix="download it again") from error
    if parts:
        yield key, parts


def decode_observation(parts: dict[str, bytes], gt_id: int) -> CropView:
    """Return the crop around one instance of an image; raises PicoPoseError when a part of it is invalid."""
    try:
        camera, truth = json.loads(parts["camera.json"]), json.loads(parts["gt.json"])[gt_id]
        entry = json.loads(parts["mask_visib.json"])[str(gt_id)]
        K = finite_numbers(camera["cam_K"], 9)
        R, t_mm = finite_numbers(truth["cam_R_m2c"], 9), finite_numbers(truth["cam_t_m2c"], 3)
        counts = entry["counts"]
        height, width = entry["size"]
        mm_per_unit = float(camera.get("depth_scale", 1.0))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise PicoPoseError(f"the annotations are broken ({type(error).__name__})") from error
    if K is None or R is None or t_mm is None or not np.isfinite(mm_per_unit):
        raise PicoPoseError("the camera or the pose is not a matrix of finite numbers")
    if not isinstance(counts, (str, list)):
        raise PicoPoseError("the mask is not run lengths")
    rgb = _decode_image(parts["rgb.jpg"], cv2.IMREAD_COLOR)
    depth = _decode_image(parts["depth.png"], cv2.IMREAD_UNCHANGED)
    encoded = counts.encode("ascii", "replace") if isinstance(counts, str) else tuple(counts)
    mask = decode_rle(Rle((height, width), encoded))
    if depth.ndim != 2 or not rgb.shape[:2] == depth.shape == mask.shape:
        raise PicoPoseError("image, depth and mask differ in size")
    T_cam_from_obj = make_T(R.reshape(3, 3), t_mm / MM_PER_M)
    depth_m = depth.astype(np.float32) * np.float32(mm_per_unit / MM_PER_M)
    return crop_observation(rgb[..., ::-1], depth_m, mask, K.reshape(3, 3), T_cam_from_obj)


def crop_observation(rgb: Array, depth_m: Array, mask: Array, K: Array, T_cam_from_obj: Array) -> CropView:
    """Return the crop around the visible mask (H,W) bool of an object.

    `rgb` (H,W,3) u8; `depth_m` (H,W) f32; `K` (3,3) px; `T_cam_from_obj` (4,4) metres.
    """
    box = square_box(mask)
    A = crop_affine(box).astype(np.float64)
    at_centres = cell_centre_pixels(box)
    return CropView(
        crop_rgb=np.rint(crop_colour(rgb, box) * 255).astype(np.uint8),
        mask=crop_mask(mask, box),
        depth_centre_m=np.where(mask[at_centres], depth_m[at_centres], 0).astype(np.float32),
        K=K,
        A_crop_from_image=A,
        T_cam_from_obj=T_cam_from_obj,
    )


def _decode_image(data: bytes, flags: int) -> Array:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise PicoPoseError(f"an image cannot be decoded ({error.err})") from error
    if image is None:
        raise PicoPoseError("an image cannot be decoded")
    return np.asarray(image)
