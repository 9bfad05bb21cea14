"""What every training source yields: one observation of an object and one template of it, with exact geometry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array


@dataclass(frozen=True)
class CropView:
    """One side of a pair: a square crop and where its camera stood.

    `crop_rgb` (224,224,3) u8; `mask` (224,224) bool, the object's visible part; `depth_centre_m` (64,64) f32 depth of
    the object at the cells' centres, 0 where it is not seen; `K` (3,3), `A_crop_from_image` (3,3); `T_cam_from_obj`
    (4,4) metres. All f64 but where said.
    """

    crop_rgb: Array
    mask: Array
    depth_centre_m: Array
    K: Array
    A_crop_from_image: Array
    T_cam_from_obj: Array

    def __post_init__(self) -> None:
        shapes = {
            "crop_rgb": (CROP_PX, CROP_PX, 3),
            "mask": (CROP_PX, CROP_PX),
            "depth_centre_m": (GRID_CELLS, GRID_CELLS),
            "K": (3, 3),
            "A_crop_from_image": (3, 3),
            "T_cam_from_obj": (4, 4),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, needs {shape}")


@dataclass(frozen=True)
class Sample:
    """A training pair: `observation` on its background, `template` on black, of the same object.

    `object_key` names the object, `diameter_m` is the diagonal of its axis-aligned bounding box.
    """

    object_key: str
    diameter_m: float
    observation: CropView
    template: CropView


class SampleSource(Protocol):
    """An endless, seeded stream of samples, cut into shares for workers.

    `samples(worker, workers, start)` yields the samples of one of `workers` shares from the share's sample number
    `start` on; the same arguments give the same samples, so that a run resumes exactly.
    """

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        """Yield the share's samples from number `start` on, for ever."""
        ...
