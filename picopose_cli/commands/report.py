"""`picopose report`: result files as one HTML page with scores, times and the pictures of all estimates."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from picopose_cli import __version__
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import require_writable
from picopose_cli.base.guide_options import ReportOptions
from picopose_cli.base.options import resolve_dataset
from picopose_cli.bop.datasets import Dataset, open_dataset
from picopose_cli.bop.result_names import parse_result_name
from picopose_cli.bop.results import counted_rows, read_results, select_rows
from picopose_cli.bop.targets import choose_targets
from picopose_cli.pictures.judged_results import MAX_CORRECT_MSSD, JudgedResults, judge_results
from picopose_cli.pictures.report_gallery import Gallery, longest_side_px, make_gallery
from picopose_cli.pictures.report_page import write_page
from picopose_cli.pictures.result_overlays import result_images
from picopose_cli.runs.progress import add_bar, progress_bar
from picopose_cli.runs.result_summary import ResultSummary, place_of, summarise, task_of


@dataclass(frozen=True)
class PageReport:
    """The page that was written."""

    path: Path
    size_bytes: int
    exit_code: int = 0


def run(options: ReportOptions) -> PageReport:
    """Write a page about result files of one data set; see `picopose report --help`.

    Raises PicoPoseError when a result file or the data set cannot be read, or the page cannot be written.
    """
    console, started = Console(markup=False, highlight=False, soft_wrap=True), time.perf_counter()
    require_writable(options.output)
    judged = [_judge(path, options) for path in options.results]
    if len({one.dataset.split_dir.resolve() for one in judged}) > 1:
        names = ", ".join(sorted({f"{one.dataset.name} {one.dataset.split}" for one in judged}))
        raise PicoPoseError(f"the result files are of several data sets ({names})", fix="make a report of each")
    summaries = [summarise(path, options) for path in options.results]
    count = len({image for one in judged for image in result_images(one)})
    with progress_bar(console) as progress:
        bar = add_bar(progress, "images", count, "images")
        gallery = make_gallery(judged, lambda done: progress.advance(bar, done))
    size = write_page(options.output, _content(judged, summaries, gallery, count))
    for summary in summaries:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in summary.metrics.items()) or "no scores"
        console.print(f"{summary.name}: {scores}")
        for note in (note for note in summary.notes if note.startswith("not scored")):
            console.print(f"{summary.name}: {note}")
    for problem in gallery.problems[:5]:
        console.print(f"problem: {problem}")
    pictures = f"{len(gallery.estimates)} estimates on {count} images of at most {longest_side_px(count)} px"
    console.print(f"{pictures}, {size / 1e6:.1f} MB, {time.perf_counter() - started:.1f} s -> {options.output}")
    return PageReport(options.output, size)


def _judge(path: Path, options: ReportOptions) -> JudgedResults:
    table = read_results(path)
    kept = np.asarray(np.isfinite(table.T_cam_from_obj).all(axis=(1, 2)))
    dataset, finite = _open_dataset(path, options), replace(select_rows(table, kept), not_finite=())
    try:
        counted = counted_rows(finite, choose_targets(dataset, task_of(path, options)).targets)
    except PicoPoseError:  # no targets: every row may count
        counted = finite
    judged = judge_results(dataset, counted, options.mesh_unit)
    if not table.not_finite:
        return judged
    lost = f"{path.name}: {len(table.not_finite)} rows have a number that is not finite and are not shown"
    return replace(judged, problems=(*judged.problems, lost))


def _open_dataset(path: Path, options: ReportOptions) -> Dataset:
    name, data_dir, split = place_of(path, options)
    dataset, folder = resolve_dataset(name or parse_result_name(path).dataset, data_dir)
    return open_dataset(dataset, folder, split=split)


def _content(
    judged: list[JudgedResults], summaries: list[ResultSummary], gallery: Gallery, count: int
) -> dict[str, Any]:
    dataset, has_truth = judged[0].dataset, any(one.has_truth for one in judged)
    right = f"right: MSSD to the nearest instance within {MAX_CORRECT_MSSD:.0%} of the object's diameter."
    compared = f"The outline of an estimate is green where it is right, red elsewhere, of the truth dashed; {right}"
    plain = "There is no ground truth to compare with: poses are ranked by their score."
    return {
        "subtitle": f"{dataset.name}, {dataset.split}; made by picopose {__version__} on {time.strftime('%Y-%m-%d')}",
        "meaning": right if has_truth else plain,
        "gallery_note": f"{compared if has_truth else plain} Images are stored with {longest_side_px(count)} px.",
        "max_error": MAX_CORRECT_MSSD,
        "has_truth": has_truth,
        "files": [
            asdict(summary)
            | {
                "estimates": len(one.error),
                "images": len(result_images(one)),
                "right": int((one.error <= MAX_CORRECT_MSSD).sum()) if one.has_truth else None,
            }
            for one, summary in zip(judged, summaries, strict=True)
        ],
        **asdict(gallery),
    }
