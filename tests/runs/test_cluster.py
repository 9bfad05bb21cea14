"""`--ray` on a cluster of three nodes on this machine: workers are killed, nodes leave and join, the driver dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import cluster_faults
from helpers.rendered_bop import write_bop_dataset

from picopose_cli.base.errors import OutOfMemoryError, PicoPoseError
from picopose_cli.base.option_fields import command_line
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.base.tasks import ImageResult
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.results import write_results
from picopose_cli.commands import infer, render_templates, score
from picopose_cli.runs import cluster_estimates
from picopose_cli.runs.backend import Answered, Lost, NoMemory, Place, Ready, Unusable
from picopose_cli.runs.cluster import Cluster, WorkerShare, _RayBackend, open_cluster
from picopose_cli.runs.journal import JournalFollower, journal_path
from picopose_cli.runs.node_worker import Bug, MemoryTooSmall, outcome_of
from picopose_cli.runs.run import Run
from picopose_cli.templates.bank import read_bank

os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray_cluster = pytest.importorskip("ray.cluster_utils")
import ray  # noqa: E402 - there is one

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 12
NAME = "picopose_toy-test.csv"
STORE_BYTES = 80_000_000


@pytest.fixture(scope="module")
def cluster():
    """A cluster whose first node takes no workers; tests add and remove others.

    Its workers have the package, but not these helpers: those are sent as they are, not by their names.
    """
    ray.cloudpickle.register_pickle_by_value(cluster_faults)
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = ray_cluster.Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        add_node(cluster)
    yield cluster
    cluster.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(cluster_faults)


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
    monkeypatch.setattr(cluster_estimates, "recipe_of", lambda run: cluster_faults.with_faults(real(run), **faults))


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
    add_faults(monkeypatch, pids=pids, waits_from=IMAGES // 2)
    keep, kept, before = Run.keep, list[ImageResult](), list(cluster.worker_nodes)

    def kill_a_worker() -> None:
        os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)

    def change_nodes() -> None:
        add_node(cluster)
        for node in before:  # only the one that has joined is left
            cluster.remove_node(node, allow_graceful=False)
        (pids / "go").touch()

    disturb = [(1, kill_a_worker), (3, change_nodes)]

    def keep_and_disturb(run: Run, *results: ImageResult) -> None:
        keep(run, *results)
        kept.extend(results)  # sometimes of several groups
        while disturb and len(kept) >= disturb[0][0]:
            disturb.pop(0)[1]()

    monkeypatch.setattr(Run, "keep", keep_and_disturb)
    report = infer.run(options(folder, output, ray=cluster.address))
    assert rows(output) == whole
    assert report.exit_code == 0
    assert sum(node["images"] for node in report.nodes) == IMAGES
    assert len(report.nodes) == 3
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


def test_banks_and_scores_are_those_of_this_machine(toy_dir, cluster, tmp_path, monkeypatch):
    """One object and two result files, one of which cannot be scored; the relative path means this folder."""
    monkeypatch.chdir(toy_dir / "toy")
    asked = RenderTemplatesOptions(
        "toy", toy_dir, tmp_path / "here", object_ids=(2,), renderer="software", workers=1, mesh_unit="mm"
    )
    assert render_templates.run(asked).written == [2]
    on_nodes = replace(asked, templates=tmp_path / "nodes", renderer="auto", ray=cluster.address)
    assert render_templates.run(on_nodes).written == [2]
    here, there = (read_bank(folder / "obj_000002.h5") for folder in (tmp_path / "here", tmp_path / "nodes"))
    for one in fields(here):
        np.testing.assert_equal(getattr(there, one.name), getattr(here, one.name))

    dataset = write_bop_dataset(tmp_path, images=1)
    poses = [PoseEstimate(*image, obj_id, 1.0, T, 0.5) for image, of in dataset.poses.items() for obj_id, T in of]
    write_results(tmp_path / "good_toy-test.csv", poses)
    asked = ScoreOptions((tmp_path / "good_toy-test.csv", tmp_path / "no_toy-test.csv"), tmp_path, workers=1)
    expected, found = score.run(asked), score.run(replace(asked, ray=cluster.address))
    assert found == expected
    assert found.exit_code == 1
    assert found.scores["good_toy-test"]["bop19_average_recall"] == 1


def test_places_are_on_nodes_that_keep_their_names_and_order():
    connected = Cluster.__new__(Cluster)
    connected._names, alive = {}, {}
    connected._ray = SimpleNamespace(nodes=lambda: [node(*one) for one in alive.items()])

    def node(node_id: str, of: tuple[str, int, int]) -> dict[str, Any]:
        host, cpus, gpus = of
        return {
            "NodeID": node_id, "Alive": True, "NodeManagerHostname": host, "Resources": {"CPU": cpus, "GPU": gpus}
        }  # fmt: skip

    def places(share: WorkerShare) -> list[tuple[str, int]]:
        backend = _RayBackend(FakeRay(), connected, None, [], share, None)
        return [(place.node, place.index) for place in backend.places()]

    alive.update(m=("head", 0, 0), z=("a", 4, 1))
    assert places(WorkerShare()) == [("a", 0)]
    alive.update(b=("b", 8, 2), c=("a", 2, 0))
    assert places(WorkerShare(on_gpu=True)) == [("a", 0), ("b", 0), ("b", 1)]
    assert places(WorkerShare(on_gpu=True, workers=2, most=2)) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert places(WorkerShare(most=2)) == [("a", 0), ("b", 0)]
    assert len(places(WorkerShare(per_core=True))) == 4 + 8 + 2
    assert places(WorkerShare(workers=3))[-2:] == [("a (c)", 0), ("a (c)", 1)]
    alive.pop("z")
    assert places(WorkerShare()) == [("b", 0), ("a (c)", 0)]


class FakeRay:
    """What the backend needs of Ray to hear what came of calls."""

    exceptions = ray.exceptions

    def put(self, value: Any) -> Any:
        return value

    def remote(self, **_: Any) -> Any:
        return lambda actor: actor


@pytest.mark.parametrize(
    ("answer", "while_starting", "event"),
    [
        (None, True, Ready(1)),
        (PicoPoseError("no licence"), True, Unusable(1, "no licence")),
        (MemoryTooSmall(), True, Lost(1, "memory ran out while it started")),
        (7, False, Answered(1, 0, 7)),
        (MemoryTooSmall(), False, NoMemory(1, 0)),
        (ray.exceptions.ActorDiedError(), False, Lost(1, "its process was killed, or crashed")),
        (ray.exceptions.ActorUnavailableError("socket closed", None), False, "node_left"),
        (ray.exceptions.OutOfMemoryError("more than 95%"), False, "no_memory"),
    ],
)
def test_what_an_answer_of_ray_means(answer, while_starting, event):
    backend, call = _RayBackend(FakeRay(), None, None, [], WorkerShare(), None), Future()
    if isinstance(answer, ray.exceptions.RayError):
        call.set_exception(answer)
    else:
        call.set_result(answer)
    backend._prepared(1, call) if while_starting else backend._answered(1, 0, call)
    (found,) = backend.wait(0.1)
    if isinstance(event, str):
        assert getattr(found, event)
        assert found.worker == 1
    else:
        assert repr(found) == repr(event)


def test_a_bug_on_a_node_is_raised_with_its_trace():
    backend, call = _RayBackend(FakeRay(), None, None, [], WorkerShare(), None), Future()
    backend._actors[1] = Place("1", "gpu-07", 0), None
    call.set_result(Bug("Traceback: ValueError: 3 is odd"))
    backend._answered(1, 0, call)
    with pytest.raises(RuntimeError, match=r"(?s)a worker on gpu-07 .*ValueError: 3 is odd"):
        backend.wait(0.1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), MemoryTooSmall),
        (OutOfMemoryError("one detection does not fit"), MemoryTooSmall),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), MemoryTooSmall),
        (RuntimeError("CUDA out of memory. Tried to allocate"), MemoryTooSmall),
        (RuntimeError("shapes differ"), Bug),
        (KeyError("x"), Bug),
        (PicoPoseError("damaged"), PicoPoseError),
    ],
)
def test_what_an_error_on_a_node_means(error, kind):
    def fail() -> None:
        raise error

    assert type(outcome_of(fail)) is kind


def test_a_node_with_other_versions_is_not_used():
    wanted = cluster_estimates._result_versions()
    assert set(wanted) == {"picopose", "torch", "numpy", "opencv-python-headless"}
    cluster_estimates._require_versions(wanted)
    with pytest.raises(PicoPoseError, match=r"the node has torch \S+ instead of 9\.9"):
        cluster_estimates._require_versions(wanted | {"torch": "9.9"})


def test_without_ray_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PicoPoseError, match=r"pip install 'picopose-cli\[ray\]'"), open_cluster("auto"):
        pass
