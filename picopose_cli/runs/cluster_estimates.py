"""`infer --ray`: groups of whole images on the nodes of a cluster, their results in the one journal of the driver."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import Progress, TaskID

from picopose_cli.base.environment import package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_texts import MAX_DEFAULT_THREADS
from picopose_cli.base.options import DEFAULT_THREADS, InferOptions
from picopose_cli.base.tasks import ImageResult, ImageTask, LoadedImage, Skip, StageSeconds
from picopose_cli.base.workers import WorkerDiedError
from picopose_cli.network.devices import choose_device, thread_count, use_threads
from picopose_cli.pose.image_groups import ImageGroup
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.pipeline import OnProgress, PipelineOptions
from picopose_cli.rendering.meshes import mesh_files
from picopose_cli.runs.cluster import Cluster, WorkerShare
from picopose_cli.runs.dispatch import Dispatcher, Done, Status
from picopose_cli.runs.identity import RESULT_VERSIONS
from picopose_cli.runs.inputs import RunInputs, detected_objects, load_image
from picopose_cli.runs.journal_records import image_record, image_result
from picopose_cli.runs.node_files import FileBundle, NodeFiles, bundle_files, with_paths
from picopose_cli.runs.node_worker import NodeContext
from picopose_cli.runs.objects import ObjectInputs
from picopose_cli.runs.onboarding import (
    features_of,
    onboard,
    open_estimation,
    open_matcher,
    pipeline_options,
)
from picopose_cli.runs.progress import add_bar
from picopose_cli.runs.run import Run


def device_on(cluster: Cluster, options: InferOptions) -> str:
    """Return the device of a cluster's workers: their GPU if any node has one, unless the options say otherwise."""
    if options.device == "cpu" or (options.device == "auto" and not cluster.has_gpus):
        return "cpu"
    if not cluster.has_gpus:
        raise PicoPoseError("--device cuda: no node of the cluster has a GPU", fix="pass --device cpu, or auto")
    return "cuda:0"  # a worker sees its own alone


def estimate_on_cluster(run: Run, cluster: Cluster, progress: Progress) -> None:
    """Estimate the groups of a run on a cluster and keep the results.

    Images of a group that ended several workers are kept as skipped, with the reason. Raises PicoPoseError when no
    worker can be started, or a worker cannot go on.
    """
    inputs, options = run.inputs, run.inputs.options
    share = WorkerShare(options.workers_per_gpu, options.gpus, on_gpu=inputs.devices[0] != "cpu")
    groups = [tuple(with_paths(task, Path.absolute) for task in group) for group in run.groups]
    bars = _Bars(progress, run)
    with cluster.dispatcher(recipe_of(run), groups, share, bars.show) as dispatcher:
        problems: dict[str, None] = {}
        images: dict[str, int] = {}
        for batch in dispatcher.batches():
            found = [results_of(run.groups[done.job], done) for done in batch]
            run.keep(*chain.from_iterable(found))
            for done, results in zip(batch, found, strict=True):
                if not isinstance(done.outcome, PicoPoseError):
                    problems |= dict.fromkeys(done.outcome.problems)
                    images[done.node] = images.get(done.node, 0) + len(results)
                bars.advance(done.node, results)
        bars.show(dispatcher.status())
        run.report.problems += list(problems)
        _add_nodes(run, dispatcher, images)


@dataclass(frozen=True)
class GroupAnswer:
    """What a worker sends back: a journal's record of each image of a group, and the problems with objects so far."""

    records: tuple[dict[str, Any], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class EstimateOnNode:
    """What a worker needs; called on its node, it loads the network and the objects and gives the work.

    `inputs` has no images; `threads` of PyTorch where OMP_NUM_THREADS says how many; `obj_ids` are the objects that the
    images need; `files` says of each path of the driver what it contains, so that a node which lacks it, or has another
    file there, gets a copy.
    """

    inputs: RunInputs
    pipeline: PipelineOptions
    threads: int | None
    obj_ids: tuple[int, ...]
    files: Mapping[Path, FileBundle]
    versions: Mapping[str, str]

    def __call__(self, context: NodeContext) -> Callable[[ImageGroup, int], GroupAnswer]:
        """Load everything; raises PicoPoseError when the node has other versions, no such device or a bad file."""
        _require_versions(self.versions)
        inputs = _on_node(self.inputs, self.files, context.files)
        use_threads(self.threads or context.threads)
        matcher = open_matcher(inputs)
        # Workers of a node or of a shared folder begin with different objects, whose features they compute for all.
        first = context.index % max(len(self.obj_ids), 1)
        in_turn = self.obj_ids[first:] + self.obj_ids[:first]
        problems = onboard(matcher.store, inputs, in_turn, _without_bar)
        own = self.inputs.options.workers != DEFAULT_THREADS
        pipeline = self.pipeline if own else replace(self.pipeline, workers=min(context.threads, MAX_DEFAULT_THREADS))
        return _GroupEstimator(inputs, matcher, pipeline, tuple(sorted(problems)), context.files)


class _GroupEstimator:
    """Estimates groups of images, several at a time in threads of their own."""

    def __init__(
        self,
        inputs: RunInputs,
        matcher: Matcher,
        pipeline: PipelineOptions,
        problems: tuple[str, ...],
        files: NodeFiles,
    ) -> None:
        self._estimation = open_estimation(inputs, matcher)
        self._pipeline = pipeline
        self._problems = problems
        self._load = _sent_from(files) if inputs.options.ship_images else load_image

    def __call__(self, group: ImageGroup, halvings: int) -> GroupAnswer:
        """Estimate a group; each halving of the batch size makes its batches smaller, not the group."""
        options = replace(self._pipeline, batch_size=max(self._pipeline.batch_size >> halvings, 1))
        results = list(self._estimation.estimate([group], self._load, options))
        problems = (*self._problems, *self._estimation.problems())
        return GroupAnswer(tuple(image_record(result) for result in results), problems)


def _sent_from(files: NodeFiles) -> Callable[[ImageTask], LoadedImage]:
    def load(task: ImageTask) -> LoadedImage:
        with TemporaryDirectory(prefix="picopose-") as folder:
            return load_image(files.copied_for_now(task, Path(folder)))

    return load


@contextmanager
def _without_bar(obj_id: int, views: int) -> Iterator[OnProgress]:  # noqa: ARG001 - the form of ViewProgress
    yield lambda _: None


def recipe_of(run: Run) -> EstimateOnNode:
    """Return what the workers of a run need."""
    inputs = run.inputs
    needed = detected_objects(task for group in run.groups for task in group)
    obj_ids = tuple(obj_id for obj_id in needed if obj_id in inputs.usable_objects)
    found = [inputs.usable_objects[obj_id] for obj_id in obj_ids]
    bundles = {inputs.weights: bundle_files(inputs.weights)} | {one.bank: bundle_files(one.bank) for one in found}
    bundles |= {one.mesh: bundle_files(*mesh_files(one.mesh)) for one in found if one.mesh is not None}
    stripped = replace(inputs, targets=(), all_tasks=(), groups=(), problems=(), warnings=())
    threads = thread_count() if "OMP_NUM_THREADS" in os.environ else None
    return EstimateOnNode(stripped, pipeline_options(inputs), threads, obj_ids, bundles, _result_versions())


def _on_node(inputs: RunInputs, bundles: Mapping[Path, FileBundle], files: NodeFiles) -> RunInputs:
    """Return the inputs with the files of this node; template features that the driver has come with their banks."""
    needed = {obj_id: found for obj_id, found in inputs.usable_objects.items() if found.bank in bundles}
    objects = {obj_id: _object_on_node(found, bundles, files) for obj_id, found in needed.items()}
    device = choose_device(inputs.devices[0])
    weights = files.local(bundles[inputs.weights])
    local = replace(inputs, weights=weights, objects={**inputs.objects, **objects}, devices=(device,))
    for obj_id, found in objects.items():
        original, features = bundles[needed[obj_id].bank].files[0], features_of(local, found)
        if features is not None and found.bank != original and not features.path.exists():
            files.copy(original.with_name(features.path.name), features.path)
    return local


def _object_on_node(found: ObjectInputs, bundles: Mapping[Path, FileBundle], files: NodeFiles) -> ObjectInputs:
    mesh = None if found.mesh is None else files.local(bundles[found.mesh])
    return replace(found, bank=files.local(bundles[found.bank]), mesh=mesh)


def _result_versions() -> dict[str, str]:
    """Return the versions that results depend on, without the kind of a build such as +cpu."""
    return {name: version.partition("+")[0] for name, version in package_versions().items() if name in RESULT_VERSIONS}


def _require_versions(wanted: Mapping[str, str]) -> None:
    here = _result_versions()
    others = [f"{name} {here[name]} instead of {wanted[name]}" for name in wanted if here[name] != wanted[name]]
    if others:
        raise PicoPoseError(f"the node has {', '.join(others)}", fix="install the driver's versions there")


def results_of(group: ImageGroup, done: Done) -> list[ImageResult]:
    """Return the results of a group; raises the error of a worker that could not go on."""
    outcome = done.outcome
    if isinstance(outcome, WorkerDiedError):
        reason = f"could not be estimated with the images beside it: {outcome}"
        return [
            ImageResult(task, (), (Skip(task.scene_id, task.im_id, None, reason),), StageSeconds(), 0.0)
            for task in group
        ]
    if isinstance(outcome, PicoPoseError):
        raise PicoPoseError(
            f"a worker on {done.node} cannot go on: {outcome.what}", where=outcome.where, fix=outcome.fix
        )
    return [image_result(task, record) for task, record in zip(group, outcome.records, strict=True)]


def _add_nodes(run: Run, dispatcher: Dispatcher, images: Mapping[str, int]) -> None:
    """Add what each node did, and what was lost, to the report."""
    report, kind = run.report, run.inputs.devices[0].partition(":")[0]
    for name, tally in dispatcher.nodes.items():
        figures = {"groups": tally.jobs, "workers": tally.workers, "lost": tally.lost, "seconds": tally.seconds}
        report.nodes.append({"node": name, "images": images.get(name, 0)} | figures)
    report.device = f"{sum(tally.workers for tally in dispatcher.nodes.values())} workers on {kind}"
    report.warnings += [f"{text} ({count} times)" if count > 1 else text for text, count in dispatcher.warnings.items()]


class _Bars:
    """Shows all poses, the groups with the state of the workers, and of each node its images per second."""

    def __init__(self, progress: Progress, run: Run) -> None:
        self._progress, self._run = progress, run
        total, left = _detections(run.inputs.tasks), _detections(task for group in run.groups for task in group)
        self._poses = add_bar(progress, "poses", total, "poses", total - left)
        self._groups = add_bar(progress, "groups", len(run.groups), "groups")
        self._nodes: dict[str, TaskID] = {}
        self._begun = False

    def show(self, status: Status) -> None:
        """Show the state of the workers; the clock of the images starts with the first one."""
        if status.workers and not self._begun:
            self._begun = True
            self._run.begin_estimating()
        done = len(self._run.groups) - status.in_progress - status.waiting
        state = f"{status.workers} workers, {status.starting} starting; groups: {status.in_progress} run, "
        self._progress.update(self._groups, completed=done, description=f"{state}{status.waiting} wait")

    def advance(self, node: str, results: Sequence[ImageResult]) -> None:
        """Count the results of a group."""
        if node not in self._nodes:
            self._nodes[node] = self._progress.add_task(node, total=None, unit="images", begun=0)
        self._progress.advance(self._nodes[node], len(results))
        self._progress.advance(self._poses, _detections(result.task for result in results))


def _detections(tasks: Iterable[ImageTask]) -> int:
    return sum(len(task.detections) for task in tasks)
