"""`--ray` on a cluster of three nodes on this machine: workers are killed, nodes leave and join, the driver dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.cluster_faults import with_faults
from helpers.rendered_bop import write_bop_dataset

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import InferOptions
from picopose_cli.base.tasks import ImageResult
from picopose_cli.commands import infer
from picopose_cli.runs import cluster_estimates
from picopose_cli.runs.journal import JournalFollower, journal_path
from picopose_cli.runs.run import Run

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray_cluster = pytest.importorskip("ray.cluster_utils")

IMAGES = 12
NAME = "picopose_toy-test.csv"
STORE_BYTES = 80_000_000


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As on the nodes: another number of threads rounds otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cluster():
    """A cluster whose first node takes no workers; tests add and remove others."""
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = ray_cluster.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        add_node(cluster)
    yield cluster
    cluster.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


@pytest.fixture(scope="module")
def folder(toy_dir, tmp_path_factory) -> Path:
    """A data set of more images, with the templates and the network of `toy_dir`."""
    folder = tmp_path_factory.mktemp("cluster")
    write_bop_dataset(folder, "toy", images=IMAGES, depth=False)
    shutil.copytree(toy_dir / "toy/templates", folder / "toy/templates")
    shutil.copytree(toy_dir / "toy/models", folder / "toy/models", dirs_exist_ok=True)
    shutil.copy(toy_dir / "tiny.safetensors", folder)
    return folder


def options(folder: Path, output: Path, **changes) -> InferOptions:
    values = {
        "dataset": "toy", "data_dir": folder, "weights": folder / "tiny.safetensors", "device": "cpu",
        "detections": str(folder / "toy/detections.json"), "hypotheses": 2, "refine": 0, "batch_size": 2,
        "output": output,
    }  # fmt: skip
    return InferOptions(**(values | changes))


@pytest.fixture(scope="module")
def whole(folder) -> list[str]:
    """The rows of a run without Ray."""
    output = folder / "whole" / NAME
    infer.run(options(folder, output))
    return rows(output)


def rows(path: Path) -> list[str]:
    """The lines of a result file without the measured time, which stands last."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def numbers_of(im_id: int, lines: list[str]) -> np.ndarray:
    found = [line for line in lines if line.startswith(f"1,{im_id},")]
    assert found
    return np.array([[float(number) for number in re.split("[ ,]", line)] for line in found])


def add_faults(monkeypatch, **faults: Any) -> None:
    real = cluster_estimates.recipe_of
    monkeypatch.setattr(cluster_estimates, "recipe_of", lambda run: with_faults(real(run), **faults))


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_workers_die_and_nodes_leave_and_join_and_the_file_is_the_same(
    folder, whole, cluster, tmp_path, monkeypatch, capfd
):
    output, pids = tmp_path / NAME, tmp_path / "pids"
    pids.mkdir()
    add_faults(monkeypatch, sleep_s=0.2, pids=pids)
    keep, kept, before = Run.keep, list[ImageResult](), list(cluster.worker_nodes)

    def keep_and_disturb(run: Run, result: ImageResult) -> None:
        keep(run, result)
        kept.append(result)
        if len(kept) == 1:
            os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
        elif len(kept) == 3:
            add_node(cluster)
            add_node(cluster)
            for node in before:  # only those that have joined are left
                cluster.remove_node(node, allow_graceful=False)

    monkeypatch.setattr(Run, "keep", keep_and_disturb)
    report = infer.run(options(folder, output, ray=cluster.address))
    assert rows(output) == whole
    assert report.exit_code == 0
    assert sum(node["images"] for node in report.nodes) == IMAGES
    assert len(report.nodes) in (3, 4)
    assert sum(node["lost"] for node in report.nodes) >= 2
    assert any("killed, or crashed" in line and report.nodes[0]["node"][:3] in line for line in report.warnings)
    assert any("left the cluster" in line for line in report.warnings)
    out, err = capfd.readouterr()
    assert "(raylet)" not in out + err
    assert "images in" in out


def test_a_group_that_kills_is_recorded_and_files_are_sent_to_nodes_that_lack_them(
    folder, whole, cluster, tmp_path, monkeypatch
):
    """The images of another group fit only into a smaller batch."""
    output, cache = tmp_path / NAME, tmp_path / "cache"
    add_faults(monkeypatch, kills=(4,), too_large=(9,), blind=cache)
    report = infer.run(options(folder, output, ray=cluster.address, ship_images=True))
    assert sorted(set(whole) - set(rows(output))) == sorted(row for row in whole if row.startswith(("1,4,", "1,9,")))
    np.testing.assert_allclose(numbers_of(9, rows(output)), numbers_of(9, whole), rtol=1e-5)
    assert report.exit_code == 1
    assert [(skip.im_id, skip.obj_id) for skip in report.skipped] == [(4, None)]
    assert report.skipped[0].reason.count("killed, or crashed") == 3
    copies = {copy.name.partition("-")[0] for copy in cache.rglob("*.*")}
    assert copies == {"tiny.safetensors", *(f"obj_00000{n}{end}" for n in (1, 2) for end in (".h5", ".features"))}


def test_a_driver_that_is_killed_goes_on_from_its_journal(folder, whole, cluster, tmp_path):
    """Without Ray at last: it is the same run."""
    output = tmp_path / NAME
    asked = options(folder, output, ray=cluster.address)
    driver = subprocess.Popen([sys.executable, "-m", "picopose_cli", "infer", *command_line(asked)])
    done = JournalFollower(journal_path(output)).done
    wait_until(lambda: done() >= 1)
    driver.kill()
    driver.wait()
    kept = done()
    assert 1 <= kept < IMAGES
    assert infer.run(options(folder, output)).kept_images == kept
    assert rows(output) == whole


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there"),
        ("localhost", "use auto or HOST:PORT"),
        ("ray://head:10001", "run the command on a node of the cluster"),
    ],
)
def test_an_address_where_no_cluster_is(folder, tmp_path, address, text):
    with pytest.raises(PicoPoseError, match=text):
        infer.run(options(folder, tmp_path / NAME, ray=address))
