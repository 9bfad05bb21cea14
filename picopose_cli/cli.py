"""The command line: Typer commands made from the option dataclasses, and errors turned into exit codes.

Exit codes: 0 all done, 1 done but part of the input could not be used (listed in the report), 2 nothing done, 70 a bug
(a traceback), 130 and 143 stopped by Ctrl-C and SIGTERM.
Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_type_hints

import typer

from picopose_cli.base.environment import prepare_process
from picopose_cli.base.errors import BUG_EXIT_CODE, PicoPoseError
from picopose_cli.base.guide_options import (
    DemoOptions,
    DoctorOptions,
    DownloadOptions,
    EstimateOptions,
    ReconstructOptions,
    ReportOptions,
    RunOptions,
)
from picopose_cli.base.interrupts import stoppable
from picopose_cli.base.logs import log_to_file, silenced, start_log
from picopose_cli.base.option_fields import OptionField, option_fields, value_text
from picopose_cli.base.options import CheckOptions, InferOptions, MergeOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.base.train_options import TrainOptions

Command = Callable[[Any], int]
"""Runs a command with its options and returns the exit code; the docstring is the help, the annotation the options."""

app = typer.Typer(
    name="picopose",
    help="6D poses of unseen objects for BOP: render templates, infer, score.",
    rich_markup_mode=None,  # rich markup would swallow units such as [px]
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def demo(options: DemoOptions) -> int:
    """Generate a small data set and run all steps on it.

    Renders templates, estimates the poses, scores and draws them. Needs no data, download or GPU.
    """
    from picopose_cli.commands import demo as command
    from picopose_cli.commands import infer, render_templates, report, score

    return command.run(options, render_templates.run, infer.run, score.run, report.run).exit_code


def download(options: DownloadOptions) -> int:
    """Fetch BOP data sets, detections or weights.

    Data sets and default detections come from BOP's repositories at Hugging Face (HF_ENDPOINT and HF_TOKEN count), the
    released network from its authors' Google Drive. Files are checked and unpacked where the other commands look for
    them. The same command continues a stopped download.
    """
    from picopose_cli.commands import download as command

    return command.run(options).exit_code


def render_templates(options: RenderTemplatesOptions) -> int:
    """Render CAD models into template banks (HDF5).

    Writes one file per object. Finished banks are kept, so the same command continues a stopped run.
    """
    from picopose_cli.commands import render_templates as command

    return command.run(options).exit_code


def reconstruct(options: ReconstructOptions) -> int:
    """Make a mesh of an object from photographs of it.

    For objects without a CAD model. Needs photographs from all around with camera poses and masks. Writes a coloured
    mesh that render-templates takes, models_info.json, a quality report, and a picture of photographs beside renders.
    """
    from picopose_cli.commands import reconstruct as command

    return command.run(options).exit_code


def infer(options: InferOptions) -> int:
    """Estimate the poses of a split and write a BOP CSV.

    Writes a JSON report beside the result file. The same command continues a stopped run.
    """
    from picopose_cli.commands.early_checks import check_names

    check_names(options)

    from picopose_cli.commands import infer as command

    return command.run(options).exit_code


def estimate(options: EstimateOptions) -> int:
    """Estimate poses in single images, without a BOP folder.

    Needs a mesh, a mask or box of the object and the camera. Writes the poses as JSON and draws them. The templates of
    a mesh are made once and kept in a cache.
    """
    from picopose_cli.commands import estimate as command

    return command.run(options).exit_code


def merge(options: MergeOptions) -> int:
    """Join the result files of the shards of one run.

    The reports beside them are joined, too. All shards must be complete and of the same run.
    """
    from picopose_cli.commands import merge as command

    return command.run(options).exit_code


def check(options: CheckOptions) -> int:
    """Find errors in a result file before its upload.

    Also in detections before a run: what infer would do with them. Exit code 0: no finding, 1: only warnings, 2: the
    BOP toolkit would reject the result file, or infer the detections.
    """
    from picopose_cli.commands import check as command

    return command.run(options).exit_code


def score(options: ScoreOptions) -> int:
    """Score result files as the BOP toolkit does."""
    from picopose_cli.commands import score as command

    return command.run(options).exit_code


def report(options: ReportOptions) -> int:
    """Write an HTML page with scores and all estimates.

    One self-contained file for a browser: scores and recall curves where there is ground truth, times, what was
    skipped, and a gallery of the estimates; two result files are also compared. Data set and split of a file that
    picopose infer wrote are known.
    """
    from picopose_cli.commands import report as command

    return command.run(options).exit_code


def run_all(options: RunOptions) -> int:
    """Do all steps: templates, poses, check, scores, report.

    Prints first what is there, what will be made, and about how long that takes. The same command continues a stopped
    run; what is finished is kept.
    """
    from picopose_cli.commands import check, infer, render_templates, report, score
    from picopose_cli.commands import whole_run as command

    steps = command.Steps(render_templates.run, infer.run, check.run, score.run, report.run)
    return command.run(options, steps).exit_code


def doctor(options: DoctorOptions) -> int:
    """Find out what works here, and how to mend the rest.

    Looks at Python, PyTorch, GPU, renderer, memory, disk and weights; with a data set also at its models, images,
    targets, detections, template banks and ground truth. Exit code 0: nothing is red, 1: something is.
    """
    from picopose_cli.commands import doctor as command

    return command.run(options).exit_code


def train(options: TrainOptions) -> int:
    """Train a network from random or given weights.

    The same command continues a stopped run from its newest checkpoint.
    """
    from picopose_cli.commands import train as command

    return command.run(options).exit_code


COMMANDS: dict[str, Command] = {
    "demo": demo,
    "download": download,
    "reconstruct": reconstruct,
    "render-templates": render_templates,
    "infer": infer,
    "estimate": estimate,
    "merge": merge,
    "check": check,
    "score": score,
    "report": report,
    "run": run_all,
    "doctor": doctor,
    "train": train,
}
"""The commands by name, in the order of the help."""
STOPPED = {
    "download": "what is here is kept; run the same command again to continue",
    "run": "finished steps and images are kept; run the same command again to continue",
    "demo": "run the same command again to make the demo from the beginning",
    "render-templates": "finished banks are kept; run the same command again to continue",
    "infer": "nothing was estimated yet; run the same command again",
    "train": "run the same command again to continue from the newest checkpoint",
}
"""What to do after Ctrl-C, where it is not simply the same command again."""


def options_type(command: Command) -> Any:
    """Return the option dataclass of a command."""
    return get_type_hints(command)["options"]


def typer_function(name: str, command: Command) -> Callable[..., None]:
    """Return a function with a parameter per option, as Typer expects it, that runs the command.

    Ctrl-C and SIGTERM end it by StoppedError.
    """
    fields = option_fields(options_type(command))

    def run(**values: Any) -> None:
        options = options_type(command)(**{one.name: one.parse(values[one.name]) for one in fields})
        with stoppable(lambda: f"stopped; {STOPPED.get(name, 'run the same command again')}"):
            exit_code = command(options)
        raise typer.Exit(exit_code)

    run.__signature__ = inspect.Signature([_parameter(one) for one in fields])  # type: ignore[attr-defined]
    return run


def _parameter(one: OptionField) -> inspect.Parameter:
    """Return an option as a Typer parameter; a list is text for an option and a Python list for an argument."""
    texts: dict[str, Any] = {"help": one.help, "show_default": False, "metavar": one.value or None}
    default, kind = ... if one.required else one.default, one.type
    if one.info.argument:
        kind = GenericAlias(list, one.item_type) if one.item_type else kind
        declared = typer.Argument(default, **texts)
    else:
        default, kind = (value_text(default), str) if one.item_type else (default, kind)
        declared = typer.Option(default, one.declaration, **texts)
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=kind)


for _name, _command in COMMANDS.items():
    app.command(_name, help=inspect.getdoc(_command))(typer_function(_name, _command))


def _print_version(value: bool) -> None:
    if value:
        from picopose_cli.base.environment import environment_lines

        typer.echo("\n".join(environment_lines()))
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print log messages.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings of the log only.")] = False,
    log_file: Annotated[
        Path | None, typer.Option("--log-file", metavar="FILE", help="Append versions, log and errors to this file.")
    ] = None,
    version: Annotated[  # noqa: ARG001 - Typer calls the callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    if verbose and quiet:
        raise PicoPoseError("--quiet and --verbose exclude each other", fix="pass one of them")
    start_log(verbose=verbose, file=log_file)
    if quiet:
        context.with_resource(silenced())


def main() -> None:
    """Run the command line.

    A PicoPoseError becomes one line on stderr and its exit code, 2 except for stopped runs. Any other exception is a
    bug: its traceback, and an exit code of its own, since Python's 1 means that part of the input could not be used.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own line says what is wrong with a file
    prepare_process()
    try:
        app(prog_name="picopose")
    except PicoPoseError as error:
        typer.echo(f"picopose: {error}", err=True)
        log_to_file(str(error))
        sys.exit(error.exit_code)
    except Exception:  # noqa: BLE001 - reported whole
        traceback.print_exc()
        log_to_file(traceback.format_exc())
        sys.exit(BUG_EXIT_CODE)
