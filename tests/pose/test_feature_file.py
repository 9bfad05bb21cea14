"""The file of template features: what it holds, damage, its lock, and what killed writers leave."""

from __future__ import annotations

import fcntl
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.pose.feature_file import FeatureChunk, FeatureFile, FeaturesOnDisk, feature_file

VIEWS = 5
CPU = torch.device("cpu")
CELLS, OFFSETS = (torch.randn(VIEWS, *shape, generator=torch.Generator().manual_seed(0)) for shape in ((6, 8), (3000,)))


def chunks(dtype: torch.dtype = torch.float32) -> Iterator[FeatureChunk]:
    for rows in (slice(0, 3), slice(3, VIEWS)):
        yield CELLS[rows].to(dtype), OFFSETS[rows].to(dtype)


@pytest.fixture
def file(tmp_path) -> FeatureFile:
    return FeatureFile(tmp_path / "obj_000001.features-0123456789ab.h5", "fingerprint")


def replace_bytes(path: Path, data: bytes) -> None:
    """Put other content in the place of a file that may be open."""
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_read_as_they_were_written(file, dtype):
    for found in (file.write(VIEWS, chunks(dtype)), file.read()):
        assert torch.equal(found.cells(), CELLS.to(dtype))
        for view in range(VIEWS):
            assert torch.equal(found.offsets(view, CPU), OFFSETS[view].to(dtype))
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def test_the_file_is_plain_hdf5(file):
    file.write(VIEWS, chunks(torch.bfloat16))
    with h5py.File(file.path) as content:
        assert content.attrs["fingerprint"] == b"fingerprint"
        for name, values in (("cells", CELLS), ("offsets", OFFSETS)):
            assert content[name].shape == values.shape
            assert content[name].chunks == (1, *values.shape[1:])
            assert content[name].fletcher32
            assert content[name].dtype == np.uint16
            assert content[name].attrs["dtype"] == b"bfloat16"


def test_the_fingerprint_is_part_of_the_name(tmp_path):
    (tmp_path / "obj_000001.h5").write_bytes(b"bank")
    settings = {"weights_sha256": "w", "precision": "fp32", "device": "cpu"}
    changes = ({}, {"weights_sha256": "v"}, {"precision": "bf16"}, {"device": "cuda:1"})  # the kind of device counts
    files = [feature_file(tmp_path / "obj_000001.h5", **settings | change) for change in changes]
    assert files[3] == feature_file(tmp_path / "obj_000001.h5", **settings | {"device": "cuda:0"})
    (tmp_path / "obj_000001.h5").write_bytes(b"another bank")
    files.append(feature_file(tmp_path / "obj_000001.h5", **settings))
    assert len({file.path for file in files}) == len(files)
    assert json.loads(files[0].fingerprint)["torch"] == torch.__version__
    for file in files:
        assert file.path.name.startswith("obj_000001.features-")
        file.write(VIEWS, chunks())
    assert all(file.read() is not None for file in files)  # beside each other


def test_a_file_of_another_fingerprint_is_not_used(file, caplog):
    file.write(VIEWS, chunks())
    caplog.set_level(logging.INFO)
    assert FeatureFile(file.path, "other").read() is None
    assert "other weights" in caplog.text


def test_any_damage_is_detected(file):
    """Wherever bytes are damaged: the features are refused or right, never wrong."""
    file.write(VIEWS, chunks())
    data = file.path.read_bytes()
    refused = 0
    for at in range(0, len(data), 307):
        replace_bytes(file.path, data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        found = file.read()
        if found is None:
            refused += 1
            continue
        assert torch.equal(found.cells(), CELLS)
        for view in range(VIEWS):
            try:
                assert torch.equal(found.offsets(view, CPU), OFFSETS[view])
            except PicoPoseError:
                refused += 1
    assert refused > 0.9 * len(data) / 307


@pytest.mark.parametrize("size", [0, 5, 100, -1, -5000])
def test_a_truncated_file_is_not_used(file, size):
    file.write(VIEWS, chunks())
    replace_bytes(file.path, file.path.read_bytes()[:size])
    assert file.read() is None
    assert file.path.exists()


def test_a_hole_is_damage(file):
    """A chunk of zeros has a valid checksum, but no view has such features."""
    found = file.write(VIEWS, chunks())
    data = file.path.read_bytes()
    start = data.index(OFFSETS[2].numpy().tobytes())
    with file.path.open("r+b") as stream:
        stream.seek(start)
        stream.write(bytes(OFFSETS[2].nbytes + 4))
    with pytest.raises(PicoPoseError, match="no data"):
        found.offsets(2, CPU)
    assert torch.equal(found.offsets(3, CPU), OFFSETS[3])


def test_a_damaged_view_is_reported_with_the_file(file):
    found = file.write(VIEWS, chunks())
    data = file.path.read_bytes()
    start = data.index(OFFSETS[2].numpy().tobytes())
    with file.path.open("r+b") as stream:
        stream.seek(start + 100)
        stream.write(b"wrong")
    with pytest.raises(PicoPoseError, match="damaged") as caught:
        found.offsets(2, CPU)
    assert caught.value.where == str(file.path)
    assert "delete the file" in caught.value.fix


def test_several_threads_read_through_one_handle(file):
    found = file.write(VIEWS, chunks())
    wrong: list[int] = []

    def read() -> None:
        views = [*range(VIEWS)] * 20
        wrong.extend(view for view in views if not torch.equal(found.offsets(view, CPU), OFFSETS[view]))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_second_process_waits_and_reads_what_the_first_has_written(file):
    """The first writer is held inside its lock by this test; the second computes nothing."""
    entered, leave, results = threading.Event(), threading.Event(), {}

    def slow_chunks() -> Iterator[FeatureChunk]:
        entered.set()
        assert leave.wait(60)
        yield from chunks()

    def unexpected() -> Iterator[FeatureChunk]:
        raise AssertionError("computed twice")
        yield

    first = threading.Thread(target=lambda: results.update(first=file.read_or_write(VIEWS, slow_chunks())))
    second = threading.Thread(target=lambda: results.update(second=file.read_or_write(VIEWS, unexpected())))
    first.start()
    assert entered.wait(60)
    second.start()
    time.sleep(0.2)
    assert second.is_alive()
    leave.set()
    first.join(60)
    second.join(60)
    assert isinstance(results["second"], FeaturesOnDisk)
    assert torch.equal(results["second"].cells(), CELLS)
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]


def test_leftovers_of_a_killed_writer_are_removed(file):
    """The writer is a process that is killed with SIGKILL while it writes."""
    code = (
        "import os, sys; from pathlib import Path; import torch\n"
        "from picopose_cli.pose.feature_file import FeatureFile\n"
        "def chunks():\n"
        "    yield torch.ones(2, 6, 8), torch.ones(2, 3000)\n"
        "    os.kill(os.getpid(), 9)\n"
        "FeatureFile(Path(sys.argv[1]), 'fingerprint').read_or_write(5, chunks())"
    )
    subprocess.run([sys.executable, "-c", code, str(file.path)], check=False)
    left = {path.name for path in file.path.parent.iterdir()}
    assert len(left) == 2  # the temporary file and the lock
    assert not file.path.exists()
    other = file.path.with_name(f".{file.path.name}x.abc.tmp.h5")
    other.touch()  # of another file
    file.read_or_write(VIEWS, chunks())
    assert {path.name for path in file.path.parent.iterdir()} == {file.path.name, other.name}


def test_without_locks_the_file_is_written_all_the_same(file, monkeypatch, caplog):
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    leftover = file.path.with_name(f".{file.path.name}.abc.tmp.h5")
    leftover.touch()
    assert torch.equal(file.read_or_write(VIEWS, chunks()).cells(), CELLS)
    assert "no locks" in caplog.text
    assert leftover.exists()  # it could be another writer's


def test_a_full_disk_is_an_error_of_the_file_and_not_of_the_library(tmp_path):
    """HDF5 itself would crash the process when it ends."""
    code = (
        "import resource, signal, sys; from pathlib import Path; import torch\n"
        "from picopose_cli.base.errors import PicoPoseError\n"
        "from picopose_cli.pose.feature_file import FeatureFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "chunks = ((torch.ones(4, 6, 8), torch.ones(4, 100_000)) for _ in range(5))\n"
        "try: FeatureFile(Path(sys.argv[1]), 'f').write(20, chunks)\n"
        "except PicoPoseError as error: print(error)"
    )
    path = tmp_path / "features.h5"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written" in done.stdout
    assert not list(tmp_path.iterdir())
