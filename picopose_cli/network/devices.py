"""Which device runs the network, in which precision, and how much of its memory was used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network.config import ModelConfig

_LOG = logging.getLogger(__name__)
Part = TypeVar("Part")

_AUTO_MAY_BE_BF16 = False
_LEAST_BATCH, _LARGEST_BATCH = 16, 128


def choose_device(wanted: str) -> str:
    """Return a usable device name, `cpu` or `cuda:N`; `auto` takes the first GPU that PyTorch sees.

    Raises PicoPoseError for an unknown name or a device that is not there.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise PicoPoseError(f"--device {wanted!r} is not known", fix="choose auto, cpu or cuda:N")
    if int(number or 0) >= torch.cuda.device_count():
        found = f"PyTorch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices"
        raise PicoPoseError(f"--device {wanted} is not there: {found}", fix="choose another, or auto")
    return f"cuda:{int(number or 0)}"


def choose_devices(wanted: str) -> list[str]:
    """Return the devices of a list such as `cuda:0,cuda:1`; `all` is every GPU that PyTorch sees.

    Raises PicoPoseError for an unknown name, or a device that is not there.
    """
    if wanted == "all":
        if not torch.cuda.device_count():
            raise PicoPoseError(f"--device all: PyTorch {torch.__version__} sees no GPU", fix="choose auto or cpu")
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [choose_device(one.strip()) for one in wanted.split(",")]


def choose_precision(wanted: str, device: str) -> str:
    """Return `fp32` or `bf16` for a device of `choose_device`; `auto` is bf16 where that is fast and allowed to be."""
    if wanted != "auto":
        return wanted
    return "bf16" if _AUTO_MAY_BE_BF16 and has_fast_bf16(device) else "fp32"


def has_fast_bf16(device: str) -> bool:
    """Say whether a device multiplies bf16 faster than fp32: Ampere GPUs and later, CPUs with AVX-512 BF16 or AMX."""
    if device != "cpu":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


def _cpu_flags() -> set[str]:
    """Return the CPU's features as Linux names them; none where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def suggest_batch_size(device: str, config: ModelConfig) -> int:
    """Return how many detections go through the network at once: 16 on a CPU, 16 to 128 by a GPU's free memory."""
    if device == "cpu":
        return _LEAST_BATCH
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return batch_size_within(free_bytes, config)


def batch_size_within(free_bytes: int, config: ModelConfig) -> int:
    """Return a batch whose features take at most a tenth of `free_bytes`, in whole multiples of 16 from 16 to 128.

    The rest is for the templates, and for what the stages hold meanwhile, which does not grow with the batch.
    """
    cells = config.grid**2
    backbone = cells * config.vit.width * (len(config.vit.output_blocks) + 3 + 2 * config.vit.mlp_ratio)
    offsets = sum(grid**2 for grid in config.flow_grids) * (config.decoder.width + 4 * config.dpt.width)
    per_detection = 4 * (backbone + offsets + 3 * config.crop_px**2)
    fitting = int(free_bytes / 10 / per_detection) // _LEAST_BATCH * _LEAST_BATCH
    return min(max(fitting, _LEAST_BATCH), _LARGEST_BATCH)


def split_on_oom(work: Callable[[slice], Part], count: int) -> list[Part]:
    """Return the results of `work` on slices of `count` items: of all at once, or of halves, quarters... on OOM.

    Raises PicoPoseError when one item alone does not fit into the device's memory.
    """
    return _parts(work, 0, count)


def _parts(work: Callable[[slice], Part], first: int, last: int) -> list[Part]:
    count = last - first
    try:
        return [work(slice(first, last))]
    except torch.cuda.OutOfMemoryError as error:
        if count == 1:
            fix = "free the device of other programs, take --precision bf16, or --device cpu"
            raise PicoPoseError("one detection does not fit into the device's memory", fix=fix) from error
    _LOG.warning("%d detections do not fit into the device's memory at once: they are halved", count)
    torch.cuda.empty_cache()  # here, and not above: the error holds what was computed so far
    middle = first + count // 2
    return _parts(work, first, middle) + _parts(work, middle, last)


def device_name(device: str) -> str:
    """Return the device as a person knows it."""
    if device == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return f"{device} ({torch.cuda.get_device_name(device)})"


def thread_count() -> int:
    """Return how many threads the network uses on the CPU."""
    return torch.get_num_threads()


def peak_device_memory_mb(device: str) -> float:
    """Return the most memory that tensors took on a CUDA device so far, in MB (10^6 bytes); 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device != "cpu" else 0.0
