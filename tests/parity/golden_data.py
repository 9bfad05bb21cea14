"""Names for the reference data, and the templates' inputs, of which it holds the raw images only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from picopose_cli.network.vit import FeatureMaps

Golden = dict[str, Any]
Layout = dict[str, tuple[list[int], str]]

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class Looked:
    """What the network makes of some images: four `maps` (B,C,16,16), `cells` (B,256,C), `masks` (B,16,16)."""

    maps: FeatureMaps
    cells: Tensor
    masks: Tensor


def template_inputs(golden: Golden, object_index: int) -> Any:
    """Prepare the templates (8,3,224,224) of an object plainly; the first one's result is recorded."""
    images, boxes = golden[f"template_rgba_{object_index}"], golden[f"template_box_yyxx_{object_index}"]
    inputs = []
    for rgba, (top, bottom, left, right) in zip(images, boxes, strict=True):
        bgr = np.ascontiguousarray(rgba[top:bottom, left:right, 2::-1]).astype(np.float32) / 255
        crop = cv2.resize(bgr, (224, 224), interpolation=cv2.INTER_LINEAR)
        inputs.append(((crop - CLIP_MEAN) / CLIP_STD).transpose(2, 0, 1))
    return np.stack(inputs).astype(np.float32)
