"""The options of each command: defaults and range checks live here and nowhere else."""

from __future__ import annotations

import os
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError

RENDERERS = ("auto", "egl", "osmesa", "software")
MESH_UNITS = ("mm", "cm", "m")
PRECISIONS = ("auto", "fp32", "bf16")
TARGET_KINDS = ("bop19", "bop24")
RULES = ("default", "paper")
TIMINGS = ("batched", "sequential")
SOURCES = ("procedural", "megapose")
PRESETS = ("mini", "vit-l")
DATA_DIR_VARIABLE = "BOP_PATH"
DEFAULT_REFINE = 1
"""Where the accuracy's gain by a round (benchmarks/README.md) falls below what the round costs."""
CORES = min(os.cpu_count() or 1, 16)
"""Processes that a command starts when it is not told how many; more would wait for the disk."""


def _require(condition: bool, what: str, fix: str) -> None:
    if not condition:
        raise PicoPoseError(what, fix=fix)


def _require_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{option} {value!r} is not known", f"choose one of {', '.join(choices)}")


def options_record(options: Any) -> dict[str, Any]:
    """Return a command's options as they are stored beside what it wrote: plain JSON values, paths as text."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def command_line(options: Any) -> list[str]:
    """Return the arguments with which a command gets such options, without those that have their default."""
    arguments = []
    for field in fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if field.default is MISSING or value != field.default:
            switch = {True: [f"--{name}"], False: [f"--no-{name}"]}
            arguments += switch[value] if isinstance(value, bool) else [f"--{name}", str(value)]
    return arguments


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
    """A BOP19 or BOP24 target file, which also says the task; None: the data set's own, BOP19's before BOP24's."""
    output: Path | None = None
    """The CSV; None: `picopose_DATASET-SPLIT.csv` in the working folder."""
    hypotheses: int = 5
    rules: str = "default"
    """`paper`: the released rules throughout, in place of this project's more accurate ones."""
    refine: int | None = None
    """Rounds of rendering the estimate and matching again; None: `DEFAULT_REFINE` where the meshes are there."""
    device: str = "auto"
    """Also several, `cuda:0,cuda:1`: a process and a shard each."""
    precision: str = "auto"
    batch_size: int | None = None
    """Detections a network pass at most; None: what the device can take, or what the run began with."""
    workers: int = 2
    """Threads that read images, and as many that solve PnP."""
    limit: int | None = None
    """Only the first N images."""
    shard: str | None = None
    """`i/n`: only the i-th of n shares of the images, i from 1."""
    timing: str = "batched"
    """How the time of an image is measured: its share of the batches, or alone by the wall clock."""
    restart: bool = False
    """Discard what an earlier run has left in the journal."""
    profile: Path | None = None
    """Write what each thread did when, as a Chrome trace."""
    cache: bool = True
    """Keep template features beside the banks, for another run."""

    def __post_init__(self) -> None:
        _require_choice("--precision", self.precision, PRECISIONS)
        _require_choice("--timing", self.timing, TIMINGS)
        _require_choice("--rules", self.rules, RULES)
        _require(self.hypotheses >= 1, f"--hypotheses {self.hypotheses} is too few", "give 1 or more")
        enough = self.batch_size is None or self.batch_size >= 1
        _require(enough, f"--batch-size {self.batch_size} is too small", "give 1 or more")
        _require(self.workers >= 1, f"--workers {self.workers} is too few", "give 1 or more")
        _require(self.limit is None or self.limit >= 1, f"--limit {self.limit} is too small", "give 1 or more")
        _require(self.refine is None or self.refine >= 0, f"--refine {self.refine} is negative", "give 0 or more")
        conflict = self.rules == "paper" and self.refine
        _require(not conflict, "--rules paper has no refinement", "drop --refine, or pass --rules default")
        index, count = self.part or (1, 1)
        _require(1 <= index <= count, f"--shard {self.shard} is no share", "write it i/n with i from 1 to n, like 2/8")
        several = "," in self.device or self.device == "all"
        _require(self.shard is None or not several, "--shard runs on one device", "name one with --device")

    @property
    def rounds(self) -> int:
        """Rounds of refinement where nothing stands in their way."""
        return 0 if self.rules == "paper" else DEFAULT_REFINE if self.refine is None else self.refine

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (i, n); (0, 0) when it is not written so."""
        if self.shard is None:
            return None
        index, _, count = self.shard.partition("/")
        return (int(index), int(count)) if index.isdecimal() and count.isdecimal() else (0, 0)


@dataclass(frozen=True)
class MergeOptions:
    """Options of `picopose merge`."""

    output: Path
    shards: tuple[Path, ...]

    def __post_init__(self) -> None:
        _require(len(self.shards) > 0, "no shard is given", "name the result files of all shards")
        _require(len(set(self.shards)) == len(self.shards), "a shard is named twice", "name each shard's file once")
        _require(self.output not in self.shards, f"{self.output} is also a shard", "name another output first")


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


@dataclass(frozen=True)
class TrainOptions:
    """Options of `picopose train`."""

    output: Path
    """Folder of the checkpoints, the log and the finished network."""
    source: str = "procedural"
    objects: Path | None = None
    """Folder of meshes that mix with the procedural ones."""
    shards: Path | None = None
    """Folder of MegaPose's shards."""
    templates: Path | None = None
    """Folder of the banks of the shards' objects; None: `templates/` inside the shards' folder."""
    preset: str = "mini"
    init: Path | None = None
    """DINOv2's file, or the weights of a whole network of the preset's sizes; None: random."""
    steps: int = 100_000
    minutes: float | None = None
    """Training stops after this time, to be continued by the same command."""
    batch_size: int = 32
    """Pairs a process and step."""
    accumulate: int = 1
    """Batches whose gradients are summed for one step."""
    workers: int = 2
    """Processes that make samples."""
    reuse: int = 1
    """How often each sample is used, in another company and turned in another way; 1: once, and exactly resumable."""
    lr: float | None = None
    """Highest learning rate; None: the preset's, 1e-3 for mini, 1e-5 for vit-l."""
    max_roll_deg: float = 180.0
    """Observations are turned in the image plane by up to this angle on the device; 0: not at all."""
    curriculum_steps: int = 2000
    """Steps in which the samples go from easy to as hard as they get."""
    ema: float = 0.999
    """Decay of the running mean of the weights, which is what is validated and written; 0: none."""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    validate_every: int = 2000
    """Steps; 0: only at the end."""
    validation_objects: int = 8
    """Procedural objects that validation knows and training does not; 0: no validation."""
    checkpoint_every: int = 1000
    """Steps; a checkpoint is also written at the end of every run."""
    freeze_backbone: bool = False
    """Only stages 2 and 3 learn, from the features of `init`: several times faster a pair."""
    compile: bool = False

    def __post_init__(self) -> None:
        _require_choice("--source", self.source, SOURCES)
        _require_choice("--preset", self.preset, PRESETS)
        _require_choice("--precision", self.precision, PRECISIONS)
        for name in ("steps", "batch_size", "accumulate", "reuse", "checkpoint_every"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')} {value} is too small", "give 1 or more")
        for name in ("workers", "curriculum_steps", "seed", "validate_every", "validation_objects", "max_roll_deg"):
            value = getattr(self, name)
            _require(value >= 0, f"--{name.replace('_', '-')} {value} is negative", "give 0 or more")
        _require(self.minutes is None or self.minutes > 0, f"--minutes {self.minutes} is no time", "give more than 0")
        _require(self.lr is None or self.lr > 0, f"--lr {self.lr} moves nothing", "give more than 0")
        _require(0 <= self.ema < 1, f"--ema {self.ema} is out of range", "give 0 or more and less than 1")
        given = self.source != "megapose" or self.shards is not None
        _require(given, "--source megapose needs the shards", "pass --shards DIR")
        useful = self.init is not None or not self.freeze_backbone
        _require(useful, "--freeze-backbone keeps random features", "pass --init FILE with trained ones")


@dataclass(frozen=True)
class DemoOptions:
    """Options of `picopose demo`."""

    output: Path = Path("picopose-demo")
    """Folder of everything the demo makes: new, empty, or that of an earlier demo."""
    objects: int = 5
    images: int = 10
    weights: Path | None = None
    """None: the small network that ships with the package."""
    device: str = "auto"

    def __post_init__(self) -> None:
        _require(self.objects >= 1, f"--objects {self.objects} is too few", "give 1 or more")
        _require(self.images >= 1, f"--images {self.images} is too few", "give 1 or more")
