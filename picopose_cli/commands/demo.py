"""`picopose demo`: all steps from models to scores and pictures, on a small data set that it makes."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, file_sha256, require_writable
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import DemoOptions, InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.devices import choose_device
from picopose_cli.pictures.judged_results import LEGEND
from picopose_cli.pictures.result_overlays import draw_result_overlays
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset

DATASET, SEED = "demo", 2
RESULTS_NAME, SCORES_NAME, OVERLAYS_NAME = "picopose_demo-test.csv", "scores.json", "overlays"
MARK_NAME = "demo.json"
"""Marks a folder as a demo's and holds the demo's size."""


class Report(Protocol):
    """What every command returns."""

    @property
    def exit_code(self) -> int:
        """0 on success."""


@dataclass(frozen=True)
class DemoReport:
    """The outcome of a demo; `correct` marks each estimate, in the order of the result file, that is drawn green."""

    output: Path
    correct: tuple[bool, ...]
    exit_code: int
    """The highest exit code of the commands that were run."""


def run(
    options: DemoOptions,
    render_templates: Callable[[RenderTemplatesOptions], Report],
    infer: Callable[[InferOptions], Report],
    score: Callable[[ScoreOptions], Report],
) -> DemoReport:
    """Make a data set, run three commands on it and draw the poses; see `picopose demo --help`.

    The commands are passed by the caller, because commands never import each other. Raises PicoPoseError when the
    weights, the device or the output folder cannot be used.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    output, results, seconds = options.output, options.output / RESULTS_NAME, dict[str, float]()
    _check_inputs(options)
    _claim_folder(options)
    with _timed(seconds, "data"):
        root = write_procedural_dataset(output, DATASET, objects=options.objects, images=options.images, seed=SEED)
    with _timed(seconds, "templates"):
        reports = [render_templates(RenderTemplatesOptions(DATASET, output, renderer="software"))]
    with _timed(seconds, "poses"):
        reports.append(infer(_infer_options(options, root, results)))
    with _timed(seconds, "scores"):
        # one worker: processes would be forked from this one, which has threads by now
        reports.append(score(ScoreOptions((results,), output, output=output / SCORES_NAME, workers=1)))
    with _timed(seconds, "pictures"):
        judged = draw_result_overlays(open_dataset(DATASET, output), results, output / OVERLAYS_NAME)
    correct = [bool(judged.is_correct(row)) for row in range(len(judged.error))]
    console.print("time: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()))
    again = shlex.join(
        ["picopose", "infer", *command_line(replace(_infer_options(options, root, None), restart=False))]
    )
    console.print(f"the data set can be used again, for example: {again}")
    console.print(f"{sum(correct)} of {len(correct)} poses are correct ({LEGEND[0]}): {output / OVERLAYS_NAME}")
    return DemoReport(output, tuple(correct), max(report.exit_code for report in reports))


def _check_inputs(options: DemoOptions) -> None:
    """Raise PicoPoseError before the work when the weights or the device cannot be used."""
    file_sha256(options.weights or bundled_weights())
    choose_device(options.device)


def _infer_options(options: DemoOptions, root: Path, results: Path | None) -> InferOptions:
    return InferOptions(
        DATASET,
        options.output,
        detections=str(root / DETECTIONS["rough"]),
        weights=options.weights,
        output=results,
        device=options.device,
        restart=True,  # the data set was made again
    )


def _claim_folder(options: DemoOptions) -> None:
    """Mark the output folder as a demo's; raises PicoPoseError when it holds anything else, or a demo of another size.

    A demo overwrites its own files and deletes none, so files of another size would remain among the new ones.
    """
    mark = options.output / MARK_NAME
    require_writable(mark)
    size = {"objects": options.objects, "images": options.images}
    content = (json.dumps(size) + "\n").encode()
    if any(options.output.iterdir()) and not (mark.is_file() and mark.read_bytes() == content):
        fix = "choose a new or empty folder with --output"
        raise PicoPoseError("holds something other than a demo of this size", where=options.output, fix=fix)
    atomic_write_bytes(mark, content)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
