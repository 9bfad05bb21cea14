"""`picopose train` as a whole, and a short training that learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import TRAINABLE
from helpers.toy_pairs import ToySource

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.commands import train as command
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.config import MINI
from picopose_cli.network.picopose import PicoPose
from picopose_cli.training.batches import collate
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.loop import train
from picopose_cli.training.losses import PairLosses, sample_draws
from picopose_cli.training.recipes import RELEASED_RECIPE
from picopose_cli.training.start import start_network

SMALL = replace(TRAINABLE, vit=replace(TRAINABLE.vit, width=32))


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.CONFIGS, "mini", SMALL)


def options(output: Path, **changes: object) -> TrainOptions:
    plain = TrainOptions(output, steps=4, batch_size=2, workers=0, device="cpu", validation_objects=0)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_preset")
def test_the_command_trains_writes_and_goes_on(tmp_path: Path) -> None:
    report = command.run(options(tmp_path, minutes=0.0001))
    assert report.exit_code == 0
    assert not report.summary.finished
    stopped = report.summary.step
    report = command.run(options(tmp_path))
    assert (report.summary.first_step, report.summary.step) == (stopped, 4)
    network = load_network(report.network)
    assert network.config == SMALL
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [run["step"] for run in summary["runs"]] == [stopped, 4]
    assert summary["runs"][1]["losses"]["total"] > 0
    assert summary["network"]["bytes"] == report.network.stat().st_size
    whole = command.run(options(tmp_path / "whole"))
    other = load_network(whole.network).state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items())
    again = command.run(options(tmp_path))
    assert (again.summary.first_step, again.summary.step) == (4, 4)


@pytest.mark.usefixtures("small_preset")
def test_start_weights_are_used(tmp_path: Path) -> None:
    first = command.run(options(tmp_path / "a"))
    second = command.run(options(tmp_path / "b", init=first.network, steps=1, lr=1e-12))
    before, after = load_network(first.network).state_dict(), load_network(second.network).state_dict()
    name = "feature_extractor.dinov2.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(before[name], after[name], atol=1e-5, rtol=1e-3)
    with pytest.raises(PicoPoseError, match="cannot be read"):
        command.run(options(tmp_path / "c", init=tmp_path / "nothing.pth"))


@pytest.mark.usefixtures("small_preset")
def test_a_frozen_backbone_stays_and_the_rest_learns(tmp_path: Path) -> None:
    first = command.run(options(tmp_path / "a"))
    second = command.run(options(tmp_path / "b", init=first.network, freeze_backbone=True))
    before, after = load_network(first.network).state_dict(), load_network(second.network).state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert not any(name.startswith("feature_extractor.") for name in changed)
    assert "affine_regressor.fc1.weight" in changed
    with pytest.raises(PicoPoseError, match="--init"):
        options(tmp_path / "c", freeze_backbone=True)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(PicoPoseError, match="nowhere"):
        command.run(options(tmp_path, source="megapose", shards=tmp_path / "nowhere"))


def test_the_shipped_sizes_fit_their_limit() -> None:
    with torch.device("meta"):
        network = PicoPose(MINI)
    stored = sum(t.numel() * (2 if t.ndim > 1 else 4) for t in network.state_dict().values())
    assert stored < 30e6
    assert MINI.flow_grids == (16, 32, 64)


def held_out_losses(network: PicoPose, source: ToySource) -> dict[str, float]:
    """Losses of pairs of the same objects that training never saw."""
    samples = source.samples(0, 1, 0)
    batch = collate([next(samples) for _ in range(24)])
    losses = PairLosses(network.eval(), RELEASED_RECIPE, rotate=False)
    with torch.inference_mode():
        terms = losses(batch, sample_draws(24, 64, 0.0, torch.Generator().manual_seed(0)))
    return {name: value.item() for name, value in terms.items()}


def test_a_short_training_learns(tmp_path: Path) -> None:
    """A minute on one core: every loss falls on views never seen, and the angle over the full circle beats chance."""
    keys = ("box", "ball")
    held_out = ToySource(seed=1, kept=24, keys=keys, loose=0.4)
    network = start_network(TRAINABLE, None, 0)
    before = held_out_losses(network, held_out)
    changes = {"steps": 60, "batch_size": 14, "lr": 1.5e-3, "ema": 0.9, "max_roll_deg": 0.0}
    source = ToySource(kept=140, keys=keys, loose=0.4)
    train(options(tmp_path, **changes), network, source, TrainingProcess(torch.device("cpu"), "fp32"))
    after = held_out_losses(network, held_out)
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value < 0.97 * before[name], name
    assert before["inplane"] > np.deg2rad(80)
    assert after["inplane"] < np.deg2rad(75)  # chance is 90 degrees
    assert after["translation"] < 0.8 * before["translation"]
    assert after["certainty_32"] < 0.5 * np.log(2)
