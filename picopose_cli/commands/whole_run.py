"""`picopose run`: from models and images to scores and a page, each step where the last one ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.guide_options import ReportOptions, RunOptions
from picopose_cli.base.options import CheckOptions, InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.runs.whole_run import finished_output, open_whole_run, plan_lines, task_of


class Report(Protocol):
    """What every command returns."""

    @property
    def exit_code(self) -> int:
        """0 on success."""


@dataclass(frozen=True)
class WholeReport:
    """The highest exit code of the steps."""

    exit_code: int


@dataclass(frozen=True)
class Steps:
    """The commands, which are passed by the caller because commands never import each other."""

    render_templates: Callable[[RenderTemplatesOptions], Report]
    infer: Callable[[InferOptions], Report]
    check: Callable[[CheckOptions], Report]
    score: Callable[[ScoreOptions], Report]
    report: Callable[[ReportOptions], Report]


def run(options: RunOptions, steps: Steps) -> WholeReport:
    """Print the plan and do its steps; see `picopose run --help`.

    Raises PicoPoseError when a step cannot be done; what earlier ones made is kept.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    whole = open_whole_run(options)
    console.print(f"plan for {whole.dataset.split_dir}:")
    for line in plan_lines(whole):
        console.print(f"  {line}")
    if options.plan:
        return WholeReport(0)
    place = (options.data_dir, options.dataset, whole.dataset.split)
    _title(console, "render-templates")
    codes = [steps.render_templates(whole.render).exit_code]
    _title(console, "infer")
    if finished_output(whole):
        console.print(f"{whole.output} is finished, with the same inputs and options: kept")
    else:
        codes.append(steps.infer(whole.infer).exit_code)
    _title(console, "check")
    # its warnings are of the result file; what of the input could not be used is in the code of infer
    if steps.check(CheckOptions(whole.output, *place, targets=options.targets)).exit_code > 1:
        raise PicoPoseError("the toolkit would reject the result file", where=whole.output, fix="see the lines above")
    if whole.dataset.has_public_gt:
        _title(console, "score")
        targets = options.targets or task_of(whole)
        codes.append(steps.score(ScoreOptions((whole.output,), *place, targets=targets)).exit_code)
    _title(console, "report")
    codes.append(steps.report(ReportOptions((whole.output,), *place, output=whole.page)).exit_code)
    return WholeReport(max(codes))


def _title(console: Console, text: str) -> None:
    console.print(f"\n== {text}")
