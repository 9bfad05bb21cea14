"""Devices of the network: choice, precision, batch size and memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from picopose_cli.base.errors import OutOfMemoryError, PicoPoseError
from picopose_cli.network.config import ModelConfig

_LOG = logging.getLogger(__name__)
Part = TypeVar("Part")

_AUTO_MAY_BE_BF16 = False
"""Whether `--precision auto` may be bf16: not before the accuracy of the released network has been measured in it."""
_MIN_BATCH, _MAX_BATCH = 16, 128


def choose_device(wanted: str) -> str:
    """Return a usable device name, `cpu` or `cuda:N`; `auto` is the first GPU that PyTorch finds, otherwise the CPU.

    Raises PicoPoseError for an unknown name or a device that does not exist.
    """
    if wanted == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return wanted
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or not (number or "0").isdecimal():
        raise PicoPoseError(f"--device {wanted!r} is unknown", fix="choose auto, cpu or cuda:N")
    if int(number or 0) >= torch.cuda.device_count():
        found = f"PyTorch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices"
        raise PicoPoseError(f"--device {wanted} does not exist: {found}", fix="choose another, or auto")
    return f"cuda:{int(number or 0)}"


def choose_devices(wanted: str) -> list[str]:
    """Return the devices of a list such as `cuda:0,cuda:1`; `all` is every GPU that PyTorch finds.

    Raises PicoPoseError for an unknown name or a device that does not exist.
    """
    if wanted == "all":
        if not torch.cuda.device_count():
            raise PicoPoseError(f"--device all: PyTorch {torch.__version__} finds no GPU", fix="choose auto or cpu")
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [choose_device(one.strip()) for one in wanted.split(",")]


def choose_precision(wanted: str, device: str) -> str:
    """Return `fp32` or `bf16` for a device of `choose_device`; `auto` is bf16 if it is fast and may be chosen."""
    if wanted != "auto":
        return wanted
    return "bf16" if _AUTO_MAY_BE_BF16 and has_fast_bf16(device) else "fp32"


def has_fast_bf16(device: str) -> bool:
    """Return whether bf16 is faster than fp32 on a device: Ampere GPUs and later, CPUs with AVX-512 BF16 or AMX."""
    if device != "cpu":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


def _cpu_flags() -> set[str]:
    """Return the CPU's features under their Linux names; empty if they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def suggest_batch_size(device: str, config: ModelConfig) -> int:
    """Return the batch size in detections: 16 on a CPU, 16 to 128 by the free memory of a GPU."""
    if device == "cpu":
        return _MIN_BATCH
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return batch_size_within(free_bytes, config)


def batch_size_within(free_bytes: int, config: ModelConfig) -> int:
    """Return a batch whose features take at most a tenth of `free_bytes`, in whole multiples of 16 from 16 to 128.

    The rest is for the templates and the intermediate results of stages 2 and 3, which do not grow with the batch.
    """
    cells = config.grid**2
    backbone = cells * config.vit.width * (len(config.vit.output_blocks) + 3 + 2 * config.vit.mlp_ratio)
    offsets = sum(grid**2 for grid in config.flow_grids) * (config.decoder.width + 4 * config.dpt.width)
    per_detection = 4 * (backbone + offsets + 3 * config.crop_px**2)
    fitting = int(free_bytes / 10 / per_detection) // _MIN_BATCH * _MIN_BATCH
    return min(max(fitting, _MIN_BATCH), _MAX_BATCH)


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
            fix = "end other programs on the device, or pass --precision bf16 or --device cpu"
            raise OutOfMemoryError("one detection does not fit into the device's memory", fix=fix) from error
    _LOG.warning("%d detections do not fit into the device's memory at once: the batch is halved", count)
    torch.cuda.empty_cache()  # not in the handler: the exception keeps intermediate results alive
    middle = first + count // 2
    return _parts(work, first, middle) + _parts(work, middle, last)


def device_name(device: str) -> str:
    """Return the name of a device for people."""
    if device == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    if not torch.cuda.is_available():
        return device  # of the nodes of a cluster
    return f"{device} ({torch.cuda.get_device_name(device)})"


def limit_threads(count: int) -> None:
    """Let PyTorch use at most `count` threads on the CPU: it does not know of quotas and of SLURM."""
    if count < torch.get_num_threads():
        torch.set_num_threads(count)


def use_threads(count: int) -> None:
    """Let PyTorch use `count` threads on the CPU, whatever the environment says."""
    torch.set_num_threads(count)


def use_threads_here(count: int) -> None:
    """Let PyTorch use `count` threads on the CPU for the calling thread's work, and for others' as many as before.

    PyTorch takes the number of a thread that begins from the last call of any thread, when the thread first needs it.
    """
    others = torch.get_num_threads()
    torch.set_num_threads(count)
    last_call = threading.Thread(target=torch.set_num_threads, args=(others,))
    last_call.start()
    last_call.join()


@contextmanager
def sharing_threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that drops the work it has not begun when the caller leaves, also by an error or an interrupt.

    Its threads share the cores: each has its part of those that PyTorch uses for the calling thread's work.
    """
    pool = ThreadPoolExecutor(count, name, use_threads_here, (max(1, thread_count() // count),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def thread_count() -> int:
    """Return the number of threads that the network uses on the CPU for the calling thread's work."""
    return torch.get_num_threads()


def peak_device_memory_mb(device: str) -> float:
    """Return the peak memory of tensors on a CUDA device so far, in MB (10^6 bytes); 0 without one."""
    uses_gpu = device != "cpu" and torch.cuda.is_available()
    return torch.cuda.max_memory_allocated(device) / 1e6 if uses_gpu else 0.0
