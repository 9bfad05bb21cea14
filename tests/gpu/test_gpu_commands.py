"""The commands on a CUDA device, against the CPU where both can be compared."""

from __future__ import annotations

import ctypes.util
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.networks import TRAINABLE_TINY
from helpers.render_scenes import SCENES, draw_scenes
from helpers.training_runs import SOURCE

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import InferOptions
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.base.workers import run_jobs
from picopose_cli.bop.results import read_results
from picopose_cli.commands import infer
from picopose_cli.commands import train as train_command
from picopose_cli.network.checkpoint import load_network
from picopose_cli.rendering.renderers import choose_renderer

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"


@pytest.fixture(scope="module")
def data_dir(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(toy_dir, tmp_path_factory.mktemp("gpu") / "bop")


def infer_poses(data_dir: Path, name: str, **changes: object) -> tuple[np.ndarray, dict[str, object]]:
    """Return the poses (N,4,4) of the toy data set by the small network, and the report."""
    output = data_dir / f"{name}_toy-test.csv"
    plain = InferOptions("toy", data_dir, detections=str(data_dir / "toy/detections.json"), output=output, cache=False)
    report = infer.run(replace(plain, **changes))  # type: ignore[arg-type]
    assert report.exit_code == 0
    return read_results(output).T_cam_from_obj, json.loads(output.with_suffix(".json").read_text())


def share_alike(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of poses that differ by less than a degree and a hundredth of the distance."""
    cosine = (np.einsum("nij,nij->n", a[:, :3, :3], b[:, :3, :3]) - 1) / 2
    degrees = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    moved = np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1)
    return float(((degrees < 1) & (moved < 0.01 * np.linalg.norm(a[:, :3, 3], axis=1))).mean())


@pytest.mark.parametrize("rules", ["paper", "default"])
def test_fp32_poses_are_the_cpus(data_dir: Path, rules: str) -> None:
    options = {"rules": rules, "refine": None if rules == "paper" else 0, "precision": "fp32"}
    on_cpu, _ = infer_poses(data_dir, f"cpu-{rules}", device="cpu", **options)
    on_gpu, report = infer_poses(data_dir, f"gpu-{rules}", device=DEVICE, **options)
    assert len(on_gpu) == len(on_cpu) == 6
    assert share_alike(on_cpu, on_gpu) >= 2 / 3  # rounding may change which hypothesis is chosen
    assert "cuda" in str(report["device"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_refined_poses_repeat(data_dir: Path, precision: str) -> None:
    poses, report = infer_poses(data_dir, f"first-{precision}", device=DEVICE, precision=precision, refine=1)
    again, _ = infer_poses(data_dir, f"second-{precision}", device=DEVICE, precision=precision, refine=1)
    assert np.isfinite(poses).all()
    assert share_alike(poses, again) == 1
    assert float(str(report["peak_device_memory_mb"])) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_continues(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train_command.CONFIGS, "mini", TRAINABLE_TINY)
    monkeypatch.setattr(train_command, "open_source", lambda *_: SOURCE)  # procedural objects take half a minute
    options = TrainOptions(
        tmp_path, steps=4, batch_size=2, workers=0, device=DEVICE, precision=precision, validation_objects=0
    )
    stopped = train_command.run(replace(options, minutes=0.0001)).summary
    assert not stopped.finished
    report = train_command.run(options)
    assert (report.summary.first_step, report.summary.step) == (stopped.step, 4)
    assert all(math.isfinite(value) for value in report.summary.losses.values())
    assert all(tensor.isfinite().all() for tensor in load_network(report.network).state_dict().values())


def test_egl_agrees_with_the_software_renderer() -> None:
    if ctypes.util.find_library("EGL") is None:
        pytest.skip("no EGL library")
    choice = choose_renderer("auto")
    if choice.kind != "egl":
        pytest.skip(str(choice))
    [(_, drawn)] = run_jobs(draw_scenes, ["egl"], 1, timeout_s=60)
    assert not isinstance(drawn, PicoPoseError), drawn
    expected = draw_scenes("software")
    for name in SCENES:
        (rgb, alpha, depth), (rgb_expected, alpha_expected, depth_expected) = drawn[name], expected[name]
        inside, inside_expected = alpha == 255, alpha_expected == 255
        both = (depth > 0) & (depth_expected > 0)
        assert (inside & inside_expected).sum() > 0.995 * (inside | inside_expected).sum(), name
        assert np.median(np.abs(depth - depth_expected)[both]) < 1e-4, name
        assert np.abs(rgb.astype(int) - rgb_expected)[both].mean() < 1, name
