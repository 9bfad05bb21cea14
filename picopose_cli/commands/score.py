"""`picopose score`: the scores of result files, as the BOP toolkit computes them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from picopose_cli.base.options import ScoreOptions
from picopose_cli.bop.targets import kind_of
from picopose_cli.bop.toolkit import find_script
from picopose_cli.pictures.score_plots import plot_scores
from picopose_cli.runs.cluster import open_cluster
from picopose_cli.runs.cluster_scores import scored_on_cluster
from picopose_cli.runs.scores import (
    by_name,
    print_scores,
    print_toolkit_comparison,
    scored_here,
    scores_and_failures,
    write_summaries,
)

WIDE_COLUMNS = 160
"""Width of the tables when the output is not a terminal."""


@dataclass(frozen=True)
class ScoreReport:
    """The result of `picopose score`: the exit code, and each file's scores under the toolkit's names."""

    exit_code: int
    scores: dict[str, dict[str, Any]]


def run(options: ScoreOptions) -> ScoreReport:
    """Score each result file, print the tables and write the chosen outputs.

    Raises PicoPoseError when no file can be scored; of several, those that cannot are reported (exit code 1).
    """
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDE_COLUMNS)
    if options.toolkit:
        find_script(kind_of(options.targets))  # fails before the work, not after
    with nullcontext() if options.ray is None else open_cluster(options.ray) as cluster:
        outcomes = scored_here(options) if cluster is None else scored_on_cluster(options, cluster)
        files, failures = scores_and_failures(outcomes)
    summaries = by_name(files, lambda file: file.scores.summary(per_object=options.per_object))
    print_scores(console, files, options)
    if options.output is not None:
        write_summaries(options.output, summaries, options)
    if options.plot is not None:
        plot_scores(options.plot, by_name(files, lambda file: file.scores))
    if options.toolkit:
        failures += print_toolkit_comparison(console, files, options)
    for failure in failures:
        console.print(f"failed: {failure}", soft_wrap=True)
    return ScoreReport(1 if failures else 0, summaries)
