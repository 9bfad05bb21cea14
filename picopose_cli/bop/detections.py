"""Detections: where they are, reading them in any format, and which of them are estimated."""

from __future__ import annotations

import gzip
import hashlib
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.base.types import AnyTarget, Detection, ImageTarget
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.detection_json import read_detection_json
from picopose_cli.bop.detection_masks import mask_folder_files, read_mask_folder
from picopose_cli.bop.detection_set import DetectionSet
from picopose_cli.bop.known_datasets import toolkit_split

_LOG = logging.getLogger(__name__)

OFFICIAL_UUIDS = {
    "ycbv": "f4f2127c-6f59-447c-95b3-28e1e591f1a1",
    "lmo": "3cb298ea-e2eb-4713-ae9e-5a7134c5da0f",
    "tless": "8ca61cb0-4472-4f11-bce7-1362a12d396f",
    "tudl": "c48a2a95-1b41-4a51-9920-a667cb3d7149",
    "icbin": "f21a9faf-7ef2-4325-885f-f4b6460f4432",
    "itodd": "df32d45b-301c-4fc9-8769-797904dd9325",
    "hb": "db836947-020a-45bd-8ec5-c95560b68011",
}
"""In the names of the default CNOS-FastSAM detections, cnos-fastsam_{dataset}-test_{uuid}.json."""
_DETECTOR = "cnos-fastsam"
_MODEL_BASED = "model_based_unseen"
"""In the folders of detections for the task with CAD models; others are of objects known by images."""
_START_BYTES = 1 << 16
_USUAL_FOLDERS = ("bop23_default_detections_for_task4", "default_detections", "detections")


def read_detections(path: Path) -> DetectionSet:
    """Return the detections of a JSON file (see `detection_json`) or a folder of masks (see `detection_masks`).

    An entry that cannot be used is left out and recorded. Raises PicoPoseError when the file or folder as a whole
    cannot be read.
    """
    found = read_mask_folder(path) if path.is_dir() else read_detection_json(path)
    count = sum(map(len, found.by_image.values()))
    _LOG.info("%d detections from %s, %d unusable", count, path, len(found.problems))
    return found


def detections_sha256(path: Path) -> str:
    """Return a hash of what `read_detections` reads: of a folder the names and contents of its masks and table."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in mask_folder_files(path):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def find_detections(dataset: Dataset, data_dir: Path) -> Path:
    """Return the default CNOS-FastSAM detections of a data set, found by their official name in the usual folders.

    Without those it is the only JSON file in the data set's folder whose name begins with `detections` or, where there
    is none, the only one that begins like a list of detections.
    Raises PicoPoseError when there are none, or several.
    """
    split = toolkit_split(dataset.split)[0]
    start, pattern = f"{_DETECTOR}_{dataset.name}-{split}", _official_name(dataset.name, split)
    folders = [data_dir / name for name in _USUAL_FOLDERS if (data_dir / name).is_dir()]
    found = {path for folder in folders for path in folder.rglob(f"{_DETECTOR}*.json*")}
    for folder in (data_dir, dataset.root, dataset.root / "detections"):
        found |= set(folder.glob(f"{_DETECTOR}*.json*"))
    usable = sorted(path for path in found if pattern.fullmatch(path.name))
    usable = [path for path in usable if _MODEL_BASED in str(path)] or usable
    official = [path for path in usable if OFFICIAL_UUIDS.get(dataset.name, "?") in path.name]
    if official:
        return official[0]
    own = sorted(path for path in dataset.root.glob("*.json*") if path.name.endswith((".json", ".json.gz")))
    candidates = usable or [path for path in own if path.name.startswith("detections")]
    candidates = candidates or [path for path in own if _begins_like_detections(path)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(str(path) for path in candidates[:5])
        what = f"there are several files of detections: {names}"
        raise PicoPoseError(what, fix=f"choose one with --detections, for example {candidates[-1]}")
    places = ", ".join(str(data_dir / name) for name in _USUAL_FOLDERS)
    raise PicoPoseError(
        f"no detections {start}_*.json in {places}, {data_dir} or {dataset.root}",
        fix="pass --detections FILE or FOLDER, or --detections gt for the ground-truth masks",
    )


def _official_name(dataset: str, split: str) -> re.Pattern[str]:
    """Return the names of default detections: of BOP's H3 data sets they say that they have masks, hope is hopev2."""
    names = "hope|hopev2" if dataset in ("hope", "hopev2") else re.escape(dataset)
    return re.compile(rf"{_DETECTOR}(-with-mask)?_({names})-{re.escape(split)}([_.].*)?\.json(\.gz)?")


def _begins_like_detections(path: Path) -> bool:
    """Return whether the start of a JSON file names the fields of detections."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            start = stream.read(_START_BYTES)
    except (OSError, EOFError, zlib.error):
        return False
    return b'"category_id"' in start and (b'"bbox"' in start or b'"segmentation"' in start)


def select_detections(targets: Sequence[AnyTarget], detections: Sequence[Detection], extra: int = 0) -> list[Detection]:
    """Return the detections to estimate for the targets of one image, target by target.

    A BOP19 target gets the `inst_count` best detections of its object and `extra` more; where the image has none of
    that object, the best of the other objects, relabelled (source: the rule for the default detections of BOP task 4).
    A BOP24 target gets all detections of its image, best first. Equal scores keep their order.
    """
    ranked = sorted(detections, key=lambda detection: -detection.score)
    selected: list[Detection] = []
    for target in targets:
        if isinstance(target, ImageTarget):
            selected += ranked
            continue
        own = [detection for detection in ranked if detection.obj_id == target.obj_id]
        chosen = own or [replace(detection, obj_id=target.obj_id) for detection in ranked]
        selected += chosen[: target.inst_count + extra]
    return selected
