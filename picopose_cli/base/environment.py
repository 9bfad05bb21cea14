"""The environment of a run: package versions, machine and memory."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from picopose_cli import __version__

PACKAGES = ("torch", "numpy", "opencv-python-headless", "h5py", "trimesh", "pyrender2")
SETTINGS = ("BOP_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_JOB_ID", "SLURM_CPUS_PER_TASK")
"""Environment variables that change what a command does."""
_QUERY_S = 10.0
_CGROUP = Path("/sys/fs/cgroup")
_QUIET_THREADS = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "0", "OPENCV_FOR_THREADS_NUM": "1"}
"""Environment variables of a process with threads of its own. PyTorch's threads wait for each other by spinning a few
microseconds, then asleep: longer, they would take cores that others need. OpenCV works in the thread that calls it; the
optical flow that it computes would differ with the number of threads."""

_M_ARENA_MAX = -8
"""Parameter of glibc's `mallopt`, as in malloc.h."""
_MADE_BEFORE_GC = 100_000
"""Objects that are made before Python looks for cycles: with its own 700 it spends 5 % of the time of `infer` on those
of the libraries, of which there are many and of which none goes."""


def prepare_process() -> None:
    """Set how a process of the command line, or of a cluster, uses threads and memory, before libraries are loaded."""
    for name, value in _QUIET_THREADS.items():
        os.environ.setdefault(name, value)
    gc.set_threshold(_MADE_BEFORE_GC)
    share_free_memory()


def share_free_memory() -> None:
    """Let all threads that begin later allocate from one heap, where the C library is glibc.

    By default each takes a heap of its own, and what is free in one is of no use to the others: a tenth of the memory
    of `infer`. Threads rarely wait for the heap: large arrays take long to fill.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
        if mallopt is not None:
            mallopt(_M_ARENA_MAX, 1)


def package_versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that results depend on."""
    versions = {"picopose": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return versions


def machine() -> dict[str, str | int]:
    """Return the processor, cores and operating system, as stored beside measured times."""
    return {"processor": _processor(), "cores": available_cores(), "system": platform.platform()}


def environment_lines() -> list[str]:
    """Return versions, machine and settings as a bug report needs them; no heavy library is imported."""
    versions, here = package_versions(), machine()
    lines = [f"picopose {versions.pop('picopose')}"]
    lines.append(f"python {versions.pop('python')}, {here['system']}, {here['cores']} cores, {here['processor']}")
    lines.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    settings = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return [*lines, f"GPUs: {'; '.join(gpu_lines()) or 'none found'}", f"settings: {' '.join(settings) or 'none'}"]


def gpu_lines() -> list[str]:
    """Return name, memory and driver of each NVIDIA GPU as nvidia-smi prints them; none without it."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def available_cores() -> int:
    """Return the number of cores that this process may use: by affinity, by its container's quota, by its SLURM job."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    slurm = os.environ.get("SLURM_CPUS_PER_TASK", "")
    shares = [cores, _quota_cores(), int(slurm) if slurm.isdecimal() else None]
    return min(share for share in shares if share)


def _quota_cores() -> int | None:
    """Return the cores of the control group's quota, rounded up, as containers set it; None without one."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # versions 2 and 1
        try:
            quota, period = " ".join((_CGROUP / name).read_text() for name in names).split()
            return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return None


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage reports at least the parent's peak at the time of the fork
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
