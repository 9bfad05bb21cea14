"""Runs that are sharded in one way, stopped, and continued in another; shards that must not be merged."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from picopose_cli.base.errors import BUG_EXIT_CODE, PicoPoseError
from picopose_cli.base.interrupts import StoppedError
from picopose_cli.base.options import InferOptions, MergeOptions
from picopose_cli.bop.check import ERROR, Finding
from picopose_cli.bop.results import read_results
from picopose_cli.commands import infer, merge
from picopose_cli.network import devices as network_devices
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.runs import run as run_module
from picopose_cli.runs.devices import Children
from picopose_cli.runs.identity import run_identity
from picopose_cli.runs.inputs import SHARD_BATCH_SIZE, read_inputs
from picopose_cli.runs.journal import Journal, journal_path
from picopose_cli.runs.shards import begun_outputs, shard_path, shard_paths


@pytest.fixture
def options(toy_dir, tmp_path) -> InferOptions:
    """Three images, each a group of its own."""
    shutil.copytree(toy_dir, tmp_path / "bop")
    data = tmp_path / "bop"
    return InferOptions(
        "toy", data, weights=data / "tiny.safetensors", detections=str(data / "toy/detections.json"), rules="paper",
        hypotheses=1, batch_size=2, device="cpu", output=tmp_path / "picopose_toy-test.csv",
    )  # fmt: skip


def poses(path: Path) -> list[str]:
    table = read_results(path)
    return [
        repr(row) for row in zip(table.im_id, table.obj_id, table.score, table.T_cam_from_obj.tolist(), strict=True)
    ]


def stop_after_first_image(monkeypatch, options: InferOptions) -> None:
    real = Journal.append

    def append(journal, *results):
        real(journal, *results)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(StoppedError):
            infer.run(options)


def test_a_stopped_run_continues_in_other_shards_and_back(options, tmp_path, monkeypatch):
    infer.run(replace(options, output=tmp_path / "whole_toy-test.csv"))
    stop_after_first_image(monkeypatch, options)
    first, second = shard_paths(options.output, 2)
    assert infer.run(replace(options, output=first, shard="1/2")).kept_images == 1
    report = infer.run(options)
    assert report.kept_images == report.images - len(read_inputs(replace(options, output=second, shard="2/2")).tasks)
    assert report.kept_images >= 1
    assert poses(options.output) == poses(tmp_path / "whole_toy-test.csv")
    assert begun_outputs(options.output) == []
    assert not first.exists()


def test_another_run_s_shards_are_neither_taken_nor_removed(options, monkeypatch):
    stop_after_first_image(monkeypatch, replace(options, output=shard_path(options.output, 1, 2), shard="1/2"))
    other = replace(options, hypotheses=2)
    assert infer.run(other).kept_images == 0
    assert begun_outputs(options.output) == [shard_path(options.output, 1, 2)]


def test_a_shard_that_is_computed_again_is_not_merged(options):
    shards = shard_paths(options.output, 2)
    for index, shard in enumerate(shards, start=1):
        infer.run(replace(options, output=shard, shard=f"{index}/2"))
    again = replace(options, output=shards[0], shard="1/2", restart=True)
    inputs = read_inputs(again)
    with (
        Journal(journal_path(shards[0]), run_identity(inputs), inputs.tasks, restart=True),
        pytest.raises(PicoPoseError, match="being computed again"),
    ):
        merge.run(MergeOptions(options.output, tuple(shards)))
    infer.run(replace(again, restart=False))
    assert merge.run(MergeOptions(options.output, tuple(shards))).estimates == 6
    assert begun_outputs(options.output) == []


def test_batches_of_a_shard_do_not_depend_on_the_memory_of_its_device(options, monkeypatch):
    from picopose_cli.runs import inputs as module

    monkeypatch.setattr(module, "suggest_batch_size", lambda *_: pytest.fail("the device was asked"))
    assert read_inputs(replace(options, batch_size=None, shard="1/2")).batch_size == SHARD_BATCH_SIZE["cpu"]
    assert network_devices.choose_device("cpu") in SHARD_BATCH_SIZE


def test_a_result_file_with_an_error_keeps_its_journal(options, monkeypatch):
    error = Finding(ERROR, 2, "times differ", "differing times")
    monkeypatch.setattr(run_module, "check_results", lambda *_: [error])
    with pytest.raises(PicoPoseError, match=r"not valid.*times differ"):
        infer.run(options)
    assert journal_path(options.output).is_file()
    assert "times differ" in options.output.with_suffix(".json").read_text()


def test_leftovers_of_a_killed_writer_are_removed(options):
    leftover = options.output.with_name(f".{options.output.name}.abc123.tmp.csv")
    leftover.write_text("half")
    infer.run(options)
    assert not leftover.exists()


@pytest.mark.parametrize("name", ["x_toy-test.json", "x_toy-test", "x_toy-test.CSV"])
def test_only_csv_files_are_written(options, name):
    path = options.output.with_name(name)
    with pytest.raises(PicoPoseError, match=r"does not end in \.csv"):
        infer.run(replace(options, output=path))
    with pytest.raises(PicoPoseError, match=r"does not end in \.csv"):
        merge.run(MergeOptions(path, (options.output,)))


def test_a_limited_run_has_a_name_of_its_own(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert infer.run(replace(options, output=None, limit=1)).output == "picopose_toy-test_first1.csv"


def test_a_bug_in_a_child_arrives_with_its_traceback():
    code = f"import sys; print('Traceback: ValueError: boom', file=sys.stderr); sys.exit({BUG_EXIT_CODE})"
    with tempfile.TemporaryFile() as errors, Children() as children:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=errors)
        children._started.append(("cuda:1", process, errors))
        process.wait()
        with pytest.raises(RuntimeError, match="cuda:1 failed:\nTraceback: ValueError: boom"):
            children.running()


def test_a_mesh_that_cannot_be_read_is_tried_once_and_reported(tmp_path):
    import numpy as np

    renderer = EstimateRenderer({3: (tmp_path / "obj_000003.ply", "mm")})
    for _ in range(2):
        with pytest.raises(PicoPoseError, match="obj_000003"):
            renderer(3, np.eye(4), np.eye(3), 32)
    assert list(renderer.errors) == [3]
