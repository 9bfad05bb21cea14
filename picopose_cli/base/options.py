"""The options of each command: names, defaults, ranges and help texts are here and nowhere else.

The command line and the README's reference are made from these classes by `base.option_fields`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.environment import available_cores
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_fields import REQUIRED, check_ranges, option, require
from picopose_cli.base.option_texts import (
    DATA_DIR_DEFAULT,
    DATA_DIR_HELP,
    DATA_DIR_VARIABLE,
    DATASET_DEFAULT,
    DATASET_HELP,
    DEPTH_HELP,
    DEPTHS,
    MAX_DEFAULT_PROCESSES,
    MAX_DEFAULT_THREADS,
    MODELS_DEFAULT,
    MODELS_HELP,
    PROCESSES_DEFAULT,
    RAY_HELP,
    RAY_VALUE,
    SPLIT_DEFAULT,
    SPLIT_HELP,
    TARGETS_DEFAULT,
    TARGETS_HELP,
    TARGETS_VALUE,
    TEMPLATES_DEFAULT,
    TEMPLATES_HELP,
    THREADS_DEFAULT,
    WEIGHTS_DEFAULT,
    WEIGHTS_HELP,
)

RENDERERS = ("auto", "egl", "osmesa", "software")
MESH_UNITS = ("mm", "cm", "m")
RULES = ("default", "paper")
PRECISIONS = ("auto", "fp32", "bf16")
TARGET_KINDS = ("bop19", "bop24")
TIMINGS = ("batched", "sequential")
DEFAULT_REFINE_ROUNDS = 2
"""Rounds of refinement with --rules default."""
HYPOTHESES, REFINED_HYPOTHESES = 5, 3
"""Templates that stage 3 tries for each detection, the second where poses are refined."""
DEFAULT_EXTRA_DETECTIONS = 1
"""Detections that the localisation task estimates beyond those that count, with --rules default."""
DEFAULT_PROCESSES = min(available_cores(), MAX_DEFAULT_PROCESSES)
"""Processes that `render-templates` and `score` start by default."""
DEFAULT_THREADS = min(available_cores(), MAX_DEFAULT_THREADS)
"""Threads of each kind of `infer`."""


def resolve_data_dir(data_dir: Path | None) -> Path:
    """Return the folder that contains the BOP data sets: the option, else the environment variable BOP_PATH.

    Raises PicoPoseError when neither is given.
    """
    value = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if not value:
        fix = f"pass --data-dir or set {DATA_DIR_VARIABLE} to the folder that contains the data sets"
        raise PicoPoseError("no data folder is given", fix=fix)
    return Path(value)


def resolve_dataset(dataset: str, data_dir: Path | None) -> tuple[str, Path]:
    """Return the name of a data set and the folder that contains it, given its name or the path of its own folder.

    A path has a separator, or is an existing folder where no data folder is given. Raises PicoPoseError when it is a
    name without a data folder, or a path beside --data-dir.
    """
    has_data_dir = data_dir is not None or bool(os.environ.get(DATA_DIR_VARIABLE))
    is_path = os.sep in dataset or dataset in (".", "..") or (not has_data_dir and Path(dataset).is_dir())
    if not is_path:
        return dataset, resolve_data_dir(data_dir)
    if data_dir is not None:
        what = f"--dataset {dataset} is a path, so it needs no --data-dir {data_dir}"
        raise PicoPoseError(what, fix="pass the path alone, or the name with the folder that contains it")
    folder = Path(dataset).expanduser()
    if folder.name in ("", ".."):
        folder = Path(os.path.normpath(Path.cwd() / folder))  # a link keeps its own name
    return folder.name, folder.parent


@dataclass(frozen=True)
class RenderTemplatesOptions:
    """Options of `picopose render-templates`."""

    dataset: str | None = option(
        None, f"{DATASET_HELP} Not needed with both --from-images and --templates.", value="NAME|DIR"
    )
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text=DATA_DIR_DEFAULT)
    templates: Path | None = option(None, TEMPLATES_HELP, value="DIR", default_text=TEMPLATES_DEFAULT)
    models: str | None = option(None, MODELS_HELP, value="NAME", default_text=MODELS_DEFAULT)
    object_ids: tuple[int, ...] = option(
        (), "Ids of the objects to render, for example 1,5.", value="IDS", default_text="all", minimum=0
    )
    from_images: Path | None = option(
        None, "Build the banks from the template images in this folder instead of meshes.", value="DIR"
    )
    from_reference: Path | None = option(None, "Photographs (see reconstruct) that replace near views.", value="DIR")
    renderer: str = option("auto", "Renderer; auto: egl on a GPU, otherwise software.", choices=RENDERERS)
    mesh_unit: str = option("mm", "Unit of length of the meshes.", choices=MESH_UNITS)
    workers: int = option(
        DEFAULT_PROCESSES,
        "Processes that render, each an object or a part of the views of a single object.",
        default_text=PROCESSES_DEFAULT,
        minimum=1,
    )
    overwrite: bool = option(False, "Render finished banks again.")
    ray: str | None = option(None, RAY_HELP, value=RAY_VALUE)
    contact_sheet: bool = option(False, "Also write a PNG with all views of each object.")

    def __post_init__(self) -> None:
        check_ranges(self)
        given = self.dataset is not None or (self.from_images is not None and self.templates is not None)
        require(given, "nothing to render", "pass --dataset NAME, or --from-images DIR with --templates DIR")
        rendered = self.ray is None or self.from_images is None
        require(rendered, "--from-images renders nothing that a cluster could share", "drop --ray")
        alone = self.from_reference is None or (self.from_images is None and self.ray is None)
        require(alone, "--from-reference needs meshes, on this machine", "drop --from-images and --ray")


@dataclass(frozen=True)
class InferOptions:
    """Options of `picopose infer`."""

    dataset: str = option(REQUIRED, DATASET_HELP, value="NAME|DIR")
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text=DATA_DIR_DEFAULT)
    templates: Path | None = option(None, TEMPLATES_HELP, value="DIR", default_text=TEMPLATES_DEFAULT)
    detections: str | None = option(
        None,
        "Detections: a JSON file, a folder of mask images, or gt for ground-truth masks.",
        value="PATH",
        default_text="the official CNOS-FastSAM file",
    )
    weights: Path | None = option(None, WEIGHTS_HELP, value="FILE", default_text=WEIGHTS_DEFAULT)
    split: str | None = option(None, SPLIT_HELP, value="NAME", default_text=SPLIT_DEFAULT)
    sensor: str | None = option(
        None,
        "Sensor whose images are used, for example cam1; the poses are in its frame, and its name is in the file's.",
        value="NAME",
        default_text="the one that BOP scores",
    )
    targets: str | None = option(
        None, f"{TARGETS_HELP} They decide the task.", value=TARGETS_VALUE, default_text=TARGETS_DEFAULT
    )
    output: Path | None = option(
        None, "Result file in BOP's CSV format.", value="FILE", default_text="picopose_DATASET-SPLIT.csv"
    )
    hypotheses: int | None = option(
        None,
        "Templates that stage 3 tries for each detection.",
        default_text=f"{HYPOTHESES}; {REFINED_HYPOTHESES} where poses are refined",
        minimum=1,
    )
    rules: str = option(
        "default",
        "Rules that turn the network's output into poses; paper: those of the released code, without refinement.",
        choices=RULES,
    )
    refine: int | None = option(
        None,
        "Rounds of comparing the image with renders of the estimated poses; 0: none.",
        default_text=f"{DEFAULT_REFINE_ROUNDS} for objects with a mesh",
        minimum=0,
    )
    extra_detections: int | None = option(
        None,
        "Localisation: estimate N more detections of each object than there are instances; the best scores count.",
        default_text=f"{DEFAULT_EXTRA_DETECTIONS}; 0 with --rules paper or --detections gt",
        minimum=0,
    )
    depth: str = option("off", DEPTH_HELP, choices=DEPTHS)
    device: str = option(
        "auto",
        "Device: auto, cpu, cuda:N, all, or a list such as cuda:0,cuda:1, which runs a process per device.",
        value="DEVICE",
    )
    precision: str = option("auto", "Precision of the network's backbone; auto: fp32.", choices=PRECISIONS)
    batch_size: int | None = option(
        None, "Largest number of detections in a batch.", default_text="what fits the device", minimum=1
    )
    workers: int = option(
        DEFAULT_THREADS,
        "Threads that read images, as many that solve PnP, as many that refine poses and, on a CPU, run the network.",
        default_text=THREADS_DEFAULT,
        minimum=1,
    )
    limit: int | None = option(None, "Process only the first N images.", default_text="all", minimum=1)
    shard: str | None = option(
        None, "Process only the i-th of n parts of the images, for example 2/8; see picopose merge.", value="I/N"
    )
    timing: str = option(
        "batched", "Time of an image: its part of the batch's time, or measured one image at a time.", choices=TIMINGS
    )
    restart: bool = option(False, "Discard the finished images of an earlier run.")
    overlays: int = option(0, "Draw the poses of N images, spread over the run, beside the result file.", minimum=0)
    profile: Path | None = option(None, "Write a Chrome trace of the run to this file.", value="FILE")
    cache: bool = option(True, "Store the template features beside the banks, for later runs.")
    ray: str | None = option(None, RAY_HELP, value=RAY_VALUE)
    gpus: int | None = option(
        None, "With --ray, use at most N GPUs; of a cluster without any, N nodes.", default_text="all", minimum=1
    )
    workers_per_gpu: int = option(1, "With --ray, workers on each GPU; of a cluster without any, node.", minimum=1)
    ship_images: bool = option(False, "With --ray, send images from here: other nodes do not see their paths.")

    def __post_init__(self) -> None:
        check_ranges(self)
        conflict = self.rules == "paper" and self.refine
        require(not conflict, "--rules paper has no refinement", "drop --refine, or pass --rules default")
        released = self.rules == "paper" and self.depth == "on"
        require(not released, "--rules paper knows RGB alone", "drop --depth, or pass --rules default")
        index, count = self.part or (1, 1)
        if not 1 <= index <= count:
            raise PicoPoseError(f"--shard {self.shard} is invalid: use i/n with 1 <= i <= n, like 2/8")
        several = "," in self.device or self.device == "all"
        require(self.shard is None or not several, "--shard runs on one device", "name one with --device")
        whole = not (self.shard or several or self.profile) and self.device in ("auto", "cpu", "cuda")
        require(self.ray is None or whole, "--ray shares out all images itself", "drop --shard, --device and --profile")
        needs_ray = self.gpus is not None or self.workers_per_gpu > 1 or self.ship_images
        require(
            self.ray is not None or not needs_ray, "there is no cluster to share the work out to", "pass --ray auto"
        )

    @property
    def rounds(self) -> int:
        """Rounds of refinement of an object with a mesh."""
        return 0 if self.rules == "paper" else DEFAULT_REFINE_ROUNDS if self.refine is None else self.refine

    @property
    def tried_templates(self) -> int:
        """Templates that stage 3 tries for each detection."""
        return default_hypotheses(self.rounds) if self.hypotheses is None else self.hypotheses

    @property
    def extra(self) -> int:
        """Detections of each object that the localisation task estimates beyond those that count."""
        if self.extra_detections is not None:
            return self.extra_detections
        return 0 if self.rules == "paper" or self.detections == "gt" else DEFAULT_EXTRA_DETECTIONS

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (i, n), (0, 0) for text of another form; None: all images."""
        if self.shard is None:
            return None
        index, _, count = self.shard.partition("/")
        return (int(index), int(count)) if index.isdecimal() and count.isdecimal() else (0, 0)


def default_hypotheses(rounds: int) -> int:
    """Return how many templates stage 3 tries by default where poses are refined in some rounds."""
    return REFINED_HYPOTHESES if rounds else HYPOTHESES


@dataclass(frozen=True)
class MergeOptions:
    """Options of `picopose merge`."""

    output: Path = option(REQUIRED, "Result file to write.", argument=True)
    shards: tuple[Path, ...] = option(REQUIRED, "Result files of all shards.", argument=True)

    def __post_init__(self) -> None:
        check_ranges(self)
        require(len(self.shards) > 0, "no shard is given", "name the result files of all shards")
        require(len(set(self.shards)) == len(self.shards), "a shard is named twice", "name each shard's file once")
        require(self.output not in self.shards, f"{self.output} is also a shard", "name another output first")


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `picopose score`."""

    results: tuple[Path, ...] = option(REQUIRED, "Result files.", argument=True)
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text=DATA_DIR_DEFAULT)
    dataset: str | None = option(None, DATASET_HELP, value="NAME|DIR", default_text=DATASET_DEFAULT)
    split: str | None = option(None, SPLIT_HELP, value="NAME", default_text=SPLIT_DEFAULT)
    models: str | None = option(None, MODELS_HELP, value="NAME", default_text=MODELS_DEFAULT)
    targets: str = option("bop19", f"{TARGETS_HELP} They decide the task.", value=TARGETS_VALUE)
    mesh_unit: str = option("mm", "Unit of length of the meshes; models_info.json is in mm.", choices=MESH_UNITS)
    output: Path | None = option(None, "Write the scores as JSON to this file.", value="FILE")
    workers: int = option(
        DEFAULT_PROCESSES, "Processes that compute pose errors.", default_text=PROCESSES_DEFAULT, minimum=1
    )
    ray: str | None = option(None, RAY_HELP, value=RAY_VALUE)
    per_object: bool = option(False, "Also print the scores of each object, with ADD and ADD-S.")
    plot: Path | None = option(None, "Write the recall curves as a PNG to this file.", value="FILE")
    toolkit: bool = option(False, "Also run the official BOP toolkit and print the differences.")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(len(self.results) > 0, "no result file is given", "name one or more CSV files")


@dataclass(frozen=True)
class CheckOptions:
    """Options of `picopose check`."""

    file: Path = option(REQUIRED, "Result file (CSV), or detections (JSON, or a folder of masks).", argument=True)
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text=DATA_DIR_DEFAULT)
    dataset: str | None = option(None, DATASET_HELP, value="NAME|DIR", default_text=DATASET_DEFAULT)
    split: str | None = option(None, SPLIT_HELP, value="NAME", default_text=SPLIT_DEFAULT)
    targets: str | None = option(None, TARGETS_HELP, value=TARGETS_VALUE, default_text=TARGETS_DEFAULT)

    def __post_init__(self) -> None:
        check_ranges(self)
