"""What `picopose doctor` finds on a machine: Python, PyTorch, GPU, renderers, memory, disk and weights."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from picopose_cli.base.environment import available_cores, gpu_lines, package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_texts import DATA_DIR_VARIABLE
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import read_config
from picopose_cli.network.config import VIT_L, ModelConfig
from picopose_cli.network.devices import batch_size_within, has_fast_bf16
from picopose_cli.pose.object_cache import default_cache_dir
from picopose_cli.rendering.renderers import choose_renderer

GREEN, YELLOW, RED = "green", "yellow", "red"
BANK_MB = 18
"""Size of a template bank of a textured object."""
VIEWS = 162
_F32_BYTES = 4
_NEEDED_MB = 3000
"""Memory of the released network at batch size 16 on a CPU."""
_SMALLEST_GPU_MB = 6000


@dataclass(frozen=True)
class DoctorRow:
    """One line of the table: what was looked at, how it is, and the command or step that mends it."""

    topic: str
    level: str
    """`green`, `yellow` (works, with a loss) or `red` (does not work)."""
    text: str
    fix: str = ""


def machine_rows(weights: Path | None) -> Iterator[DoctorRow]:
    """Yield what is found on this machine; `weights`: the file that is to be used, None for that of the package."""
    versions = package_versions()
    python = f"{platform.python_version()}, picopose {versions['picopose']}"
    yield DoctorRow("Python", GREEN, python)
    missing = [name for name, version in versions.items() if version == "missing"]
    if missing:
        yield DoctorRow("packages", RED, f"missing: {', '.join(missing)}", "pip install -c constraints.txt .")
    yield _torch_row()
    yield from _gpu_rows() if torch.cuda.is_available() else _cpu_rows()
    yield _renderer_row()
    yield _cores_row()
    yield from _memory_rows()
    yield _weights_row(weights)
    yield _data_row()
    yield disk_row("cache", default_cache_dir(), 1)


def feature_mb(config: ModelConfig) -> float:
    """Return the size of an object's template features in fp32, in MB (10^6 bytes)."""
    cells = config.grid**2 * config.vit.width
    offsets = sum(grid**2 for grid in config.flow_grids) * config.decoder.width
    return VIEWS * (cells + offsets) * _F32_BYTES / 1e6


def config_of(weights: Path | None) -> ModelConfig:
    """Return the sizes of a network; those of the released one where the file cannot be read."""
    try:
        return read_config(weights or bundled_weights())
    except PicoPoseError:
        return VIT_L


def disk_row(topic: str, folder: Path, needed_mb: float, what: str = "") -> DoctorRow:
    """Return how much space is free where a folder is, or is to be made."""
    present = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free_mb = shutil.disk_usage(present).free / 1e6
    text = f"{free_mb / 1000:.1f} GB free in {folder}" + (f"; {what}" if what else "")
    if not os.access(present, os.W_OK):
        return DoctorRow(topic, RED, f"{folder} cannot be written", "choose another folder, or change its rights")
    if free_mb < needed_mb:
        return DoctorRow(topic, RED, text, f"free {(needed_mb - free_mb) / 1000:.1f} GB, or use another disk")
    return DoctorRow(topic, YELLOW if free_mb < 2 * needed_mb else GREEN, text)


def _torch_row() -> DoctorRow:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    text = f"{torch.__version__} ({built})"
    gpus = gpu_lines()
    if gpus and torch.version.cuda is None:
        fix = "pip install torch --index-url https://download.pytorch.org/whl/cu128"
        return DoctorRow("PyTorch", RED, f"{text}, but there is a GPU: {gpus[0]}", fix)
    if gpus and not torch.cuda.is_available():
        fix = "update the NVIDIA driver, or install a PyTorch for its CUDA version"
        return DoctorRow("PyTorch", RED, f"{text} cannot use the GPU {gpus[0]}", fix)
    return DoctorRow("PyTorch", GREEN, text)


def _gpu_rows() -> Iterator[DoctorRow]:
    for index in range(torch.cuda.device_count()):
        free, total = (value / 1e6 for value in torch.cuda.mem_get_info(index))
        batch = batch_size_within(int(free * 1e6), VIT_L)
        text = f"{torch.cuda.get_device_name(index)}: {free:.0f} of {total:.0f} MB free, batch size {batch}"
        level = GREEN if free >= _SMALLEST_GPU_MB else YELLOW
        fix = "" if level == GREEN else "end other programs on it, or pass --precision bf16"
        yield DoctorRow(f"cuda:{index}", level, text, fix)
    yield _bf16_row("cuda:0")


def _cpu_rows() -> Iterator[DoctorRow]:
    text = "no GPU that PyTorch can use: the released network takes a second or two for each pose on two cores"
    yield DoctorRow("GPU", YELLOW, text, "run on a machine with an NVIDIA GPU for whole data sets")
    yield _bf16_row("cpu")


def _bf16_row(device: str) -> DoctorRow:
    fast = has_fast_bf16(device)
    return DoctorRow("bf16", GREEN, f"{device} {'has' if fast else 'has no'} fast bf16 (--precision bf16)")


def _renderer_row() -> DoctorRow:
    choice = choose_renderer("auto")
    if choice.kind == "software" and torch.cuda.is_available():
        fix = "apt install --no-install-recommends libegl1 libgl1 (rendering on the GPU; not needed)"
        return DoctorRow("renderer", YELLOW, str(choice), fix)
    return DoctorRow("renderer", GREEN, str(choice))


def _cores_row() -> DoctorRow:
    usable, threads = available_cores(), torch.get_num_threads()
    text = f"{usable} usable, PyTorch uses {threads}"
    if threads < usable:
        return DoctorRow("cores", YELLOW, text, "unset OMP_NUM_THREADS, or set it higher")
    return DoctorRow("cores", GREEN, text)


def _memory_rows() -> Iterator[DoctorRow]:
    free_mb = _available_memory_mb()
    if free_mb is not None:
        level = RED if free_mb < _NEEDED_MB / 2 else YELLOW if free_mb < _NEEDED_MB else GREEN
        fix = "" if level == GREEN else "end other programs, or pass a smaller --batch-size"
        text = f"{free_mb / 1000:.1f} GB available; the released network takes {_NEEDED_MB / 1000:g} GB"
        yield DoctorRow("memory", level, text, fix)


def _available_memory_mb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("MemAvailable:")), None)


def _weights_row(weights: Path | None) -> DoctorRow:
    try:
        path = weights or bundled_weights()
        read_config(path)
    except PicoPoseError as error:
        return DoctorRow("weights", RED, str(error), "picopose download weights")
    if weights is None:
        text = f"{path.name}, the small network of the package: for trying out, not for results"
        return DoctorRow("weights", YELLOW, text, "picopose download weights, then pass --weights FILE")
    return DoctorRow("weights", GREEN, str(path))


def _data_row() -> DoctorRow:
    folder = os.environ.get(DATA_DIR_VARIABLE)
    fix = f"export {DATA_DIR_VARIABLE}=/path/to/the/folder/above/the/data/sets"
    if not folder:
        return DoctorRow("data folder", YELLOW, f"{DATA_DIR_VARIABLE} is not set", fix)
    if not Path(folder).is_dir():
        return DoctorRow("data folder", RED, f"{DATA_DIR_VARIABLE} is {folder}, which does not exist", fix)
    return DoctorRow("data folder", GREEN, f"{DATA_DIR_VARIABLE} is {folder}")
