"""The loop: exact continuation, the order of batches, schedules, stopping, several processes, damaged checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.networks import TRAINABLE, TRAINABLE_TINY, weights_of
from helpers.toy_pairs import ToySource
from helpers.training_runs import SOURCE, short_run
from safetensors.torch import load_file

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.commands.train import TrainReport
from picopose_cli.network.checkpoint import load_network, save_network
from picopose_cli.network.config import VIT_L
from picopose_cli.synthesis.samples import Sample
from picopose_cli.training.batches import StreamPosition, collate, open_batches
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.loop import train
from picopose_cli.training.recipes import MINI_RECIPE, RELEASED_RECIPE, choose_recipe
from picopose_cli.training.sample_pool import SamplePool
from picopose_cli.training.sources import ramp_samples
from picopose_cli.training.start import start_network
from picopose_cli.training.state import (
    find_checkpoint,
    find_not_finite,
    learning_rate,
    read_checkpoint,
    start_state,
    write_checkpoint,
)

CPU = TrainingProcess(torch.device("cpu"), "fp32")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


class StopAfter:
    """Answers yes from the n-th question on."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 2), (2, 1)])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, workers: int, accumulate: int) -> None:
    whole, parts = start_network(TRAINABLE_TINY, None, 0), start_network(TRAINABLE_TINY, None, 0)
    changes = {"workers": workers, "accumulate": accumulate}
    train(short_run(tmp_path / "a", **changes), whole, SOURCE, CPU)
    first = train(short_run(tmp_path / "b", **changes), parts, SOURCE, CPU, stop=StopAfter(10))
    assert (first.step, first.finished) == (10, False)
    torch.rand(7)  # the global random state has no part
    parts = start_network(TRAINABLE_TINY, None, 99)  # and neither have the weights from before
    second = train(short_run(tmp_path / "b", **changes), parts, SOURCE, CPU)
    assert (second.first_step, second.step, second.finished) == (10, 20, True)
    assert_same(weights_of(whole), weights_of(parts))
    last = [torch.load(find_checkpoint(tmp_path / folder), weights_only=True) for folder in "ab"]
    assert_same(last[0]["network"], last[1]["network"])
    assert len(last[0]["optimizers"]) == 2  # AdamW and Muon
    for one, other in zip(*(content["optimizers"] for content in last), strict=True):
        for index, values in one["state"].items():
            assert_same(values, other["state"][index])
    logs = [[json.loads(line) for line in (tmp_path / f / "log.jsonl").read_text().splitlines()] for f in "ab"]
    assert [line["step"] for line in logs[1]] == [10, 20]
    assert logs[0][-1]["lr"] == logs[1][-1]["lr"]


def test_half_precision_stays_near(tmp_path: Path) -> None:
    """bf16 autocast keeps coordinates and losses in f32: the first losses are almost those of fp32."""
    losses = []
    for precision in ("fp32", "bf16"):
        group = TrainingProcess(torch.device("cpu"), precision)
        summary = train(short_run(tmp_path / precision, steps=1), start_network(TRAINABLE_TINY, None, 0), SOURCE, group)
        losses.append(summary.losses)
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(value, rel=0.03, abs=0.01), name


class Numbered:
    """Samples whose diameter is their running number over all shares."""

    def __init__(self) -> None:
        self.like = next(SOURCE.samples(0, 1, 0))
        self.skipped: Counter[str] = Counter()

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        while True:
            yield replace(self.like, diameter_m=float(start * workers + worker))
            start += 1


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_continue_in_the_same_order(workers: int) -> None:
    def numbers(position: StreamPosition, count: int) -> list[list[float]]:
        batches = open_batches(Numbered(), batch_size=2, workers=workers, position=position, pinned=False)
        return [next(batches).diameter_m.tolist() for _ in range(count)]

    whole = numbers(StreamPosition(1, 2), 8)
    assert len({number for batch in whole for number in batch}) == 16
    for stopped in (1, 3, 5):
        assert numbers(StreamPosition(1, 2, stopped), 8 - stopped) == whole[stopped:]
    other = numbers(StreamPosition(0, 2), 8)
    assert not {number for batch in other for number in batch} & {number for batch in whole for number in batch}


def test_the_pool_uses_each_sample_about_so_often() -> None:
    fresh = (collate([replace(Numbered().like, diameter_m=float(2 * n + i)) for i in range(2)]) for n in range(40))
    pool = SamplePool(fresh, times=3, seed=0, pool_batches=4)
    seen = [batch.diameter_m.tolist() for batch in pool.batches()]
    assert len(seen) == 120
    counts = np.bincount(np.array(seen).astype(int).ravel(), minlength=80)
    assert counts.sum() == 240
    assert counts.min() >= 1
    assert 2.9 < counts.mean() < 3.1
    for n in range(40):
        mixed = np.array(seen[3 * n : 3 * n + 3])
        assert mixed.max() <= 2 * n + 1
        assert mixed.min() >= 2 * (n - 3)


def test_schedule_warms_up_and_falls() -> None:
    rates = [learning_rate(RELEASED_RECIPE, step, 400_000) for step in (0, 499, 999, 200_500, 399_999)]
    np.testing.assert_allclose(rates[:4], [1e-8, 5e-6, 1e-5, 5e-6], rtol=1e-6)
    assert 0 <= rates[4] < 1e-12
    assert choose_recipe(TrainOptions(Path("x"))) == MINI_RECIPE
    assert choose_recipe(TrainOptions(Path("x"), preset="vit-l", lr=1.0)) == replace(RELEASED_RECIPE, lr=1.0)


def test_the_ramp_counts_samples() -> None:
    wanted = short_run(Path("x"), batch_size=4, curriculum_steps=10, accumulate=3)
    assert ramp_samples(wanted, 2) == 240
    assert ramp_samples(replace(wanted, reuse=2), 2) == 120  # a sample serves two steps
    assert ramp_samples(replace(wanted, curriculum_steps=0), 2) == 1


def test_time_is_a_clean_end_and_only_two_checkpoints_stay(tmp_path: Path) -> None:
    network = start_network(TRAINABLE_TINY, None, 0)
    summary = train(short_run(tmp_path, steps=10_000, minutes=0.05, checkpoint_every=1), network, SOURCE, CPU)
    assert 1 < summary.step < 10_000
    assert not summary.finished
    found = sorted(tmp_path.glob("*.pt"))
    assert len(found) == 2
    assert find_checkpoint(tmp_path) == found[-1] == tmp_path / f"checkpoint_{summary.step:08d}.pt"
    assert not network.training


def test_validation_sees_the_mean_weights_and_changes_nothing(tmp_path: Path) -> None:
    seen = []

    def validate(network: torch.nn.Module, step: int) -> dict[str, float]:
        assert not network.training
        seen.append((step, weights_of(network)))
        return {"score": float(step)}

    scored, plain = start_network(TRAINABLE_TINY, None, 0), start_network(TRAINABLE_TINY, None, 0)
    summary = train(short_run(tmp_path / "a", steps=6, validate_every=2), scored, SOURCE, CPU, validate=validate)
    train(short_run(tmp_path / "b", steps=6), plain, SOURCE, CPU)
    assert [step for step, _ in seen] == [2, 4, 6]
    assert summary.validation == {"score": 6.0}
    assert_same(weights_of(scored), weights_of(plain))
    assert_same(seen[-1][1], weights_of(scored))
    without = start_network(TRAINABLE_TINY, None, 0)
    train(short_run(tmp_path / "c", steps=6, ema=0.0), without, SOURCE, CPU)
    name = "affine_regressor.fc1.weight"
    assert not torch.equal(weights_of(without)[name], weights_of(scored)[name])


def test_a_log_line_of_a_killed_run_is_written_again(tmp_path: Path) -> None:
    train(short_run(tmp_path, steps=20), start_network(TRAINABLE_TINY, None, 0), SOURCE, CPU, stop=StopAfter(4))
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 17, "kind": "loss"}\n{"step": 18, "ki')
    train(short_run(tmp_path, steps=20), start_network(TRAINABLE_TINY, None, 0), SOURCE, CPU, stop=StopAfter(1))
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [4, 5]


def test_losses_that_break_end_the_run(tmp_path: Path) -> None:
    network = start_network(TRAINABLE_TINY, None, 0)
    with torch.no_grad():
        network.affine_regressor.fc1.weight[0, 0] = torch.nan
    with pytest.raises(PicoPoseError, match="is not finite"):
        train(short_run(tmp_path, steps=2), network, SOURCE, CPU)
    assert find_checkpoint(tmp_path) is None


@pytest.mark.parametrize("broken", ["weight", "running mean", "optimiser"])
def test_a_network_that_is_not_finite_never_becomes_a_checkpoint(tmp_path: Path, broken: str) -> None:
    """Whatever breaks, and whenever: the last step's update may break the weights though all losses were finite."""
    network = start_network(TRAINABLE_TINY, None, 0)
    state = start_state(network, MINI_RECIPE, ema=True)
    assert find_not_finite(state) is None
    path = write_checkpoint(tmp_path, state, {})
    weight = network.affine_regressor.fc1.weight
    with torch.no_grad():
        if broken == "optimiser":
            state.optimizers[0].state[weight] = {"exp_avg": torch.full_like(weight, torch.inf)}
        else:
            (weight if broken == "weight" else state.mean["affine_regressor.fc1.weight"])[0, 0] = torch.nan
    assert find_not_finite(state) is not None
    if broken != "optimiser":
        with pytest.raises(PicoPoseError, match="not finite"):
            read_checkpoint(write_checkpoint(tmp_path, state, {}), start_state(network, MINI_RECIPE, ema=True))
    assert path.is_file()


def test_an_update_that_breaks_the_weights_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third update gives NaN; the losses of all three steps are finite, and the next line of the log is far."""
    network, updates = start_network(TRAINABLE_TINY, None, 0), []
    plain_step = torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW) -> None:
        plain_step(optimizer)
        updates.append(optimizer)
        if len(updates) == 3:
            with torch.no_grad():
                network.affine_regressor.fc1.weight[0, 0] = torch.nan

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(PicoPoseError, match="not finite at step 3"):
        train(short_run(tmp_path, steps=20, checkpoint_every=1), network, SOURCE, CPU)
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint_00000002.pt"


def test_entries_that_are_skipped_are_counted_over_all_runs(tmp_path: Path) -> None:
    class Broken(ToySource):
        def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
            for sample in super().samples(worker, workers, start):
                self.skipped["broken image"] += 1
                yield sample

    network = start_network(TRAINABLE_TINY, None, 0)
    first = train(short_run(tmp_path), network, Broken(kept=12), CPU, stop=StopAfter(3))
    assert first.skipped == {"broken image": 6}
    second = train(short_run(tmp_path), network, Broken(kept=12), CPU, stop=StopAfter(2))
    assert second.skipped == {"broken image": 10}
    assert "broken image (10x)" in second.text()
    assert TrainReport(tmp_path, second).exit_code == 1


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "list"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    state = start_state(start_network(TRAINABLE_TINY, None, 0), MINI_RECIPE, ema=True)
    path = write_checkpoint(tmp_path, state, {})
    data = path.read_bytes()
    path.write_bytes(
        {"truncated": data[: len(data) // 2], "garbage": b"PK\x03\x04" + b"x" * 99, "empty": b"", "list": b""}[damage]
    )
    if damage == "list":
        torch.save([1, 2], path)
    with pytest.raises(PicoPoseError, match="checkpoint_00000000"):
        read_checkpoint(path, state)


def test_checkpoints_of_other_sizes_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, start_state(start_network(TRAINABLE_TINY, None, 0), MINI_RECIPE, ema=False), {})
    other = start_state(start_network(TRAINABLE, None, 0), MINI_RECIPE, ema=False)
    with pytest.raises(PicoPoseError, match="other sizes"):
        read_checkpoint(path, other)


@pytest.mark.parametrize("frozen_first", [True, False])
def test_other_frozen_weights_are_refused(tmp_path: Path, frozen_first: bool) -> None:
    """Also with AdamW alone, whose state is a single group of another size."""
    for recipe in (MINI_RECIPE, RELEASED_RECIPE):
        states = []
        for frozen in (frozen_first, not frozen_first):
            network = start_network(TRAINABLE_TINY, None, 0)
            network.feature_extractor.requires_grad_(not frozen)
            states.append(start_state(network, recipe, ema=True))
        path = write_checkpoint(tmp_path, states[0], {})
        with pytest.raises(PicoPoseError, match=r"trained other weights.*--freeze-backbone"):
            read_checkpoint(path, states[1])


@pytest.mark.parametrize("key", ["network", "optimizers", "mean", "step", "facts"])
def test_checkpoints_with_missing_or_strange_parts_are_refused(tmp_path: Path, key: str) -> None:
    state = start_state(start_network(TRAINABLE_TINY, None, 0), MINI_RECIPE, ema=True)
    path = write_checkpoint(tmp_path, state, {})
    whole = torch.load(path, weights_only=True)
    for content in (whole | {key: [3]}, {name: part for name, part in whole.items() if name != key}):
        torch.save(content, path)
        with pytest.raises(PicoPoseError, match="is damaged"):
            read_checkpoint(path, state)


def test_changed_options_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(short_run(tmp_path), start_network(TRAINABLE_TINY, None, 0), SOURCE, CPU, stop=StopAfter(1))
    train(short_run(tmp_path, seed=3), start_network(TRAINABLE_TINY, None, 0), SOURCE, CPU, stop=StopAfter(1))
    assert "seed 3 instead of 0" in caplog.text


def test_start_from_files(tmp_path: Path) -> None:
    """Our own file fills the whole network, DINOv2's bare state dict the backbone."""
    network = start_network(TRAINABLE_TINY, None, 5)
    save_network(tmp_path / "whole.safetensors", network)
    assert_same(weights_of(start_network(TRAINABLE_TINY, tmp_path / "whole.safetensors", 0)), weights_of(network))
    backbone = weights_of(network.feature_extractor.dinov2)
    torch.save(backbone, tmp_path / "dinov2.pth")
    started = start_network(TRAINABLE_TINY, tmp_path / "dinov2.pth", 0)
    assert_same(weights_of(started.feature_extractor.dinov2), backbone)
    untouched = start_network(TRAINABLE_TINY, None, 0)
    assert_same(weights_of(started.affine_regressor), weights_of(untouched.affine_regressor))
    with pytest.raises(PicoPoseError, match=r"dinov2\.pth.*--preset vit-l"):
        start_network(TRAINABLE, tmp_path / "dinov2.pth", 0)
    with pytest.raises(PicoPoseError, match="other sizes"):
        start_network(TRAINABLE, tmp_path / "whole.safetensors", 0)
    assert VIT_L.vit.stem_width == 0


def test_half_precision_file_loads(tmp_path: Path) -> None:
    network = start_network(TRAINABLE_TINY, None, 5)
    save_network(tmp_path / "half.safetensors", network, half=True)
    assert load_network(tmp_path / "half.safetensors").config == TRAINABLE_TINY
    assert any(tensor.dtype == torch.float16 for tensor in load_file(tmp_path / "half.safetensors").values())


DISTRIBUTED = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import torch
torch.set_num_threads(1)
from helpers.networks import TRAINABLE_TINY, weights_of
from helpers.training_runs import SOURCE, short_run
from picopose_cli.training.distributed import join_processes, leave_processes
from picopose_cli.training.loop import train
from picopose_cli.training.start import start_network
group = join_processes("cpu", "fp32")
network = start_network(TRAINABLE_TINY, None, 0)
summary = train(short_run(Path(sys.argv[1]) / "run", steps=3, accumulate=2), network, SOURCE, group)
assert summary.step == 3
torch.save(weights_of(network), Path(sys.argv[1]) / f"rank{group.rank}.pt")
leave_processes(group)
"""


def test_two_processes_stay_together(tmp_path: Path) -> None:
    """Both ranks end with the same weights, though each saw its own share of the samples."""
    tests = Path(__file__).resolve().parents[1]
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20_000 + os.getpid() % 20_000),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DISTRIBUTED, str(tmp_path), str(tests)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    learned = {name for name, _ in start_network(TRAINABLE_TINY, None, 0).named_parameters()}
    assert_same(*({name: rank[name] for name in learned} for rank in ranks))
    assert find_checkpoint(tmp_path / "run") is not None
