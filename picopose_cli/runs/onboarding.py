"""Onboarding: the network, the template features of every object of a run, and all that turns images into poses."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from picopose_cli.base.environment import available_cores
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import ImageResult
from picopose_cli.network.devices import limit_threads
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose.depth_refinement import DepthRefiner
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.feature_file import FeatureFile, feature_file
from picopose_cli.pose.image_groups import ImageGroup
from picopose_cli.pose.inference_network import load_inference_network
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.pipeline import LoadImage, OnProgress, PipelineOptions, Record, estimate_groups
from picopose_cli.pose.refine import Refiner
from picopose_cli.pose.rules import make_rules
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.inputs import RunInputs
from picopose_cli.runs.objects import ObjectInputs
from picopose_cli.templates.bank import read_bank

ViewProgress = Callable[[int, int], AbstractContextManager[OnProgress]]
"""Takes (object id, views); gives a context of a function of the number of views done since its last call."""


@dataclass(frozen=True)
class Estimation:
    """Everything that images of a run become poses with, on one device."""

    matcher: Matcher
    renderer: EstimateRenderer
    refiner: Refiner | None
    depth_refiner: DepthRefiner | None

    def estimate(
        self,
        groups: Sequence[ImageGroup],
        load_image: LoadImage,
        options: PipelineOptions,
        *,
        record: Record | None = None,
        on_progress: OnProgress = lambda _: None,
    ) -> Generator[ImageResult, None, None]:
        """Yield the result of each image of the groups, in order; see `estimate_groups`."""
        return estimate_groups(
            groups,
            load_image,
            self.matcher,
            options,
            refiner=self.refiner,
            depth_refiner=self.depth_refiner,
            record=record,
            on_progress=on_progress,
        )

    def problems(self) -> list[str]:
        """Return which objects could not be rendered so far, and why."""
        return [f"object {obj_id} is not refined: {error}" for obj_id, error in self.renderer.errors.items()]


def open_matcher(inputs: RunInputs) -> Matcher:
    """Return the matcher of a run, with the network loaded and without objects."""
    limit_threads(available_cores())
    network = load_inference_network(inputs.weights, device=inputs.devices[0], precision=inputs.precision)
    return Matcher(network, TemplateStore(network), make_rules(inputs.options.rules, inputs.options.tried_templates))


def open_estimation(inputs: RunInputs, matcher: Matcher) -> Estimation:
    """Return the estimation of a run by a matcher, whose objects may be added later."""
    options, silhouettes = inputs.options, matcher.store.silhouettes
    meshes = {
        found.obj_id: (found.mesh, found.provenance.mesh_unit)
        for found in inputs.usable_objects.values()
        if found.mesh is not None
    }
    renderer, refines = EstimateRenderer(meshes), bool(meshes) and options.rounds > 0
    refiner = Refiner(load_local_features(matcher.device), renderer, options.rounds, silhouettes) if refines else None
    on_depth = DepthRefiner(renderer, matcher.device, silhouettes) if options.depth == "on" else None
    return Estimation(matcher, renderer, refiner, on_depth)


def pipeline_options(inputs: RunInputs) -> PipelineOptions:
    """Return how the images of a run are grouped and worked on."""
    options = inputs.options
    sequential = options.timing == "sequential"
    return PipelineOptions(inputs.batch_size, options.workers, sequential, inputs.estimates_extra_detections)


def onboard(store: TemplateStore, inputs: RunInputs, obj_ids: Iterable[int], progress: ViewProgress) -> list[str]:
    """Add the objects of these ids to the store, and return the problems of those whose banks are damaged."""
    usable, problems = inputs.usable_objects, []
    for found in (usable[obj_id] for obj_id in obj_ids if obj_id in usable):
        try:
            bank = read_bank(found.bank)
        except PicoPoseError as error:
            problems.append(f"object {found.obj_id}: {error}")
            continue
        with progress(found.obj_id, len(bank.crops_rgb)) as advance:
            file = features_of(inputs, found)
            store.add_object(bank, file=file, info=found.symmetries, on_progress=advance)
    return problems


def features_of(inputs: RunInputs, found: ObjectInputs) -> FeatureFile | None:
    """Return where the template features of an object are stored, None where the run keeps them in memory."""
    if not inputs.options.cache:
        return None
    return feature_file(
        found.bank, weights_sha256=inputs.weights_sha256, precision=inputs.precision, device=inputs.devices[0]
    )
