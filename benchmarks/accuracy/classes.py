"""Classes of objects and images beside the textured ones: what a change must not make worse.

Most classes spoil the same scenes of the same objects as the data set of textured objects, so that what they lose is
seen against it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from accuracy.bench import Bench, Settings
from accuracy.data import SEED, data_sha256, written_bench
from accuracy.localisation import compare
from accuracy.variants import LINES, PAPER_LINE, InferLine
from picopose_cli.base.options import InferOptions
from picopose_cli.commands import infer
from picopose_cli.synthesis.bop_models import ObjectMaker, textured_object, untextured_object, wrong_albedo_object
from picopose_cli.synthesis.conditions import USUAL_CONDITIONS, Conditions

MASKS = "rough"
PARTS_SEED = 23
"""Of the parts without texture: nine of the 20 have symmetries."""
SMALL = Conditions(box_px=(36.0, 80.0), framed_px=(30.0, 80.0), min_target_px=100)
QUARTER = Conditions(size_hw=(120, 160), min_target_px=25)
BLURRED, DARK = Conditions(blurred_share=1.0), Conditions(dark_share=1.0)


@dataclass(frozen=True)
class ImageClass:
    """A data set of its own; `images` at most."""

    name: str
    title: str
    images: int = 50
    make_object: ObjectMaker = textured_object
    conditions: Conditions = USUAL_CONDITIONS
    seed: int = SEED


CLASSES = (
    ImageClass("usual", "textured, what the classes below are compared with", 100),
    ImageClass("plain", "parts without texture, CAD grey", 100, untextured_object, seed=PARTS_SEED),
    ImageClass("albedo", "textured, CAD grey, in one or in wrong colours", make_object=wrong_albedo_object),
    ImageClass("small", "objects of 30 to 80 px", conditions=SMALL),
    ImageClass("quarter", "images of 160 x 120 px", conditions=QUARTER),
    ImageClass("blur", "out of focus or shaken", conditions=BLURRED),
    ImageClass("lowlight", "in the dark", conditions=DARK),
)


def measure_class(
    one: ImageClass, objects: int, images: int, settings: Settings, console: Console
) -> list[dict[str, Any]]:
    """Return a row for each line; result files that exist are kept, and a stopped one is continued by `infer`."""
    bench = class_bench(one, objects, min(images, one.images), settings)
    for line in LINES:
        if not bench.path(line, MASKS).is_file():
            console.print(f"{one.name} ({one.title}): {line.title}")
            infer_line(bench, line)
    paper, digest = bench.score(PAPER_LINE, MASKS), data_sha256(bench.dataset)
    return [{"data": one.name, "data_sha256": digest, **compare(bench, line, MASKS, paper)} for line in LINES]


def class_bench(one: ImageClass, objects: int, images: int, settings: Settings) -> Bench:
    """Return the data set of a class; classes of the same objects share their banks."""
    name, banks = f"{one.name}{objects}x{images}", f"{one.make_object.__name__}-{one.seed}-{objects}"
    return written_bench(name, objects, images, settings, one.seed, one.make_object, one.conditions, banks)


def infer_line(bench: Bench, line: InferLine, masks: str = MASKS) -> None:
    """Write a line's result file as `picopose infer` does."""
    output, settings = bench.path(line, masks), bench.settings
    output.parent.mkdir(parents=True, exist_ok=True)
    options = InferOptions(
        bench.dataset.root.name,
        bench.dataset.root.parent,
        templates=bench.banks_dir,
        detections=str(bench.detections[masks]),
        weights=settings.weights,
        output=output,
        device=settings.device,
        precision=settings.precision,
    )
    infer.run(replace(options, **line.options))
