"""The inputs of a run: everything from the command's options to the groups of images that are estimated together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from picopose_cli.base.cameras import Camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256, require_writable
from picopose_cli.base.options import InferOptions, resolve_dataset
from picopose_cli.base.tasks import ImageTask, LoadedImage
from picopose_cli.base.types import AnyTarget, Array, Detection, ImageTarget
from picopose_cli.bop.datasets import Dataset, open_dataset, read_scene_cameras
from picopose_cli.bop.detection_set import DetectionSet
from picopose_cli.bop.detections import select_detections
from picopose_cli.bop.images import read_image_rgb, read_mask
from picopose_cli.bop.result_names import require_result_path, result_file_name
from picopose_cli.bop.targets import targets_by_image, targets_kind
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import carries_hash, read_config
from picopose_cli.network.devices import choose_devices, choose_precision, suggest_batch_size
from picopose_cli.network.integrity import unverified_weights
from picopose_cli.pose.image_groups import ImageGroup, plan_groups, shard_of_groups
from picopose_cli.runs.depth_inputs import depth_source, read_depth, require_depth
from picopose_cli.runs.input_warnings import input_warnings, relabelled_warnings
from picopose_cli.runs.journal import ImageKey, batch_size_in, journal_path
from picopose_cli.runs.objects import ObjectInputs, read_objects, symmetry_warnings
from picopose_cli.runs.shards import begun_outputs, shard_path
from picopose_cli.runs.target_detections import GROUND_TRUTH_MASKS, read_target_detections, require_detections

METHOD = "picopose"
SHARD_BATCH_SIZE = {"cpu": 16, "cuda": 32}
"""Detections that go through the network together, by kind of device; a batch that does not fit is halved."""
RELEASED_WEIGHTS = "the checkpoint that the PicoPose authors released (see weights/README.md)"


@dataclass(frozen=True)
class RunInputs:
    """What a run reads and writes, known before the network is loaded."""

    options: InferOptions
    dataset: Dataset
    targets: Sequence[AnyTarget]
    targets_source: str
    """Where the targets come from, and for which of BOP's tasks they are."""
    detections_file: Path | None
    """None: the ground-truth masks."""
    objects: Mapping[int, ObjectInputs | None]
    """Of each detected object; None where no pose can be estimated, for a reason in `problems`."""
    problems: Sequence[str]
    """Parts of the input that cannot be used."""
    warnings: Sequence[str]
    """What may be wrong although it can be used."""
    weights: Path
    weights_sha256: str
    devices: Sequence[str]
    precision: str
    batch_size: int
    output: Path
    all_tasks: Sequence[ImageTask]
    """The images of the whole run, in order."""
    groups: Sequence[ImageGroup]
    """The images of this run's shard, grouped."""

    @property
    def tasks(self) -> list[ImageTask]:
        """The images of this run's shard, in order."""
        return [task for group in self.groups for task in group]

    @property
    def shard_targets(self) -> list[AnyTarget]:
        """The targets of this run's images."""
        images = {(task.scene_id, task.im_id) for task in self.tasks}
        return [target for target in self.targets if (target.scene_id, target.im_id) in images]

    @property
    def usable_objects(self) -> dict[int, ObjectInputs]:
        """The objects whose poses can be estimated."""
        return {obj_id: found for obj_id, found in self.objects.items() if found is not None}

    @property
    def estimates_extra_detections(self) -> bool:
        """Whether more detections are estimated than count, as the localisation task may."""
        return self.options.extra > 0 and targets_kind(self.targets) == "bop19"

    @property
    def detections_source(self) -> str:
        """Where the detections come from."""
        return GROUND_TRUTH_MASKS if self.detections_file is None else str(self.detections_file)


def read_inputs(options: InferOptions, device: str | None = None) -> RunInputs:
    """Return the inputs of a run; `device` is that of the workers of a cluster, which this machine may not have.

    Raises PicoPoseError when data set, targets, detections, template banks, weights, device or output cannot be used.
    """
    name, data_dir = resolve_dataset(options.dataset, options.data_dir)
    dataset = open_dataset(name, data_dir, split=options.split, sensor=options.sensor)
    devices = [device] if device else choose_devices(options.device)
    output = _output_path(options, dataset)
    found = read_target_detections(dataset, data_dir, options)
    targets = sorted(found.targets.targets, key=astuple)
    by_image, with_depth = found.detections.by_image, options.depth == "on"
    tasks = make_image_tasks(dataset, targets, by_image, options.extra, depth=with_depth)[: options.limit]
    require_depth(dataset, tasks)
    require_detections(found.file, found.detections, tasks)
    weights = options.weights or bundled_weights()
    objects, problems = read_objects(dataset, options, detected_objects(tasks))
    usable = {obj_id for obj_id, one in objects.items() if one is not None}
    tasks = limit_detections(tasks, targets, usable)
    batch_size = _batch_size(options, output, weights, devices[0])
    groups = _groups(options, tasks, batch_size)
    weights_sha256 = file_sha256(weights)
    unverified = unverified_weights(weights, weights_sha256, carries_hash(weights))
    return RunInputs(
        options=options,
        dataset=dataset,
        targets=targets,
        targets_source=found.targets.source,
        detections_file=found.file,
        objects=objects,
        problems=[*found.detections.problems, *problems],
        warnings=[*symmetry_warnings(dataset), *_image_warnings(groups, found.detections), *unverified],
        weights=weights,
        weights_sha256=weights_sha256,
        devices=devices,
        precision=choose_precision(options.precision, devices[0]),
        batch_size=batch_size,
        output=output,
        all_tasks=tasks,
        groups=groups,
    )


def notes(inputs: RunInputs) -> list[str]:
    """Return what a person should know of the inputs before the run begins."""
    lines = [f"targets: {inputs.targets_source}", f"detections: {inputs.detections_source}"]
    if inputs.options.weights is None:
        shipped = f"weights: {inputs.weights.name}, the small network that ships with picopose, for trying it out"
        lines.append(f"{shipped}; for results pass --weights FILE: {RELEASED_WEIGHTS}")
    return [*lines, *(f"warning: {line}" for line in inputs.warnings)]


def make_image_tasks(
    dataset: Dataset,
    targets: Sequence[AnyTarget],
    detections: Mapping[ImageKey, Sequence[Detection]],
    extra: int = 0,
    *,
    depth: bool = False,
) -> list[ImageTask]:
    """Return one task for each image with targets, sorted by scene and image, with the detections to estimate.

    An image without detections gets a task without any; an image without a usable camera one with a `problem`. With
    `depth` it names the image's depth image. `extra`: see `select_detections`.
    """
    by_image = targets_by_image(targets)
    cameras: dict[int, dict[int, Camera] | PicoPoseError] = {}
    tasks = []
    for scene_id, im_id in sorted(by_image):
        if scene_id not in cameras:
            cameras[scene_id] = _cameras_or_error(dataset, scene_id)
        camera = _camera_of(cameras[scene_id], im_id)
        chosen = select_detections(by_image[scene_id, im_id], detections.get((scene_id, im_id), ()), extra)
        path = dataset.image_path(scene_id, im_id)
        source = depth_source(dataset, scene_id, im_id, camera) if depth else None
        tasks.append(ImageTask(scene_id, im_id, path, camera.model, tuple(chosen), camera.problem, source))
    return tasks


def limit_detections(
    tasks: Iterable[ImageTask], targets: Iterable[AnyTarget], usable: Collection[int]
) -> list[ImageTask]:
    """Return the tasks without the detections that the detection task (BOP24) would not count.

    An image that is a target as a whole keeps its best `max_estimates` detections, only of `usable` objects, which
    would otherwise lose their places to objects without a template bank. Tasks of other images are unchanged.
    """
    limits = {
        (target.scene_id, target.im_id): target.max_estimates for target in targets if isinstance(target, ImageTarget)
    }
    limited = []
    for task in tasks:
        limit = limits.get((task.scene_id, task.im_id))
        if limit is not None:
            counted = [detection for detection in task.detections if detection.obj_id in usable]
            task = replace(task, detections=tuple(counted[:limit]))
        limited.append(task)
    return limited


def load_image(task: ImageTask) -> LoadedImage:
    """Return a task's image, masks and depth; a mask or depth that cannot be used is replaced by its error.

    Raises PicoPoseError when the image itself cannot be read.
    """
    image_rgb = read_image_rgb(task.image_path)
    size_hw = (image_rgb.shape[0], image_rgb.shape[1])
    masks = tuple(_mask_or_error(detection, size_hw) for detection in task.detections)
    return LoadedImage(image_rgb, masks, None if task.depth is None else read_depth(task.depth, size_hw))


def detected_objects(tasks: Iterable[ImageTask]) -> list[int]:
    """Return the sorted ids of the objects of which the tasks have detections."""
    return sorted({detection.obj_id for task in tasks for detection in task.detections})


def _output_path(options: InferOptions, dataset: Dataset) -> Path:
    output = options.output or Path(result_file_name(METHOD, dataset.name, dataset.result_split))
    if options.output is None and options.limit is not None:
        output = output.with_stem(f"{output.stem}_first{options.limit}")
    if options.output is None and options.part is not None:
        output = shard_path(output, *options.part)
    require_result_path(output)
    require_writable(output)
    return output


def _image_warnings(groups: Sequence[ImageGroup], detections: DetectionSet) -> list[str]:
    tasks = [task for group in groups for task in group]
    return [*relabelled_warnings(tasks, detections.by_image), *input_warnings(tasks)]


def _batch_size(options: InferOptions, output: Path, weights: Path, device: str) -> int:
    """Return the batch size of the options, else that of the run that is continued, else one that suits the device.

    Shards of one run, and workers of a cluster, need the same batches, whatever memory their GPUs have free: theirs
    depends on the kind of device.
    """
    if options.batch_size is not None:
        return options.batch_size
    begun = [] if options.restart else [batch_size_in(journal_path(path)) for path in begun_outputs(output)]
    sizes = [size for size in begun if size is not None]
    if sizes:
        return sizes[0]
    if options.part is not None or options.ray is not None:
        return SHARD_BATCH_SIZE[device.partition(":")[0]]
    return suggest_batch_size(device, read_config(weights))


def _groups(options: InferOptions, tasks: Sequence[ImageTask], batch_size: int) -> list[ImageGroup]:
    sequential = options.timing == "sequential"
    groups: list[ImageGroup] = [(task,) for task in tasks] if sequential else plan_groups(tasks, batch_size)
    return groups if options.part is None else shard_of_groups(groups, options.part[0] - 1, options.part[1])


def _mask_or_error(detection: Detection, size_hw: tuple[int, int]) -> Array | PicoPoseError | None:
    if detection.mask is None:
        return None
    try:
        return read_mask(detection.mask, size_hw)
    except PicoPoseError as error:
        return error


def _cameras_or_error(dataset: Dataset, scene_id: int) -> dict[int, Camera] | PicoPoseError:
    try:
        return read_scene_cameras(dataset, scene_id)
    except PicoPoseError as error:
        return error


def _camera_of(cameras: dict[int, Camera] | PicoPoseError, im_id: int) -> Camera:
    if isinstance(cameras, PicoPoseError):
        return Camera(None, problem=str(cameras))
    return cameras.get(im_id, Camera(None, problem="scene_camera has no entry for the image"))
