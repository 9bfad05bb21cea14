"""`picopose demo`: all steps from models to scores and pictures, on a small data set that it makes."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, file_sha256, require_writable
from picopose_cli.base.guide_options import DemoOptions, ReportOptions
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.bop.datasets import mesh_path, open_dataset, read_scene_cameras
from picopose_cli.bop.json_files import read_json_object
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.devices import choose_device
from picopose_cli.pictures.judged_results import LEGEND, JudgedResults
from picopose_cli.pictures.result_overlays import draw_result_overlays
from picopose_cli.runs.example import Example, folder_size, write_example
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset

DATASET, SEED = "demo", 2
RESULTS_NAME, SCORES_NAME, OVERLAYS_NAME = "picopose_demo-test.csv", "scores.json", "overlays"
PAGE_NAME, EXAMPLE_NAME = "report.html", "example"
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
    report: Callable[[ReportOptions], Report],
) -> DemoReport:
    """Make a data set, run four commands on it and draw the poses; see `picopose demo --help`.

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
    dataset = open_dataset(DATASET, output)
    with _timed(seconds, "pictures"):
        judged = draw_result_overlays(dataset, results, output / OVERLAYS_NAME)
        reports.append(report(ReportOptions((results,), output, DATASET, output=output / PAGE_NAME, workers=1)))
    example = _write_example(judged, output / EXAMPLE_NAME, options.weights)
    console.print("time: " + ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()))
    correct = tuple(bool(judged.is_correct(row)) for row in range(len(judged.error)))
    again = replace(_infer_options(options, root, None), dataset=str(root), data_dir=None, restart=False)
    commands = [
        shlex.join([*_program(), "infer", *command_line(again)]),
        shlex.join([*_program(), *example.arguments]),
        shlex.join([_python(), str(example.script)]),
    ]
    for line in _closing_lines(output, correct, commands):
        console.print(line)
    return DemoReport(output, correct, max(one.exit_code for one in reports))


def _write_example(judged: JudgedResults, folder: Path, weights: Path | None) -> Example:
    """Write an example of the estimate with the smallest error."""
    row, dataset, table = int(judged.error.argmin()), judged.dataset, judged.table
    nearest = judged.nearest[row]
    assert nearest is not None  # the demo's ground truth is complete
    scene_id, im_id = int(table.scene_id[row]), int(table.im_id[row])
    K = read_scene_cameras(dataset, scene_id)[im_id].K
    assert K is not None
    return write_example(
        folder,
        image=dataset.image_path(scene_id, im_id),
        mask=dataset.mask_visib_path(scene_id, im_id, nearest.gt_id),
        mesh=mesh_path(dataset, int(table.obj_id[row])),
        K=K,
        weights=weights,
    )


def _program() -> list[str]:
    """Return how this picopose is called from here: not every environment is activated."""
    return ["picopose"] if shutil.which("picopose") else [_python(), "-m", "picopose_cli"]


def _python() -> str:
    found = shutil.which("python")
    return "python" if found and Path(found).absolute() == Path(sys.executable).absolute() else sys.executable


def _closing_lines(output: Path, correct: Sequence[bool], commands: Sequence[str]) -> list[str]:
    """Return what a newcomer needs to know at the end: the meaning of the figures, the files and the next commands."""
    recall = read_json_object(output / SCORES_NAME).get("bop19_average_recall")
    features, total = folder_size(output, "*.features-*.h5"), folder_size(output)
    return [
        f"{sum(correct)} of {len(correct)} poses are correct by a strict measure: {LEGEND[0]} (MSSD: the largest "
        "distance of a point of the object from its true place)",
        f"AR {recall:.4f}: BOP's score, from 0 to 1: the share of objects found, a mean over three errors and "
        "thresholds from strict to generous",
        "both are those of the small network that ships with picopose, for trying it out",
        f"size: {total / 1e6:.0f} MB in {output}, of which {features / 1e6:.0f} MB are template features "
        "(*.features-*.h5): they can be deleted and are computed again when needed",
        f"report: {output / PAGE_NAME} (open it in a browser), pictures: {output / OVERLAYS_NAME}",
        "next, on the same data, as on your own:",
        *(f"  {command}" for command in commands),
    ]


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
