"""The Python entry: poses of detections in single images, computed as `picopose infer` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from picopose_cli.base.cameras import CameraModel, Fisheye624, Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.options import DEFAULT_REFINE_ROUNDS, default_hypotheses
from picopose_cli.base.tasks import ImageTask, LoadedImage
from picopose_cli.base.types import Array, Detection, ObjectInfo, TemplateBank
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.devices import choose_device, choose_precision, suggest_batch_size
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose.depth_refinement import DepthRefiner
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.feature_file import feature_file
from picopose_cli.pose.inference_network import load_inference_network
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.object_cache import cached_bank, default_cache_dir
from picopose_cli.pose.pipeline import PipelineOptions, estimate_images
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.rules import make_rules
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.templates.bank import read_bank

MaskOrBox = Array | Sequence[float]
"""A mask (H,W) bool, or a box (x, y, width, height) px."""


@dataclass(frozen=True)
class DetectionPose:
    """The pose of one detection: `T_cam_from_obj` (4,4) f64, metres, OpenCV axes, and its confidence in [0, 1].

    `by_rgb` says why a pose that was to be finished on depth is by RGB alone, None otherwise.
    """

    obj_id: int
    T_cam_from_obj: Array
    confidence: float
    by_rgb: str | None = None


class PoseEstimator:
    """Estimates 6D poses of onboarded objects in RGB images, finished on depth where it is given.

    Points transform as x_cam = T_cam_from_obj @ x_obj, in metres; the camera looks along +z, x is right and y down.

    >>> estimator = PoseEstimator("picopose.safetensors")
    >>> mug = estimator.add_mesh("mug.ply")
    >>> poses = estimator.estimate(image_rgb, K, [(mug, mask)])
    >>> poses[0].T_cam_from_obj
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        rules: str = "default",
        hypotheses: int | None = None,
        refine: int = DEFAULT_REFINE_ROUNDS,
    ) -> None:
        """Load the network.

        `weights`: checkpoint, None for the small network of the package; `device`: auto, cpu or cuda:N; `precision`:
        auto, fp32 or bf16; `rules`: default or paper; `hypotheses`: templates per detection that reach stage 3, None
        for 5, or for 3 with refinement; `refine`: rounds of refinement of the objects that have a mesh (the paper's
        rules have none).
        Raises PicoPoseError for an unusable checkpoint, an unknown device or unknown rules.
        """
        device = choose_device(device)
        precision = choose_precision(precision, device)
        path = bundled_weights() if weights is None else Path(weights)
        network = load_inference_network(path, device=device, precision=precision)
        self._device, self._precision, self._weights_sha256 = device, precision, file_sha256(path)
        self._meshes: dict[int, tuple[Path, str]] = {}
        rounds = 0 if rules == "paper" else refine
        made_rules = make_rules(rules, default_hypotheses(rounds) if hypotheses is None else hypotheses)
        self._matcher = Matcher(network, TemplateStore(network), made_rules)
        self._options = PipelineOptions(suggest_batch_size(device, network.config))
        renderer = EstimateRenderer(self._meshes)
        self._depth_refiner = DepthRefiner(renderer, self._matcher.device, self._matcher.store.silhouettes)
        self._refiner = (
            Refiner(load_local_features(device), renderer, refine, self._matcher.store.silhouettes)
            if rounds > 0
            else None
        )

    def add_object(
        self,
        bank: str | Path | TemplateBank,
        mesh: str | Path | None = None,
        symmetries: ObjectInfo | None = None,
    ) -> int:
        """Compute the template features of an object and return its id.

        `bank`: a file of `picopose render-templates` or its content; `mesh`: the file that the bank was made from, for
        refinement; `symmetries`: the object's entry of models_info.json, whose equivalent views are then tried once.
        Raises PicoPoseError when the bank cannot be read.
        """
        if not isinstance(bank, TemplateBank):
            bank = read_bank(Path(bank))
        self._matcher.store.add_object(bank, info=symmetries)
        if mesh is not None:
            self._meshes[bank.obj_id] = Path(mesh), bank.provenance.mesh_unit
        return bank.obj_id

    def add_mesh(
        self,
        mesh: str | Path,
        unit: str = "mm",
        symmetries: ObjectInfo | None = None,
        *,
        cache_dir: str | Path | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Add an object by its mesh alone and return its id: 1, 2, ... in the order of the calls.

        Templates and features are made once (seconds to a minute) and kept in `cache_dir`, by default the user's cache
        (see `object_cache`). `unit` of the mesh: mm, cm or m; `symmetries` as for `add_object`. `on_progress(n)` is
        called with the number of views that were finished since the last call. Raises PicoPoseError when the mesh
        cannot be used or the cache cannot be written.
        """
        path = cached_bank(Path(mesh), unit, default_cache_dir() if cache_dir is None else Path(cache_dir))
        file = feature_file(path, weights_sha256=self._weights_sha256, precision=self._precision, device=self._device)
        obj_id = max(self._matcher.store.obj_ids, default=0) + 1
        self._matcher.store.add_object(
            replace(read_bank(path), obj_id=obj_id), file=file, info=symmetries, on_progress=on_progress
        )
        self._meshes[obj_id] = Path(mesh), unit
        return obj_id

    def estimate(
        self,
        image_rgb: Array,
        K: Array | CameraModel,
        detections: Sequence[tuple[int, MaskOrBox]],
        *,
        depth_m: Array | None = None,
    ) -> list[DetectionPose]:
        """Return the pose of each detection (object id, mask or box) of an image, in order.

        `image_rgb` (H,W,3) u8; `K` (3,3) camera matrix, px, or a camera model such as a fisheye's; a mask (H,W) bool or
        a box (x, y, width, height) px; `depth_m` (H,W) metres along the camera's axis, 0 or NaN where nothing was
        measured. Raises PicoPoseError for an object that was not added, for a mask or box that gives no crop, and for
        depth of another size or with the paper's rules.
        """
        if depth_m is not None:
            depth_m = self._usable_depth(np.asarray(depth_m), image_rgb)
        if not detections:
            return []
        listed, masks = zip(*(_detection(obj_id, area) for obj_id, area in detections), strict=True)
        camera = K if isinstance(K, Pinhole | Fisheye624) else Pinhole(np.asarray(K, np.float64))
        task = ImageTask(0, 0, Path(), camera, listed)
        image = LoadedImage(image_rgb, masks, depth_m)
        on_depth = None if depth_m is None else self._depth_refiner
        found = estimate_images(
            [task], lambda _: image, self._matcher, self._options, refiner=self._refiner, depth_refiner=on_depth
        )
        (result,) = found
        for skip in result.skips:
            raise PicoPoseError(f"a detection of object {skip.obj_id} cannot be used: {skip.reason}")
        by_rgb = result.depth.by_rgb if result.depth is not None else (None,) * len(result.estimates)
        return [
            DetectionPose(one.obj_id, one.T_cam_from_obj, one.score, reason)
            for one, reason in zip(result.estimates, by_rgb, strict=True)
        ]

    def _usable_depth(self, depth_m: Array, image_rgb: Array) -> Array:
        """Return depth (H,W) f32 with 0 where nothing was measured."""
        if not self._matcher.rules.can_refine:
            raise PicoPoseError("the paper's rules know RGB alone", fix="leave depth out, or take the default rules")
        if depth_m.shape != image_rgb.shape[:2]:
            sizes = f"the depth is {depth_m.shape}, the image {image_rgb.shape[:2]}"
            raise PicoPoseError(sizes, fix="pass depth that is registered to the image, pixel by pixel")
        return np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, 0).astype(np.float32)


def _detection(obj_id: int, area: MaskOrBox) -> tuple[Detection, Array | None]:
    """Return a detection of score 1, so that the estimate's score is the confidence, and its mask."""
    if np.ndim(area) == 2:
        return Detection(obj_id, 1.0, (np.nan,) * 4, None, 0.0), np.asarray(area, bool)
    x, y, width, height = (float(value) for value in area)
    return Detection(obj_id, 1.0, (x, y, width, height), None, 0.0), None
