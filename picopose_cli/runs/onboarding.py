"""Onboarding: the template features of every object of a run, computed or read before the first image."""

from __future__ import annotations

import time
from functools import partial

from rich.progress import Progress

from picopose_cli.base.environment import available_cores
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network.devices import limit_threads
from picopose_cli.pose.feature_file import FeatureFile, feature_file
from picopose_cli.pose.inference_network import load_inference_network
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.rules import make_rules
from picopose_cli.pose.template_store import TemplateStore
from picopose_cli.runs.inputs import RunInputs, detected_objects
from picopose_cli.runs.objects import ObjectInputs
from picopose_cli.runs.progress import add_bar
from picopose_cli.runs.run import Run
from picopose_cli.templates.bank import read_bank


def open_matcher(inputs: RunInputs) -> Matcher:
    """Return the matcher of a run, with the network loaded and without objects."""
    limit_threads(available_cores())
    network = load_inference_network(inputs.weights, device=inputs.devices[0], precision=inputs.precision)
    rules = make_rules(inputs.options.rules, inputs.options.hypotheses)
    return Matcher(network, TemplateStore(network), rules, inputs.refined_objects)


def onboard(store: TemplateStore, run: Run, progress: Progress) -> None:
    """Add every object that the images left to estimate need.

    An object whose bank is damaged is left out and recorded in the report.
    """
    started = time.perf_counter()
    usable = run.inputs.usable_objects
    needed = detected_objects(task for group in run.groups for task in group)
    for found in (usable[obj_id] for obj_id in needed if obj_id in usable):
        try:
            bank = read_bank(found.bank)
        except PicoPoseError as error:
            run.report.problems.append(f"object {found.obj_id}: {error}")
            continue
        bar = add_bar(progress, f"object {found.obj_id}", len(bank.crops_rgb), "views")
        file = _feature_file(run.inputs, found)
        store.add_object(bank, file=file, info=found.symmetries, on_progress=partial(progress.advance, bar))
        progress.remove_task(bar)
    run.report.onboarding_s = time.perf_counter() - started


def _feature_file(inputs: RunInputs, found: ObjectInputs) -> FeatureFile | None:
    if not inputs.options.cache:
        return None
    return feature_file(
        found.bank, weights_sha256=inputs.weights_sha256, precision=inputs.precision, device=inputs.devices[0]
    )
