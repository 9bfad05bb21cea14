"""`picopose reconstruct`: a coloured mesh of an object from photographs with known poses and masks."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from picopose_cli.base.environment import package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, require_writable
from picopose_cli.base.guide_options import ReconstructOptions
from picopose_cli.base.option_fields import options_record
from picopose_cli.pictures.reference_sheets import write_reference_sheet
from picopose_cli.reconstruction.model_files import (
    check_output,
    model_info,
    report_path,
    sheet_path,
    write_model,
    write_model_info,
)
from picopose_cli.reconstruction.reading import find_photographs, load_views
from picopose_cli.reconstruction.reconstruct import (
    STAGES,
    Reconstruction,
    ViewQuality,
    measure_views,
    reconstruct,
    render_views,
)
from picopose_cli.reconstruction.views import ReferenceView
from picopose_cli.runs.progress import add_bar, progress_bar


@dataclass(frozen=True)
class ReconstructResult:
    """What was written, and the photographs that could not be used, by name with the reason."""

    model: Path
    made: Reconstruction
    qualities: tuple[ViewQuality, ...]
    problems: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 when a photograph could not be used."""
        return 1 if self.problems else 0


def run(options: ReconstructOptions) -> ReconstructResult:
    """Reconstruct an object; see `picopose reconstruct --help`.

    Raises PicoPoseError when the photographs are too few, contradict each other, or the model cannot be written.
    """
    console, started = Console(markup=False, highlight=False, soft_wrap=True), time.perf_counter()
    found = find_photographs(options.images, options.object_id, options.masks)
    model = options.output or Path("models") / f"obj_{found.obj_id:06d}.ply"
    check_output(model)
    require_writable(model)
    with progress_bar(console) as progress:
        bar = add_bar(progress, "photographs", len(found.photos), "images")
        use_depth = options.depth != "off"
        views, problems = load_views(found, lambda count: progress.advance(bar, count), use_depth=use_depth)
        require_depth(views, options)
        progress.update(bar, total=len(views) + len(problems) - len(found.problems))
        bar_stages = add_bar(progress, "reconstruction", STAGES, "stages")
        made = reconstruct(
            views, options.resolution, str(options.images), problems, lambda count: progress.advance(bar_stages, count)
        )
    renders = render_views(made)
    qualities = tuple(measure_views(made, renders))
    write_model(model, made.surface, made.texture)
    write_model_info(model.parent, found.obj_id, made.surface)
    pairs = [(view.name, view.rgb, render.rgb) for view, render in zip(made.views, renders, strict=True)]
    write_reference_sheet(sheet_path(model), pairs)
    result = ReconstructResult(model, made, qualities, problems, time.perf_counter() - started)
    atomic_write_bytes(
        report_path(model), json.dumps(_report(result, options, found.obj_id), indent=1).encode() + b"\n"
    )
    _print_summary(console, result)
    return result


def require_depth(views: Sequence[ReferenceView], options: ReconstructOptions) -> None:
    """Raise PicoPoseError when depth is asked for and no view has any."""
    if options.depth == "on" and not any(view.depth_m is not None for view in views):
        what = "there are no depth images of pinhole cameras"
        raise PicoPoseError(what, where=options.images, fix="add depth/, or pass --depth auto")


def _report(result: ReconstructResult, options: ReconstructOptions, obj_id: int) -> dict[str, object]:
    """Return the quality report."""
    made = result.made
    ious, errors = ([getattr(one, name) for one in result.qualities] for name in ("iou", "colour_error"))
    return {
        "obj_id": obj_id,
        "model": result.model.name,
        "model_info": model_info(made.surface),
        "vertices": len(made.surface.vertices),
        "faces": len(made.surface.faces),
        "texture_px": made.texture.rgb.shape[0],
        "views_with_depth": sum(view.depth_m is not None for view in made.views),
        "overruled_share": made.overruled_share,
        "silhouette_iou": _summary(ious),
        "colour_error": _summary(errors),
        "views": {
            one.name: {"iou": round(one.iou, 4), "colour_error": round(one.colour_error, 2)} for one in result.qualities
        },
        "left_out": made.left_out,
        "not_usable": result.problems,
        "seconds": round(result.seconds, 1),
        "options": options_record(options),
        "versions": package_versions(),
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": round(float(np.mean(values)), 4),
        "median": round(float(np.median(values)), 4),
        "worst": round(_worst(values), 4),
    }


def _worst(values: Sequence[float]) -> float:
    """Return the value farthest from the median."""
    array = np.asarray(values)
    return float(array[np.abs(array - np.median(array)).argmax()])


def _print_summary(console: Console, result: ReconstructResult) -> None:
    made = result.made
    for name, reason in {**made.left_out, **result.problems}.items():
        console.print(f"left out: {name}: {reason}")
    diameter_mm = model_info(made.surface)["diameter"]
    iou = float(np.mean([one.iou for one in result.qualities]))
    error = float(np.mean([one.colour_error for one in result.qualities]))
    console.print(
        f"{len(made.views)} photographs, diameter {diameter_mm:.1f} mm, {len(made.surface.faces)} triangles; renders "
        f"agree with the masks by an IoU of {iou:.3f} and with the colours to {error:.1f} of 255 levels"
    )
    console.print(
        f"{result.seconds:.1f} s -> {result.model}, {report_path(result.model).name}, {sheet_path(result.model).name}"
    )
    console.print(f"look at {sheet_path(result.model)}: photographs beside renders")
