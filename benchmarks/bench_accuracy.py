"""Accuracy of the poses, stage by stage, on generated images of unseen objects and on real photographs.

    python benchmarks/bench_accuracy.py [--weights FILE] [--objects 20] [--images 200] [--sets NAMES] [--work DIR]
        [--before JSON] [--real DIR]

Renders the banks, estimates and scores with the functions of the commands. Every line of the table is a BOP result
file below --work. For textured objects one pass of the network serves all lines with the same flows of stage 3; for
the other sets (parts without texture, CAD models of wrong colours, small objects, low resolution, blur, darkness) a
line is a run of `picopose infer`. The finished groups of images are kept in a journal, so that the same command
continues a stopped run, as long as weights and code are the same. The data sets are kept too: empty the folder when
their generator has changed. --before compares with the result of an earlier commit, and fails if a line loses more
than .01. --real adds the BOP-format data sets in a folder; --quick runs everything on a few images.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy.before import MAX_LOSS, add_gains, losses
from accuracy.bench import Settings
from accuracy.classes import CLASSES, measure_class
from accuracy.data import SEED, data_sha256, procedural_bench, symmetric_bench
from accuracy.detection import measure_detection, measure_extra_detections
from accuracy.localisation import measure_ablations, measure_real, measure_symmetric
from accuracy.summary import mean_rows
from accuracy.tables import (
    ABLATIONS_CAPTION,
    EXTRA_CAPTION,
    SYMMETRIC_CAPTION,
    ablations_table,
    classes_table,
    detection_table,
    real_table,
)
from rich.console import Console
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.options import DEFAULT_PROCESSES, PRECISIONS, InferOptions
from picopose_cli.network.devices import choose_device, device_name

QUICK = {"objects": 3, "images": 6}
SETS = ("textured", "detection", "symmetric", *(one.name for one in CLASSES))
"""Of generated images: textured and symmetric objects with ablations, the textured ones with many wrong detections, and
all others with the lines that users have."""
TABLE_WIDTH = 160
"""Columns of the tables if the output is not a terminal."""


def main() -> None:
    arguments = read_arguments()
    try:
        result = measure(arguments)
    except PicoPoseError as error:
        sys.exit(f"bench_accuracy: {error}")
    write_result(arguments.output, result)
    lost = losses(result)
    if lost:
        sys.exit("\n".join([f"bench_accuracy: refused, more than {MAX_LOSS} of AR is lost:", *lost]))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="of the textured objects, at most of each other set")
    sets = f"comma-separated, of {', '.join(SETS)}; none of them with ''"
    parser.add_argument("--sets", type=names_of_sets, default=SETS, help=sets)
    parser.add_argument("--before", type=Path, help="result of an earlier commit: fail if a line loses against it")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-bench-accuracy")
    parser.add_argument("--real", type=Path, help="folder of BOP-format data sets of real photographs")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK['objects']} objects, {QUICK['images']} images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default=InferOptions.precision)
    parser.add_argument("--workers", type=int, default=DEFAULT_PROCESSES, help="processes that render and score")
    parser.add_argument("--output", type=Path, help="results/bench_accuracy.json, or with --quick a file below --work")
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update(QUICK)
    folder = arguments.work if arguments.quick else Path(__file__).parent / "results"
    arguments.output = arguments.output or folder / "bench_accuracy.json"
    return arguments


def names_of_sets(text: str) -> tuple[str, ...]:
    """Return the names in a comma-separated list, each one of `SETS`."""
    names = tuple(filter(None, text.split(",")))
    unknown = set(names) - set(SETS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(SETS)}")
    return names


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    run, console = describe_run(), Console(markup=False, highlight=False, width=terminal_width())
    device = choose_device(arguments.device)
    settings = Settings(arguments.work, arguments.weights, device, arguments.precision, arguments.workers)
    before = read_before(arguments.before)
    result: dict[str, Any] = {
        **run,
        "device": device_name(device),
        "precision": arguments.precision,
        "weights": arguments.weights.name,
        "weights_sha256": file_sha256(arguments.weights),
        "objects": arguments.objects,
        "images": arguments.images,
    }
    if "textured" in arguments.sets:
        result |= measure_textured(arguments.objects, arguments.images, settings, console)
    if "detection" in arguments.sets:
        result |= measure_wrong_detections(arguments.objects, arguments.images, settings, console)
    if "symmetric" in arguments.sets:
        bench = symmetric_bench(arguments.objects, arguments.images, settings)
        result["symmetric_objects"] = measure_symmetric(bench, console)
        console.print(ablations_table("symmetric objects", SYMMETRIC_CAPTION, result["symmetric_objects"]))
    result["classes"] = []
    for one in CLASSES:
        if one.name in arguments.sets:
            result["classes"] += measure_class(one, arguments.objects, arguments.images, settings, console)
    add_gains(result, before)
    if result["classes"]:
        console.print(classes_table("classes of objects and images", result["classes"]))
    if arguments.real is not None:
        rows, skipped = measure_real(arguments.real, settings, console)
        means = mean_rows(rows)
        result |= {"real": rows, "real_means": means, "real_skipped": skipped}
        if rows:
            console.print(real_table("real photographs", [*rows, *means]))
    return result


def read_before(path: Path | None) -> dict[str, Any]:
    """Return an earlier result, empty without one."""
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise PicoPoseError(f"is no result of this benchmark ({error})", where=path) from error


def measure_textured(objects: int, images: int, settings: Settings, console: Console) -> dict[str, Any]:
    bench = procedural_bench(objects, images, settings)
    rows = measure_ablations(bench, console)
    console.print(ablations_table(f"{objects} unseen objects, {images} images", ABLATIONS_CAPTION, rows))
    return {"seed": SEED, "data_sha256": data_sha256(bench.dataset), "rows": rows}


def measure_wrong_detections(objects: int, images: int, settings: Settings, console: Console) -> dict[str, Any]:
    bench = procedural_bench(objects, images, settings)
    detection = measure_detection(bench, console)
    console.print(detection_table("detection, with wrong detections", detection))
    extra = measure_extra_detections(bench, console)
    console.print(ablations_table("localisation, with wrong detections", EXTRA_CAPTION, extra))
    return {"detection": detection, "extra_detections": extra}


def terminal_width() -> int | None:
    return None if sys.stdout.isatty() else TABLE_WIDTH


if __name__ == "__main__":
    main()
