"""Accuracy of the poses, stage by stage, on procedural objects unseen in training and on real photographs.

    python benchmarks/bench_accuracy.py [--weights FILE] [--objects 20] [--images 200] [--work DIR] [--real DIR]

Renders the banks, estimates and scores with the functions of the commands. Every line of the table is a BOP result
file below --work. One pass of the network serves all lines with the same flows of stage 3. The finished groups of
images are kept in a journal, so that the same command continues a stopped run, as long as weights and code are the
same. The data set is kept too: empty the folder when its generator has changed. --real adds the BOP-format data sets
in a folder; --images 0 leaves the procedural ones out; --quick runs everything on a few images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy.bench import Settings
from accuracy.data import SEED, data_sha256, procedural_bench, symmetric_bench
from accuracy.detection import measure_detection
from accuracy.localisation import measure_ablations, measure_real, measure_symmetric
from accuracy.summary import mean_rows
from accuracy.tables import ABLATIONS_CAPTION, SYMMETRIC_CAPTION, ablations_table, detection_table, real_table
from rich.console import Console
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.options import DEFAULT_PROCESSES, PRECISIONS, InferOptions
from picopose_cli.network.devices import choose_device, device_name

QUICK = {"objects": 3, "images": 6}
TABLE_WIDTH = 160
"""Columns of the tables if the output is not a terminal."""


def main() -> None:
    arguments = read_arguments()
    try:
        result = measure(arguments)
    except PicoPoseError as error:
        sys.exit(f"bench_accuracy: {error}")
    write_result(arguments.output, result)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--objects", type=int, default=20)
    parser.add_argument("--images", type=int, default=200, help="of the procedural data set; 0: leave it out")
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


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    run, console = describe_run(), Console(markup=False, highlight=False, width=terminal_width())
    device = choose_device(arguments.device)
    settings = Settings(arguments.work, arguments.weights, device, arguments.precision, arguments.workers)
    result: dict[str, Any] = {
        **run,
        "device": device_name(device),
        "precision": arguments.precision,
        "weights": arguments.weights.name,
        "weights_sha256": file_sha256(arguments.weights),
    }
    if arguments.images:
        result |= measure_procedural(arguments.objects, arguments.images, settings, console)
    if arguments.real is not None:
        rows, skipped = measure_real(arguments.real, settings, console)
        means = mean_rows(rows)
        result |= {"real": rows, "real_means": means, "real_skipped": skipped}
        if rows:
            console.print(real_table("real photographs", [*rows, *means]))
    return result


def measure_procedural(objects: int, images: int, settings: Settings, console: Console) -> dict[str, Any]:
    bench = procedural_bench(objects, images, settings)
    rows = measure_ablations(bench, console)
    console.print(ablations_table(f"{objects} unseen objects, {images} images", ABLATIONS_CAPTION, rows))
    detection = measure_detection(bench, console)
    console.print(detection_table("detection, with wrong detections", detection))
    symmetric = measure_symmetric(symmetric_bench(objects, images, settings), console)
    console.print(ablations_table("symmetric objects", SYMMETRIC_CAPTION, symmetric))
    return {
        "objects": objects,
        "images": images,
        "seed": SEED,
        "data_sha256": data_sha256(bench.dataset),
        "rows": rows,
        "detection": detection,
        "symmetric_objects": symmetric,
    }


def terminal_width() -> int | None:
    return None if sys.stdout.isatty() else TABLE_WIDTH


if __name__ == "__main__":
    main()
