"""Recorded inputs and outputs of the released network, by name, and the inputs prepared from the recorded images.

`data/network.npz` holds one detection and its three best templates; a larger recording has the same arrays with more
detections, objects and views.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from picopose_cli.network.config import VIT_L
from picopose_cli.network.matching import masks_on_grid, unit_cells
from picopose_cli.network.picopose import PicoPose
from picopose_cli.network.vit import FeatureMaps

DATA_DIR = Path(__file__).parent / "data"
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])

Recording = dict[str, Any]
Layout = dict[str, tuple[list[int], str]]
"""Shape and type of each tensor of the released checkpoint, in the file's order."""


@dataclass(frozen=True)
class Features:
    """Network features of B images: four `maps` (B,C,16,16), unit `cells` (B,256,C), `masks` (B,16,16)."""

    maps: FeatureMaps
    cells: Tensor
    masks: Tensor


def read_recording(path: Path) -> Recording:
    """Return the arrays of a recording."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def read_layout(path: Path) -> Layout:
    """Return the names, shapes and types of the released tensors."""
    return {name: (shape, dtype) for name, (shape, dtype) in json.loads(path.read_text()).items()}


def compute_features(network: PicoPose, inputs: np.ndarray, masks: np.ndarray) -> Features:
    """Return the features of `inputs` (B,3,224,224) with `masks` (B,224,224)."""
    with torch.inference_mode():
        maps = network.extract(torch.from_numpy(inputs))
        return Features(maps, unit_cells(maps[-1]), masks_on_grid(torch.from_numpy(masks), VIT_L.grid))


def query_inputs(recording: Recording) -> np.ndarray:
    """Return the network inputs (B,3,224,224) of the detections."""
    image = recording["query_image_rgb"]
    return _prepare([(image, box) for box in recording["query_box_yyxx"]])


def template_inputs(recording: Recording, object_index: int) -> np.ndarray:
    """Return the network inputs (V,3,224,224) of an object's templates."""
    images, boxes = recording[f"template_rgba_{object_index}"], recording[f"template_box_yyxx_{object_index}"]
    return _prepare(list(zip(images, boxes, strict=True)))


def _prepare(images_and_boxes: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    inputs = []
    for image, (top, bottom, left, right) in images_and_boxes:
        bgr = np.ascontiguousarray(image[top:bottom, left:right, 2::-1]).astype(np.float32) / 255
        crop = cv2.resize(bgr, (224, 224), interpolation=cv2.INTER_LINEAR)
        inputs.append(((crop - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1))
    return np.stack(inputs).astype(np.float32)
