"""Which device runs the network, in which precision, and how much of its memory was used."""

from __future__ import annotations

import torch

from picopose_cli.errors import PicoPoseError


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


def choose_precision(wanted: str) -> str:
    """Return `fp32` or `bf16`; `auto` is fp32 everywhere."""
    return "fp32" if wanted == "auto" else wanted


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
