"""Onboarding: the template features of every object of a run, computed or read before the first image."""

from __future__ import annotations

import time
from functools import partial

from rich.progress import Progress

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.picopose import store_in_bf16
from picopose_cli.pose.matcher import Estimator
from picopose_cli.pose.template_store import FeatureFile, feature_file
from picopose_cli.runs.inputs import RunInputs, detected_objects
from picopose_cli.runs.objects import ObjectInputs
from picopose_cli.runs.progress import add_bar
from picopose_cli.runs.run import Run
from picopose_cli.templates.bank import read_bank


def open_estimator(inputs: RunInputs) -> Estimator:
    """Return the estimator of a run, with the network loaded and without objects."""
    network = load_network(inputs.weights, inputs.devices[0])
    return Estimator(
        store_in_bf16(network) if inputs.precision == "bf16" else network,
        device=inputs.devices[0],
        precision=inputs.precision,
        hypotheses=inputs.options.hypotheses,
        paper=inputs.options.rules == "paper",
    )


def onboard(estimator: Estimator, run: Run, progress: Progress) -> set[int]:
    """Add every object that the images left to estimate need; return the ids of those that can be estimated.

    An object whose bank is damaged is left out and recorded in the report.
    """
    started = time.perf_counter()
    onboarded = set()
    usable = run.inputs.usable_objects
    needed = detected_objects(task for group in run.groups for task in group)
    for found in (usable[obj_id] for obj_id in needed if obj_id in usable):
        try:
            bank = read_bank(found.bank)
        except PicoPoseError as error:
            run.report.problems.append(f"object {found.obj_id}: {error}")
            continue
        bar = add_bar(progress, f"object {found.obj_id}", len(bank.crops_rgb), "views")
        estimator.add_object(bank, partial(progress.advance, bar), _feature_file(run.inputs, found), found.symmetries)
        progress.remove_task(bar)
        onboarded.add(found.obj_id)
    run.report.onboarding_s = time.perf_counter() - started
    return onboarded


def _feature_file(inputs: RunInputs, found: ObjectInputs) -> FeatureFile | None:
    if not inputs.options.cache:
        return None
    return feature_file(
        found.bank, weights_sha256=inputs.weights_sha256, precision=inputs.precision, device=inputs.devices[0]
    )
