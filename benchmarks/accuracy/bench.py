"""A data set with its template banks, and the result files of the variants, made where they are missing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from accuracy.flows import RULES_OF_FLOWS, TimedMatcher
from accuracy.passes import InferencePass, Pass, Record, TruthPass
from accuracy.variants import InferLine, Variant
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import RenderTemplatesOptions, ScoreOptions
from picopose_cli.base.tasks import ImageTask
from picopose_cli.base.types import Array, PoseEstimate, TemplateBank
from picopose_cli.bop.datasets import Dataset, mesh_path, object_ids, read_object_infos
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.result_names import result_file_name
from picopose_cli.bop.results import write_results
from picopose_cli.bop.targets import read_image_targets, read_targets
from picopose_cli.commands import render_templates
from picopose_cli.network.devices import choose_precision
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.image_groups import plan_groups
from picopose_cli.pose.inference_network import InferenceNetwork, load_inference_network
from picopose_cli.pose.pipeline import DEFAULT_BATCH_SIZE
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.inputs import make_image_tasks
from picopose_cli.runs.scores import score_file
from picopose_cli.scoring.detection import DetectionScores
from picopose_cli.scoring.localisation import LocalisationScores
from picopose_cli.templates.bank import bank_path, read_bank

NOISY = "noisy"
"""Kind of detections of which many are wrong, for the detection task."""
PROGRESS_EVERY = 5
"""Groups of images between two lines about the progress."""


@dataclass(frozen=True)
class Settings:
    """What a benchmark runs with, whatever the data set: `workers` are processes that render and score."""

    work: Path
    weights: Path
    device: str
    precision: str
    workers: int


@dataclass(frozen=True)
class Bench:
    """A data set, its banks and its result files; `detections` are files by kind of mask."""

    dataset: Dataset
    detections: dict[str, Path]
    banks_dir: Path
    results_dir: Path
    settings: Settings

    def render(self) -> None:
        """Render the banks that are missing; raises PicoPoseError when a mesh cannot be rendered."""
        root, workers = self.dataset.root, self.settings.workers
        options = RenderTemplatesOptions(root.name, root.parent, templates=self.banks_dir, workers=workers)
        report = render_templates.run(options)
        if report.failed:
            raise PicoPoseError("; ".join(report.failed.values()), where=root, fix="repair or remove these meshes")

    def path(self, variant: Variant | InferLine, masks: str) -> Path:
        """Return the path of a variant's result file."""
        name, split = self.dataset.name, self.dataset.result_split
        return self.results_dir / result_file_name(f"{variant.slug}-{masks}", name, split)

    def make_missing(self, variants: Sequence[Variant], masks: str, console: Console) -> None:
        """Write the result files that are missing, by one pass of the network for each kind of flows."""
        missing = dict.fromkeys(variant.flows for variant in variants if not self.path(variant, masks).is_file())
        if missing:
            console.print(f"{self.dataset.name}: template features: {self._onboard_s():.0f} s")
        for flows in missing:
            self.make([variant for variant in variants if variant.flows == flows], masks, console)

    def make(self, variants: Sequence[Variant], masks: str, console: Console) -> None:
        """Write the result files of variants with the same flows; groups in the journal are not done again."""
        flows = variants[0].flows
        groups = plan_groups(self.tasks(masks), DEFAULT_BATCH_SIZE)
        journal = self.results_dir / f"{flows}-{masks}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        done = read_journal(journal)
        run_pass, started, begun = self._pass(variants), time.perf_counter(), len(done)
        for number, group in enumerate(groups[begun:], start=begun + 1):
            done.append(run_pass(group))
            with journal.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            if number % PROGRESS_EVERY == 0 or number == len(groups):
                spent_s = time.perf_counter() - started
                left_s = spent_s / (number - begun) * (len(groups) - number)
                what = f"{self.dataset.name}, {masks} masks, {flows}: {number}/{len(groups)} groups"
                console.print(f"{what}, {spent_s:.0f} s, about {left_s / 60:.0f} min left")
        for variant in variants:
            rows = [row for record in done for row in record[variant.slug]]
            estimates = [
                PoseEstimate(scene_id, im_id, obj_id, score, np.array(T), time_s)
                for scene_id, im_id, obj_id, score, T, time_s in rows
            ]
            write_results(self.path(variant, masks), estimates)

    def tasks(self, masks: str) -> list[ImageTask]:
        """Return the images with the detections that are estimated."""
        targets = read_image_targets(self.dataset) if masks == NOISY else read_targets(self.dataset)
        return make_image_tasks(self.dataset, targets, read_detections(self.detections[masks]).by_image)

    def matcher(self, flows: str) -> TimedMatcher:
        """Return a new matcher that gives these flows (see `Variant.flows`)."""
        return TimedMatcher(self._network, self._store, RULES_OF_FLOWS[flows])

    def score(self, variant: Variant | InferLine, masks: str) -> LocalisationScores:
        """Score a variant's result file as `picopose score` does."""
        scores = self._score(variant, masks, "bop19")
        assert isinstance(scores, LocalisationScores)
        return scores

    def score_detection(self, variant: Variant) -> DetectionScores:
        """Score a variant's result file of the detection task as `picopose score --targets bop24` does."""
        scores = self._score(variant, NOISY, "bop24")
        assert isinstance(scores, DetectionScores)
        return scores

    def _score(self, variant: Variant | InferLine, masks: str, targets: str) -> LocalisationScores | DetectionScores:
        path, root, workers = self.path(variant, masks), self.dataset.root, self.settings.workers
        split = self.dataset.split
        options = ScoreOptions((path,), root.parent, dataset=root.name, split=split, targets=targets, workers=workers)
        return score_file(path, options).scores

    def _pass(self, variants: Sequence[Variant]) -> Pass:
        flows = variants[0].flows
        if flows == "truth":
            return TruthPass(self._network, self.matcher("searched"), self._banks, self.truths)
        return InferencePass(variants, self.matcher(flows), load_local_features(self._network.device), self.renderer)

    def _onboard_s(self) -> float:
        """Compute the template features, if that is not done yet, and return the seconds that it took."""
        started = time.perf_counter()
        _ = self._store
        return time.perf_counter() - started

    @cached_property
    def _banks(self) -> dict[int, TemplateBank]:
        return {obj_id: read_bank(bank_path(self.banks_dir, obj_id)) for obj_id in object_ids(self.dataset)}

    @cached_property
    def _network(self) -> InferenceNetwork:
        settings = self.settings
        precision = choose_precision(settings.precision, settings.device)
        return load_inference_network(settings.weights, device=settings.device, precision=precision)

    @cached_property
    def _store(self) -> TemplateStore:
        store, infos = TemplateStore(self._network), read_object_infos(self.dataset)
        for obj_id, bank in with_progress_bar(self._banks.items(), len(self._banks), "templates"):
            info = infos.get(obj_id)
            store.add_object(bank, info=info if info is not None and info.is_symmetric else None)
        return store

    @cached_property
    def renderer(self) -> EstimateRenderer:
        """Renders the data set's objects."""
        return EstimateRenderer({obj_id: (mesh_path(self.dataset, obj_id), "mm") for obj_id in self._banks})

    @cached_property
    def truths(self) -> dict[tuple[int, int, int], Array]:
        """The true poses (4,4) by (scene_id, im_id, obj_id), of images that show each object once."""
        return {
            (scene_id, im_id, instance.obj_id): instance.T_cam_from_obj
            for scene_id in self.dataset.scene_ids()
            for im_id, instances in read_ground_truth(self.dataset, scene_id).items()
            for instance in instances
        }


def with_progress_bar(
    items: Iterable[tuple[int, TemplateBank]], count: int, what: str
) -> Iterable[tuple[int, TemplateBank]]:
    """Yield the items with a bar on a terminal."""
    return track(items, what, total=count, transient=True, disable=not sys.stdout.isatty())


def read_journal(path: Path) -> list[Record]:
    """Return the finished groups of a pass; a last line that was cut off is removed from the file."""
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]
