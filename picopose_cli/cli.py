"""The command line: signatures, help, and errors turned into exit codes.

Exit codes: 0 all done, 1 done but part of the input could not be used (listed in the report), 2 nothing done.
Heavy modules are imported inside the commands, so that `--help` answers at once. Where a command's parameters are the
fields of its options, `locals()` at its beginning is all of them.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from picopose_cli import __version__
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import (
    DEFAULT_REFINE,
    MESH_UNITS,
    PRECISIONS,
    PRESETS,
    RENDERERS,
    RULES,
    SOURCES,
    TARGET_KINDS,
    TIMINGS,
    CheckOptions,
    DemoOptions,
    InferOptions,
    MergeOptions,
    RenderTemplatesOptions,
    ScoreOptions,
    TrainOptions,
)

app = typer.Typer(
    name="picopose",
    help="6D poses of unseen objects for BOP: render templates, infer, score.",
    rich_markup_mode=None,  # rich markup would swallow units such as [px]
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

DataDir = Annotated[
    Path | None, typer.Option(help="Folder above the data sets; default: the environment variable BOP_PATH.")
]
Templates = Annotated[
    Path | None, typer.Option(help="Folder of the template banks; default: templates/ inside the data set.")
]
Targets = Annotated[
    Path | None,
    typer.Option(
        help="Targets JSON of BOP19 (localisation) or BOP24 (detection); default: the data set's own, BOP19 first."
    ),
]
Split = Annotated[
    str | None, typer.Option(help="Split folder, for example test or val; default: the data set's test split.")
]
Models = Annotated[
    str | None, typer.Option(help="Models folder inside the data set; default: the data set's own rule.")
]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"picopose {__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what the modules do.")] = False,
    version: Annotated[  # noqa: ARG001 - Typer calls the callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


@app.command("render-templates")
def render_templates(
    dataset: Annotated[
        str | None, typer.Option(help="BOP data set, for example ycbv.")
    ] = RenderTemplatesOptions.dataset,
    data_dir: DataDir = RenderTemplatesOptions.data_dir,
    templates: Templates = RenderTemplatesOptions.templates,
    models: Models = RenderTemplatesOptions.models,
    object_ids: Annotated[str, typer.Option(help="Only these objects, for example 1,5; default: all.")] = "",
    from_images: Annotated[
        Path | None, typer.Option(help="Build the banks from ready-made template images in this folder.")
    ] = RenderTemplatesOptions.from_images,
    renderer: Annotated[str, typer.Option(help=f"One of {', '.join(RENDERERS)}.")] = RenderTemplatesOptions.renderer,
    mesh_unit: Annotated[
        str, typer.Option(help=f"Unit of the mesh files: one of {', '.join(MESH_UNITS)}.")
    ] = RenderTemplatesOptions.mesh_unit,
    workers: Annotated[
        int, typer.Option(help="Cores for objects side by side; default: all.", show_default=False)
    ] = RenderTemplatesOptions.workers,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Render again what is already there.")
    ] = RenderTemplatesOptions.overwrite,
    contact_sheet: Annotated[
        bool, typer.Option("--contact-sheet", help="Also write a PNG of all views of each object.")
    ] = RenderTemplatesOptions.contact_sheet,
) -> None:
    """Render the template views of each CAD model into one HDF5 bank an object."""
    options = RenderTemplatesOptions(
        dataset=dataset,
        data_dir=data_dir,
        templates=templates,
        models=models,
        object_ids=_parse_ids(object_ids),
        from_images=from_images,
        renderer=renderer,
        mesh_unit=mesh_unit,
        workers=workers,
        overwrite=overwrite,
        contact_sheet=contact_sheet,
    )
    from picopose_cli.commands import render_templates as command

    _finish(command.run(options))


@app.command()
def infer(
    dataset: Annotated[str, typer.Option(help="BOP data set, for example ycbv.")],
    data_dir: DataDir = InferOptions.data_dir,
    templates: Templates = InferOptions.templates,
    detections: Annotated[
        str | None, typer.Option(help="Detections JSON, or gt for the ground-truth masks; default: the official file.")
    ] = InferOptions.detections,
    weights: Annotated[
        Path | None,
        typer.Option(help="Network weights: .ckpt, .pth or .safetensors; default: the small network of the package."),
    ] = InferOptions.weights,
    split: Split = InferOptions.split,
    targets: Targets = InferOptions.targets,
    output: Annotated[
        Path | None, typer.Option(help="Result file; default: picopose_DATASET-SPLIT.csv here.")
    ] = InferOptions.output,
    hypotheses: Annotated[int, typer.Option(help="Templates tried for each detection.")] = InferOptions.hypotheses,
    rules: Annotated[str, typer.Option(help=f"One of {', '.join(RULES)} (the released ones).")] = InferOptions.rules,
    refine: Annotated[
        int | None,
        typer.Option(help=f"Rounds of rendering the estimate and matching again. [default: {DEFAULT_REFINE}]"),
    ] = InferOptions.refine,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda:N, several as in cuda:0,cuda:1, or all GPUs: all.")
    ] = InferOptions.device,
    precision: Annotated[str, typer.Option(help=f"One of {', '.join(PRECISIONS)}.")] = InferOptions.precision,
    batch_size: Annotated[
        int | None, typer.Option(help="Detections a network pass; default: what the device can take.")
    ] = InferOptions.batch_size,
    workers: Annotated[int, typer.Option(help="Threads that read images, and as many for PnP.")] = InferOptions.workers,
    limit: Annotated[int | None, typer.Option(help="Only the first N images.")] = InferOptions.limit,
    shard: Annotated[
        str | None, typer.Option(help="Only the i-th of n shares of the images, as i/n; picopose merge joins them.")
    ] = InferOptions.shard,
    timing: Annotated[
        str, typer.Option(help=f"How an image's time is measured: one of {', '.join(TIMINGS)} (one image at a time).")
    ] = InferOptions.timing,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an earlier run has finished.")
    ] = InferOptions.restart,
    profile: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of reading, crops, network and PnP here.")
    ] = InferOptions.profile,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep template features beside the banks, for another run.")
    ] = InferOptions.cache,
) -> None:
    """Estimate the pose of every detection of a split and write a BOP result file; again, to continue a killed run."""
    options = InferOptions(**locals())
    from picopose_cli.commands import infer as command

    _finish(command.run(options))


@app.command()
def merge(
    output: Annotated[Path, typer.Argument(help="Result file to write.", show_default=False)],
    shards: Annotated[list[Path], typer.Argument(help="Result files of all shards.", show_default=False)],
) -> None:
    """Join the result files of the shards of one run, and their reports."""
    options = MergeOptions(output=output, shards=tuple(shards))
    from picopose_cli.commands import merge as command

    _finish(command.run(options))


@app.command()
def score(
    results: Annotated[list[Path], typer.Argument(help="Result files.", show_default=False)],
    data_dir: DataDir = ScoreOptions.data_dir,
    dataset: Annotated[
        str | None, typer.Option(help="BOP data set; default: taken from the file's name.")
    ] = ScoreOptions.dataset,
    split: Split = ScoreOptions.split,
    models: Models = ScoreOptions.models,
    targets: Annotated[str, typer.Option(help=f"One of {', '.join(TARGET_KINDS)}.")] = ScoreOptions.targets,
    output: Annotated[Path | None, typer.Option(help="Write the scores as JSON here.")] = ScoreOptions.output,
    workers: Annotated[
        int, typer.Option(help="Processes; default: one a core.", show_default=False)
    ] = ScoreOptions.workers,
    per_object: Annotated[
        bool, typer.Option("--per-object", help="A row for each object, with ADD and ADD-S.")
    ] = ScoreOptions.per_object,
    plot: Annotated[Path | None, typer.Option(help="Draw recall curves into this PNG.")] = ScoreOptions.plot,
    toolkit: Annotated[
        bool, typer.Option("--toolkit", help="Run the official BOP toolkit beside ours and compare.")
    ] = ScoreOptions.toolkit,
) -> None:
    """Score result files as the BOP toolkit does."""
    options = ScoreOptions(
        results=tuple(results),
        data_dir=data_dir,
        dataset=dataset,
        split=split,
        models=models,
        targets=targets,
        output=output,
        workers=workers,
        per_object=per_object,
        plot=plot,
        toolkit=toolkit,
    )
    from picopose_cli.commands import score as command

    _finish(command.run(options))


@app.command()
def check(
    results: Annotated[Path, typer.Argument(help="Result file.", show_default=False)],
    data_dir: DataDir = CheckOptions.data_dir,
    dataset: Annotated[
        str | None, typer.Option(help="BOP data set; default: taken from the file's name.")
    ] = CheckOptions.dataset,
    split: Split = CheckOptions.split,
    targets: Targets = CheckOptions.targets,
) -> None:
    """Find what would make an upload fail or score less than it should (exit 0 clean, 1 warnings, 2 rejected)."""
    options = CheckOptions(**locals())
    from picopose_cli.commands import check as command

    _finish(command.run(options))


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="Folder of the checkpoints, the log and the finished network.")],
    source: Annotated[str, typer.Option(help=f"One of {', '.join(SOURCES)}.")] = TrainOptions.source,
    objects: Annotated[
        Path | None, typer.Option(help="Folder of meshes that mix with the procedural ones.")
    ] = TrainOptions.objects,
    shards: Annotated[Path | None, typer.Option(help="Folder of MegaPose's shards.")] = TrainOptions.shards,
    templates: Annotated[
        Path | None, typer.Option(help="Banks of the shards' objects; default: templates/ inside the shards' folder.")
    ] = TrainOptions.templates,
    preset: Annotated[str, typer.Option(help=f"Sizes of the network: {', '.join(PRESETS)}.")] = TrainOptions.preset,
    init: Annotated[
        Path | None, typer.Option(help="Start weights: DINOv2's file or a whole network's; default: random.")
    ] = TrainOptions.init,
    steps: Annotated[int, typer.Option(help="Steps of the whole training.")] = TrainOptions.steps,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this time; the same command goes on.")
    ] = TrainOptions.minutes,
    batch_size: Annotated[int, typer.Option(help="Pairs a process and step.")] = TrainOptions.batch_size,
    accumulate: Annotated[
        int, typer.Option(help="Batches whose gradients make up one step.")
    ] = TrainOptions.accumulate,
    workers: Annotated[int, typer.Option(help="Processes that make samples.")] = TrainOptions.workers,
    reuse: Annotated[
        int, typer.Option(help="Use each sample so often; above 1 a resumed run goes on with other mixtures.")
    ] = TrainOptions.reuse,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; default: 1e-3 for mini, 1e-5 for vit-l.")
    ] = TrainOptions.lr,
    max_roll_deg: Annotated[
        float, typer.Option(help="Turn observations in the image plane by up to this angle.")
    ] = TrainOptions.max_roll_deg,
    curriculum_steps: Annotated[
        int, typer.Option(help="Steps in which samples go from easy to as hard as they get.")
    ] = TrainOptions.curriculum_steps,
    ema: Annotated[float, typer.Option(help="Decay of the mean of the weights; 0: none.")] = TrainOptions.ema,
    seed: Annotated[int, typer.Option(help="Decides weights and data.")] = TrainOptions.seed,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = TrainOptions.device,
    precision: Annotated[
        str, typer.Option(help=f"One of {', '.join(PRECISIONS)}; auto: bf16 on a GPU.")
    ] = TrainOptions.precision,
    validate_every: Annotated[int, typer.Option(help="Steps; 0: only at the end.")] = TrainOptions.validate_every,
    validation_objects: Annotated[
        int, typer.Option(help="Held-out procedural objects; 0: no validation.")
    ] = TrainOptions.validation_objects,
    checkpoint_every: Annotated[int, typer.Option(help="Steps.")] = TrainOptions.checkpoint_every,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Train stages 2 and 3 only, on the start weights' features.")
    ] = TrainOptions.freeze_backbone,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network's larger parts: minutes once, then faster.")
    ] = TrainOptions.compile,
) -> None:
    """Train a network, from nothing or from given weights; the same command continues a stopped run."""
    options = TrainOptions(**locals())
    from picopose_cli.commands import train as command

    _finish(command.run(options))


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option(help="Folder of everything the demo makes: new, empty, or that of an earlier demo.")
    ] = DemoOptions.output,
    objects: Annotated[int, typer.Option(help="Objects to make up.")] = DemoOptions.objects,
    images: Annotated[int, typer.Option(help="Images to make up.")] = DemoOptions.images,
    weights: Annotated[
        Path | None,
        typer.Option(help="Network weights: .ckpt, .pth or .safetensors; default: the small network of the package."),
    ] = DemoOptions.weights,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = DemoOptions.device,
) -> None:
    """Make up a small data set, estimate its poses, score them and draw them: no data, download or GPU needed."""
    options = DemoOptions(**locals())
    from picopose_cli.commands import demo as command
    from picopose_cli.commands import infer, render_templates, score

    _finish(command.run(options, render_templates.run, infer.run, score.run))


def _parse_ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise PicoPoseError(f"--object-ids {text!r} is not a list of numbers", fix="write it like 1,5,12") from error


def _finish(report: Any) -> None:
    raise typer.Exit(report.exit_code)


def main() -> None:
    """Run the command line; a PicoPoseError becomes one line on stderr and its exit code, 2 but for stopped runs."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own line says what is wrong with a file
    try:
        app()
    except PicoPoseError as error:
        typer.echo(f"picopose: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
