"""A pair of views of one object, an observation and a template, with exact geometry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array

MIN_VISIBLE_PX, MIN_VISIBLE_SHARE = 1024, 0.3
"""An object is observed only if at least this many pixels and this share of its silhouette are visible."""
_NEAREST_VIEWS = 5


@dataclass(frozen=True)
class CropView:
    """One side of a pair: a square crop and its camera.

    `crop_rgb` (224,224,3) u8; `mask` (224,224) bool, the object's visible part; `depth_centre_m` (64,64) f32, depth of
    the object at the cells' centres in metres, 0 where it is not visible; `K` (3,3) f64 px; `A_crop_from_image` (3,3)
    f64 px; `T_cam_from_obj` (4,4) f64 metres.
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
    """A pair of views of the same object: `observation` on its background, `template` on black.

    `object_key` names the object, `diameter_m` is the diagonal of its axis-aligned bounding box.
    """

    object_key: str
    diameter_m: float
    observation: CropView
    template: CropView


class SampleSource(Protocol):
    """An endless, seeded stream of samples, divided into shares, one for each worker."""

    @property
    def skipped(self) -> Counter[str]:
        """The entries that could not be used so far, by reason, without those before the stream's start."""
        ...

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        """Yield the samples of share `worker` of `workers`, from the share's sample number `start` on.

        The same arguments give the same samples, so that an interrupted consumer can resume exactly.
        """
        ...


def nearest_views(poses: Array, T_cam_from_obj: Array, count: int) -> Array:
    """Return the indices (count,) of the views (V,4,4) with the viewing directions nearest to that of a pose (4,4)."""
    direction = T_cam_from_obj[:3, :3].T @ T_cam_from_obj[:3, 3]  # from the camera to the origin, object frame
    directions = np.einsum("vji,vj->vi", poses[:, :3, :3], poses[:, :3, 3])
    cosine = directions @ direction / np.linalg.norm(directions, axis=1)
    return np.asarray(np.argsort(-cosine, kind="stable")[:count])


def choose_template(rng: np.random.Generator, poses: Array, T_cam_from_obj: Array) -> int:
    """Return the index of a random one of the five views (V,4,4) nearest to a pose (4,4) in viewing direction."""
    return int(rng.choice(nearest_views(poses, T_cam_from_obj, _NEAREST_VIEWS)))
