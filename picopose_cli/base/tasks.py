"""The unit of work, one image with its detections, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.cameras import CameraModel, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Detection, PoseEstimate


@dataclass(frozen=True)
class DepthSource:
    """The depth image of an image: file value * `scale` = mm, unless there is a `problem` with it."""

    path: Path
    scale: float
    problem: str | None = None


@dataclass(frozen=True)
class ImageTask:
    """The unit of work: one image with the detections to estimate, independent of where it runs.

    `camera` is None with `problem` set; `problem` says why the image cannot be used at all. `depth` is None where poses
    are estimated by RGB alone.
    """

    scene_id: int
    im_id: int
    image_path: Path
    camera: CameraModel | None
    detections: tuple[Detection, ...]
    problem: str | None = None
    depth: DepthSource | None = None

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
    the mask cannot be read; `depth_m`: (H,W) f32 along the camera's axis, 0 where nothing was measured, None for poses
    by RGB alone, or the error that says why it cannot be used.
    """

    image_rgb: Array
    masks: tuple[Array | PicoPoseError | None, ...]
    depth_m: Array | PicoPoseError | None = None


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

    The last is everything that refinement does, on RGB and on depth: renders, network and PnP.
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
class DepthUse:
    """What came of an image's depth.

    `by_rgb` says of each estimate, in order, why it is by RGB alone, None where it was finished on depth; `ratios` of
    measured and expected distance of its detections; `problem`: why the depth image cannot be used at all.
    """

    by_rgb: tuple[str | None, ...] = ()
    ratios: tuple[float, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class ImageResult:
    """What came of one image: its estimates (possibly none), what was skipped, and where its time went.

    `time_s` is BOP's time of the image, as its estimates have it; `depth` is None for poses by RGB alone.
    """

    task: ImageTask
    estimates: tuple[PoseEstimate, ...]
    skips: tuple[Skip, ...]
    seconds: StageSeconds
    time_s: float
    depth: DepthUse | None = None

    @property
    def depth_poses(self) -> int:
        """Number of poses that were finished on depth."""
        return 0 if self.depth is None else sum(reason is None for reason in self.depth.by_rgb)

    @property
    def by_rgb(self) -> list[Skip]:
        """The poses that depth was not used for although it was asked for; of no object where it is the whole image."""
        if self.depth is None:
            return []
        image = self.task.scene_id, self.task.im_id
        if self.depth.problem is not None:
            return [Skip(*image, None, self.depth.problem)]
        reasons = zip(self.estimates, self.depth.by_rgb, strict=True)
        return [Skip(*image, one.obj_id, reason) for one, reason in reasons if reason is not None]
