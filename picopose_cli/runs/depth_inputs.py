"""The depth images of a run: where they are, whether they can belong to their images, and what they contain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from picopose_cli.base.cameras import Camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import DepthSource, ImageResult, ImageTask
from picopose_cli.base.types import Array
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.image_headers import read_image_header
from picopose_cli.bop.images import read_depth_m

MAX_SCENE_RATIO = 1.5
"""Median ratio of measured and expected distance over a scene, or its inverse, above which depth cannot be right."""
MIN_RATIOS, MIN_RATIOS_OF_ALL = 8, 3
"""Detections that this is decided by while a scene is not finished, and when it is."""
REGISTERED = "use depth images that are registered to the images, pixel by pixel, or leave depth out"


def depth_source(dataset: Dataset, scene_id: int, im_id: int, camera: Camera) -> DepthSource:
    """Return the depth image of an image, which may be missing."""
    return DepthSource(dataset.depth_path(scene_id, im_id), camera.depth_scale, camera.depth_problem)


def require_depth(dataset: Dataset, tasks: Sequence[ImageTask]) -> None:
    """Raise PicoPoseError when the depth images of tasks cannot be used as a whole.

    None exists, they are of another sensor than the images, or the first one has another size than its image.
    """
    sources = [(task, task.depth) for task in tasks if task.depth is not None and task.problem is None]
    for scene_id in {task.scene_id for task, _ in sources}:
        layout = dataset.layout_of(scene_id)
        if layout.suffix and not layout.depth_folder.endswith(layout.suffix):
            folder = dataset.scene_dir(scene_id) / layout.depth_folder
            what = f"there is no depth{layout.suffix}/ of the sensor whose images are used ({layout.image_folder}/)"
            raise PicoPoseError(what, where=folder, fix=REGISTERED)
    found = [(task, source) for task, source in sources if source.path.is_file()]
    if sources and not found:
        what = f"none of the {len(sources)} images has a depth image"
        raise PicoPoseError(what, where=sources[0][1].path, fix="unpack the depth images, or pass --depth off")
    for task, source in found[:1]:
        image, depth = read_image_header(task.image_path), read_image_header(source.path)
        if image is not None and depth is not None:
            _require_size(source.path, depth.size_hw, image.size_hw)


def read_depth(source: DepthSource, size_hw: tuple[int, int]) -> Array | PicoPoseError:
    """Return the depth (H,W) f32 of an image of `size_hw` in metres, 0 where nothing was measured, or what is wrong."""
    try:
        if source.problem is not None:
            raise PicoPoseError(source.problem, where=source.path, fix="correct scene_camera")
        depth_m = read_depth_m(source.path, source.scale)
        _require_size(source.path, depth_m.shape, size_hw)
    except PicoPoseError as error:
        return error
    return depth_m


def _require_size(path: Path, found_hw: Sequence[int], needed_hw: Sequence[int]) -> None:
    if tuple(found_hw) != tuple(needed_hw):
        sizes = f"the depth image is {found_hw[1]}x{found_hw[0]} px, its image {needed_hw[1]}x{needed_hw[0]}"
        raise PicoPoseError(sizes, where=path, fix=REGISTERED)


class DepthScaleCheck:
    """Compares measured distances with those that poses by RGB expect, scene by scene."""

    def __init__(self) -> None:
        self._ratios: dict[int, list[float]] = defaultdict(list)

    def add(self, result: ImageResult) -> None:
        """Add an image; raises PicoPoseError when the depth of its scene is of another scale."""
        if result.depth is not None:
            self._ratios[result.task.scene_id] += result.depth.ratios
            self._check(result.task.scene_id, MIN_RATIOS)

    def finish(self) -> None:
        """Raise PicoPoseError when the depth of a scene of few detections is of another scale."""
        for scene_id in self._ratios:
            self._check(scene_id, MIN_RATIOS_OF_ALL)

    def _check(self, scene_id: int, least: int) -> None:
        ratios = self._ratios[scene_id]
        if len(ratios) < least:
            return
        ratio = float(np.median(ratios))
        if not 1 / MAX_SCENE_RATIO < ratio < MAX_SCENE_RATIO:
            raise PicoPoseError(
                f"the depth of scene {scene_id} is wrong: measured distances are {ratio:.3g} times those expected from "
                f"the objects' sizes (median of {len(ratios)} detections)",
                fix="correct depth_scale in scene_camera (value * depth_scale = mm), or the unit of the meshes, and "
                "pass --restart",
            )
