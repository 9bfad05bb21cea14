from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from picopose_cli.base import environment
from picopose_cli.base.environment import available_cores, peak_memory_mb


def test_a_process_counts_its_own_memory_and_not_its_parents():
    held = np.ones(400_000_000, np.uint8)
    assert peak_memory_mb() > 400
    code = "from picopose_cli.base.environment import peak_memory_mb; print(peak_memory_mb())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 200
    assert held.all()


def test_cores_are_those_of_the_process_and_of_its_job(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    assert available_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert available_cores() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert available_cores() == 3


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("800000 100000", 3), ("max 100000", 3), ("", 3)])
def test_cores_are_at_most_a_containers_quota(monkeypatch, tmp_path, quota, cores):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6})
    monkeypatch.setattr(environment, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores() == cores
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert available_cores() == 1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such parameter")
@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_one_heap(shared):
    code = f"""
import ctypes, os, threading
from picopose_cli.base.environment import share_free_memory

if {shared}:
    share_free_memory()
libc, all_live = ctypes.CDLL(None), threading.Barrier(3)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p

def allocate():
    libc.malloc(ctypes.c_size_t(1000))
    all_live.wait()

threads = [threading.Thread(target=allocate) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
reading, writing = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(writing, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(os.read(reading, 1 << 16).count(b"<heap nr="))
"""
    heaps = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert (heaps == 1) == shared
