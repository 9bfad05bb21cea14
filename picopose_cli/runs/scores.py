"""The scores of result files, computed and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, remove_leftovers
from picopose_cli.base.options import ScoreOptions
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.targets import ChosenTargets
from picopose_cli.bop.toolkit import run_toolkit
from picopose_cli.runs.score_inputs import ScoreInputs, read_score_inputs
from picopose_cli.scoring.detection import DetectionScores, detection_precisions
from picopose_cli.scoring.localisation import LocalisationScores, localisation_tallies
from picopose_cli.scoring.pair_errors import PairErrors
from picopose_cli.scoring.parallel import score_images
from picopose_cli.scoring.tables import Scores, comparison_table, difference_table, scores_tables

Value = TypeVar("Value")


@dataclass(frozen=True)
class ScoredFile:
    """The scores of one result file, with remarks for the user."""

    path: Path
    dataset: Dataset
    targets: ChosenTargets
    scores: Scores
    notes: tuple[str, ...]


def scored_here(options: ScoreOptions) -> Iterator[ScoredFile | PicoPoseError]:
    """Yield the scores of each result file, or why it cannot be scored, in their order."""
    for path in options.results:
        try:
            yield score_file(path, options)
        except PicoPoseError as error:
            yield error


def scores_and_failures(
    outcomes: Iterable[ScoredFile | PicoPoseError],
) -> tuple[list[ScoredFile], list[PicoPoseError]]:
    """Return the scores of the result files, and the errors of those that cannot be scored.

    Raises PicoPoseError when none can.
    """
    files, failures = list[ScoredFile](), list[PicoPoseError]()
    for outcome in outcomes:
        if isinstance(outcome, PicoPoseError):
            failures.append(outcome)
        else:
            files.append(outcome)
    if not files:
        raise failures[0]
    return files, failures


def score_file(path: Path, options: ScoreOptions) -> ScoredFile:
    """Return the scores of one result file; raises PicoPoseError when it or its data set cannot be used."""
    inputs = read_score_inputs(path, options)
    errors = _compute_errors(inputs, options.workers)
    if inputs.targets.kind == "bop24":
        scores: Scores = DetectionScores(detection_precisions(errors), inputs.mean_time_s)
    else:
        scores = LocalisationScores(localisation_tallies(errors), inputs.mean_time_s)
    return ScoredFile(path, inputs.dataset, inputs.targets, scores, inputs.notes)


def _compute_errors(inputs: ScoreInputs, workers: int) -> list[PairErrors]:
    """Return the errors of all objects in all images, in the order of the jobs."""
    results: list[list[PairErrors]] = [[] for _ in inputs.jobs]
    # no refresh thread: processes are forked while the bar is shown
    bar = Progress(console=Console(stderr=True), auto_refresh=False, transient=True, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task("images", total=len(inputs.jobs))
        for index, errors in score_images(inputs.scorer, inputs.jobs, workers):
            results[index] = errors
            bar.update(task, advance=1, refresh=True)
    return [pairs for errors in results for pairs in errors]


def by_name(files: Sequence[ScoredFile], value: Callable[[ScoredFile], Value]) -> dict[str, Value]:
    """Return `value` of each file, keyed by the files' stems, or by their paths where stems are equal."""
    stems = [file.path.stem for file in files]
    names = stems if len(set(stems)) == len(stems) else [str(file.path) for file in files]
    return {name: value(file) for name, file in zip(names, files, strict=True)}


def print_scores(console: Console, files: Sequence[ScoredFile], options: ScoreOptions) -> None:
    """Print the tables of one file or of each (`per_object`), the notes, and the comparison of several files."""
    for file in files:
        if len(options.results) == 1 or options.per_object:
            for table in scores_tables(f"{file.path.name} ({file.dataset.name}, {file.dataset.split})", file.scores):
                console.print(table)
            time_s = file.scores.mean_time_s
            console.print("mean time per image: " + ("unknown" if time_s is None else f"{time_s:.3f} s"))
        for note in file.notes:
            console.print(f"{file.path.name}: {note}", soft_wrap=True)
    if len(options.results) > 1:
        console.print(comparison_table(by_name(files, lambda file: file.scores)))


def print_toolkit_comparison(
    console: Console, files: Sequence[ScoredFile], options: ScoreOptions
) -> list[PicoPoseError]:
    """Print the toolkit's scores next to ours; return the errors of the files on which it failed."""
    failures = []
    for file in files:
        try:
            theirs = run_toolkit(file.path, file.dataset, file.targets, options.workers)
        except PicoPoseError as error:
            failures.append(error)
            continue
        ours = {key: value for key, value in file.scores.summary().items() if isinstance(value, float)}
        console.print(difference_table(f"{file.path.name} compared with the toolkit", ours, theirs))
    return failures


def write_summaries(path: Path, summaries: dict[str, dict[str, Any]], options: ScoreOptions) -> None:
    """Write the scores as JSON: those of one result file directly, of several by their names."""
    content = summaries if len(options.results) > 1 else next(iter(summaries.values()))
    remove_leftovers(path)
    atomic_write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
