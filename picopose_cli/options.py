"""The options of each command: defaults and range checks live here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from picopose_cli.errors import PicoPoseError

RENDERERS = ("auto", "egl", "osmesa", "software")
MESH_UNITS = ("mm", "cm", "m")
PRECISIONS = ("auto", "fp32", "bf16")
TARGET_KINDS = ("bop19", "bop24")
DATA_DIR_VARIABLE = "BOP_PATH"
CORES = min(os.cpu_count() or 1, 16)
"""Processes that a command starts when it is not told how many; more would wait for the disk."""


def _require(condition: bool, what: str, fix: str) -> None:
    if not condition:
        raise PicoPoseError(what, fix=fix)


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{option} {value!r} is not known", f"choose one of {', '.join(choices)}")


def resolve_data_dir(data_dir: Path | None) -> Path:
    """Return the folder that holds the BOP data sets: the option, else the environment variable BOP_PATH."""
    if data_dir is not None:
        return data_dir
    value = os.environ.get(DATA_DIR_VARIABLE)
    _require(
        bool(value),
        "no data folder is given",
        f"pass --data-dir or set {DATA_DIR_VARIABLE} to the folder above the data sets",
    )
    return Path(str(value))


@dataclass(frozen=True)
class RenderTemplatesOptions:
    """Options of `picopose render-templates`."""

    dataset: str | None = None
    data_dir: Path | None = None
    templates: Path | None = None
    """Folder for the banks; None: `templates/` inside the data set's folder."""
    models: str | None = None
    """Name of the models folder inside the data set; None: the data set's own rule."""
    object_ids: tuple[int, ...] = ()
    """Only these objects; empty: all."""
    from_images: Path | None = None
    """Build the banks from ready-made template images instead of meshes."""
    renderer: str = "auto"
    mesh_unit: str = "mm"
    workers: int = CORES
    """Cores to use: objects side by side in processes of their own, or the views of a single object."""
    overwrite: bool = False
    contact_sheet: bool = False

    def __post_init__(self) -> None:
        _require_choice("--renderer", self.renderer, RENDERERS)
        _require_choice("--mesh-unit", self.mesh_unit, MESH_UNITS)
        _require(self.workers >= 1, f"--workers {self.workers} is too few", "give 1 or more")
        _require(
            all(obj_id >= 0 for obj_id in self.object_ids), "--object-ids holds a negative id", "give BOP object ids"
        )
        given = (self.dataset is not None) or (self.from_images is not None and self.templates is not None)
        _require(given, "nothing to render", "pass --dataset NAME, or --from-images DIR with --templates DIR")


@dataclass(frozen=True)
class InferOptions:
    """Options of `picopose infer`."""

    dataset: str
    data_dir: Path | None = None
    templates: Path | None = None
    """Folder of the banks; None: `templates/` inside the data set's folder."""
    detections: str | None = None
    """A detections JSON, `gt` for the ground-truth masks, or None: the official file where it usually lies."""
    weights: Path | None = None
    split: str | None = None
    targets: Path | None = None
    output: Path | None = None
    """The CSV; None: `picopose_DATASET-SPLIT.csv` in the working folder."""
    hypotheses: int = 5
    paper: bool = True
    """The released rules throughout; False: the refined correspondences and solver."""
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 16
    workers: int = 2
    """Threads that read images, and as many that solve PnP."""
    limit: int | None = None
    """Only the first N images."""

    def __post_init__(self) -> None:
        _require_choice("--precision", self.precision, PRECISIONS)
        _require(self.hypotheses >= 1, f"--hypotheses {self.hypotheses} is too few", "give 1 or more")
        _require(self.batch_size >= 1, f"--batch-size {self.batch_size} is too small", "give 1 or more")
        _require(self.workers >= 1, f"--workers {self.workers} is too few", "give 1 or more")
        _require(self.limit is None or self.limit >= 1, f"--limit {self.limit} is too small", "give 1 or more")


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `picopose score`."""

    results: tuple[Path, ...]
    data_dir: Path | None = None
    dataset: str | None = None
    """None: taken from each file's name."""
    split: str | None = None
    models: str | None = None
    targets: str = "bop19"
    output: Path | None = None
    workers: int = CORES
    per_object: bool = False
    plot: Path | None = None
    toolkit: bool = False

    def __post_init__(self) -> None:
        _require(len(self.results) > 0, "no result file is given", "name one or more CSV files")
        _require_choice("--targets", self.targets, TARGET_KINDS)
        _require(self.workers >= 1, f"--workers {self.workers} is too few", "give 1 or more")


@dataclass(frozen=True)
class CheckOptions:
    """Options of `picopose check`."""

    results: Path
    data_dir: Path | None = None
    dataset: str | None = None
    split: str | None = None
    targets: Path | None = None
