"""The unit of work, one image with its detections, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Detection, PoseEstimate


@dataclass(frozen=True)
class ImageTask:
    """The unit of work: one image with the detections to estimate, independent of where it runs.

    `camera` is None with `problem` set; `problem` says why the image cannot be used at all.
    """

    scene_id: int
    im_id: int
    image_path: Path
    camera: CameraModel | None
    detections: tuple[Detection, ...]
    problem: str | None = None

    @property
    def name(self) -> str:
        """The image as messages name it."""
        return f"scene {self.scene_id}, image {self.im_id}"

    @property
    def K(self) -> Array | None:
        """Matrix (3,3) f64, px, of a pinhole camera; None for other cameras."""
        return self.camera.K if isinstance(self.camera, Pinhole) else None


@dataclass(frozen=True)
class LoadedImage:
    """An image read from disk with one mask a detection of its task.

    `image_rgb` (H,W,3) u8; `masks`: (H,W) bool, None where the detection has only a box, or the error that says why
    the mask cannot be read.
    """

    image_rgb: Array
    masks: tuple[Array | PicoPoseError | None, ...]


@dataclass(frozen=True)
class Skip:
    """What could not be used and why; `obj_id` is None when it is the whole image."""

    scene_id: int
    im_id: int
    obj_id: int | None
    reason: str


@dataclass
class StageSeconds:
    """Seconds spent by stage: read and decode, crop, network (device synchronised), PnP (summed over threads), refine.

    The last is everything that refinement does: renders, network and PnP.
    """

    read: float = 0.0
    crop: float = 0.0
    network: float = 0.0
    pnp: float = 0.0
    refine: float = 0.0

    def add(self, other: StageSeconds) -> None:
        """Add another count to this one."""
        self.read += other.read
        self.crop += other.crop
        self.network += other.network
        self.pnp += other.pnp
        self.refine += other.refine


@dataclass(frozen=True)
class ImageResult:
    """What came of one image: its estimates (possibly none), what was skipped, and where its time went.

    `time_s` is BOP's time of the image, as its estimates have it.
    """

    task: ImageTask
    estimates: tuple[PoseEstimate, ...]
    skips: tuple[Skip, ...]
    seconds: StageSeconds
    time_s: float
