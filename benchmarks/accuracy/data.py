"""The data sets of the benchmark of accuracy: procedural ones, and real photographs in BOP's format."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import picopose_cli
from accuracy.bench import Bench, Settings
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.bop.datasets import Dataset, object_ids, open_dataset
from picopose_cli.bop.detections import find_detections
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset
from picopose_cli.synthesis.bop_models import ObjectMaker, symmetric_object, textured_object
from picopose_cli.synthesis.conditions import USUAL_CONDITIONS, Conditions
from picopose_cli.synthesis.depth_sensor import MeasureDepth

SEED = 20
"""Of the procedural data set."""
SYMMETRIC_SEED, MAX_SYMMETRIC_OBJECTS = 21, 12
"""Of the data set of symmetric objects; it has half as many images."""
ESTIMATING_CODE = (
    "network/*.py",
    "pose/*.py",
    "rendering/*.py",
    "templates/*.py",
    "base/geometry.py",
    "base/grid.py",
    "base/symmetries.py",
)
"""Parts of the package whose change makes result files out of date."""


def procedural_bench(objects: int, images: int, settings: Settings) -> Bench:
    """Return a data set of unseen objects without symmetries."""
    return written_bench(f"unseen{objects}x{images}", objects, images, settings, SEED, textured_object)


def symmetric_bench(objects: int, images: int, settings: Settings) -> Bench:
    """Return a data set of symmetric objects: at most 12, in half as many images."""
    objects, images = min(objects, MAX_SYMMETRIC_OBJECTS), -(-images // 2)
    return written_bench(f"symmetric{objects}x{images}", objects, images, settings, SYMMETRIC_SEED, symmetric_object)


def written_bench(
    name: str,
    objects: int,
    images: int,
    settings: Settings,
    seed: int,
    make_object: ObjectMaker,
    conditions: Conditions = USUAL_CONDITIONS,
    banks: str | None = None,
    measure_depth: MeasureDepth | None = None,
) -> Bench:
    """Return a generated data set, written where it is missing; those of equal objects may share the folder `banks`.

    `measure_depth`: sensor of the depth images, which are exact without.
    """
    root = settings.work / "data" / name
    detections = {masks: root / file for masks, file in DETECTIONS.items()}
    if not all(file.is_file() for file in detections.values()):  # they are written last
        started = time.perf_counter()
        write_procedural_dataset(
            root.parent,
            name,
            objects=objects,
            images=images,
            seed=seed,
            make_object=make_object,
            conditions=conditions,
            measure_depth=measure_depth,
        )
        print(f"{name} written in {time.perf_counter() - started:.0f} s")
    return make_bench(open_dataset(name, root.parent), detections, settings, banks)


def real_bench(name: str, folder: Path, settings: Settings) -> Bench:
    """Return a data set of real photographs; raises PicoPoseError that names what is missing."""
    dataset = open_dataset(name, folder)
    object_ids(dataset)
    if not dataset.has_public_gt:
        raise PicoPoseError("there is no ground truth", where=dataset.split_dir)
    found = sorted(dataset.root.glob("detections*.json*"))
    detections = found[0] if len(found) == 1 else find_detections(dataset, folder)
    return make_bench(dataset, {"detections": detections}, settings)


def make_bench(dataset: Dataset, detections: dict[str, Path], settings: Settings, banks: str | None = None) -> Bench:
    """Return a data set with its banks rendered; the folder of its result files is named after all they depend on."""
    network = f"{file_sha256(settings.weights)[:8]}-{code_sha256()[:8]}"
    key = f"{data_sha256(dataset)[:8]}-{network}-{settings.device.replace(':', '')}-{settings.precision}"
    results_dir = settings.work / "results" / dataset.name / key
    bench = Bench(dataset, detections, settings.work / "banks" / (banks or dataset.name), results_dir, settings)
    bench.render()
    return bench


def data_sha256(dataset: Dataset) -> str:
    """Return the SHA-256 of a data set's JSON files: poses, cameras, targets, detections, sizes of its models."""
    of_scenes = dataset.split_dir.glob("*/*.json")
    return hash_files(dataset.root, [*dataset.root.glob("*.json"), *dataset.root.glob("models*/*.json"), *of_scenes])


def code_sha256() -> str:
    """Return the SHA-256 of the code that poses depend on."""
    package = Path(picopose_cli.__file__).parent
    return hash_files(package, [path for pattern in ESTIMATING_CODE for path in package.glob(pattern)])


def hash_files(root: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 of some files below `root` and of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()
