"""The training loop: one process a device, the same code for one and for several (torchrun)."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import TrainOptions
from picopose_cli.network.config import LEVELS
from picopose_cli.network.picopose import PicoPose
from picopose_cli.synthesis.samples import SampleSource
from picopose_cli.training.batches import PairBatch, StreamPosition, open_batches
from picopose_cli.training.log import Journal
from picopose_cli.training.losses import LossTerms, PairLosses, draw
from picopose_cli.training.recipes import choose_recipe
from picopose_cli.training.sample_pool import SamplePool
from picopose_cli.training.state import (
    TrainState,
    find_checkpoint,
    learning_rate,
    read_checkpoint,
    set_learning_rate,
    start_state,
    update_mean,
    write_checkpoint,
)

LOGGER = logging.getLogger(__name__)
LOG_EVERY = 20
"""Steps whose losses are averaged into one line of the log: reading them makes the device wait."""
_FULL_TURN_SHARE = 0.3
"""Of the easy steps: from then on observations are turned by any angle."""
_MUST_AGREE = ("source", "batch_size", "accumulate", "workers", "reuse", "seed", "steps", "freeze_backbone")
"""Options that change what a resumed run does next."""

Validate = Callable[[PicoPose, int], dict[str, float]]
"""Scores a network in eval mode after a step."""


@dataclass(frozen=True)
class TrainingProcess:
    """The processes of a run: this is `rank` of `world`, on `device` with `precision` fp32 or bf16."""

    device: torch.device
    precision: str
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0


@dataclass
class TrainSummary:
    """What a run did: steps before and after it, seconds, samples a second, last losses and validation."""

    first_step: int = 0
    step: int = 0
    seconds: float = 0.0
    pairs_per_s: float = 0.0
    waiting_share: float = 0.0
    """Share of the time in which the device waited for data."""
    losses: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    finished: bool = False


def join_processes(device: str, precision: str) -> TrainingProcess:
    """Return this process's part: alone, or as torchrun's environment says (one process a GPU).

    `device` is `cpu` or `cuda:N`; with several processes each takes the GPU of its local rank.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    on_gpu = device != "cpu"
    if world > 1:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else device
    if on_gpu:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return TrainingProcess(torch.device(device), precision, rank, world)


def leave_processes(group: TrainingProcess) -> None:
    """End the processes' connection, if there is one."""
    if group.world > 1:
        torch.distributed.destroy_process_group()


def ramp_samples(options: TrainOptions, world: int) -> int:
    """Return over how many samples, of all processes together, a source makes them as hard as they get.

    A source knows a sample's number and no step: so the difficulty, too, is the same after a resumed run.
    """
    return max(1, options.curriculum_steps * options.batch_size * options.accumulate * world // options.reuse)


def train(
    options: TrainOptions,
    network: PicoPose,
    source: SampleSource,
    group: TrainingProcess,
    *,
    validate: Validate | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainSummary:
    """Train a network in place until the steps or the minutes are over, from the newest checkpoint of the output.

    The network ends up with the running mean of its weights where there is one, in eval mode. `stop` is asked after
    each step. Raises PicoPoseError when a checkpoint or the folder cannot be used, or a loss is no longer finite.
    """
    network.to(group.device)
    state = start_state(network, choose_recipe(options), ema=options.ema > 0)
    checkpoint = find_checkpoint(options.output)
    if checkpoint is not None:
        _report_changes(read_checkpoint(checkpoint, state), options, group)
    trainer = _Trainer(options, state, group, validate)
    try:
        summary = trainer.run(source, stop)
    finally:
        trainer.journal.close()
    if state.mean:
        network.load_state_dict(state.mean)
    network.eval()
    return summary


class _Trainer:
    """One run of the loop over a state."""

    def __init__(
        self, options: TrainOptions, state: TrainState, group: TrainingProcess, validate: Validate | None
    ) -> None:
        self._options, self._state, self._group, self._validate = options, state, group, validate
        self._recipe = choose_recipe(options)
        self._model: nn.Module = PairLosses(state.network, self._recipe, turn=options.max_roll_deg > 0)
        if options.compile:
            state.network.feature_extractor.dinov2.compile()
            state.network.offset_regressor.dpt_head.compile()
        if group.world > 1:
            unused = self._recipe.coarse_share > 0  # the finest grid's weights, for a while
            self._model = DistributedDataParallel(self._model, find_unused_parameters=unused)
        self.journal = Journal(options.output, state.step, options.steps, leads=group.leads)
        self._summary = TrainSummary(first_step=state.step, step=state.step)
        self._waited_s = 0.0

    def run(self, source: SampleSource, stop: Callable[[], bool]) -> TrainSummary:
        options, state, summary = self._options, self._state, self._summary
        batches = self._open(source)
        started, running = time.perf_counter(), _Running()
        saved = validated = state.step
        while state.step < options.steps and not self._must_stop(started, stop):
            running.add(self._step(batches))
            if state.step % LOG_EVERY == 0 or state.step == options.steps:
                self._log(running, started)
            if options.checkpoint_every and state.step % options.checkpoint_every == 0:
                self._save()
                saved = state.step
            if options.validate_every and state.step % options.validate_every == 0:
                self._score()
                validated = state.step
        if running:
            self._log(running, started)
        if saved != state.step:
            self._save()
        if validated != state.step or (state.step and not summary.validation):
            self._score()
        summary.step, summary.finished = state.step, state.step >= options.steps
        summary.seconds = time.perf_counter() - started
        return summary

    def _open(self, source: SampleSource) -> Iterator[PairBatch]:
        position = StreamPosition(self._group.rank, self._group.world, self._state.batches)
        pinned = self._group.device.type == "cuda"
        batches = open_batches(
            source, batch_size=self._options.batch_size, workers=self._options.workers, position=position, pinned=pinned
        )
        on_device = (batch.to(self._group.device) for batch in self._counted(batches))
        if self._options.reuse == 1:
            return on_device
        return SamplePool(on_device, self._options.reuse, _seed(self._options, self._state.step, self._group)).batches()

    def _counted(self, batches: Iterator[PairBatch]) -> Iterator[PairBatch]:
        while True:
            asked = time.perf_counter()
            batch = next(batches)
            self._waited_s += time.perf_counter() - asked
            self._state.batches += 1
            yield batch

    def _step(self, batches: Iterator[PairBatch]) -> LossTerms:
        """Move the weights once; returns the mean losses, still on the device."""
        options, state, network = self._options, self._state, self._state.network
        # Batch norms use the batch's own statistics and keep running ones for inference, as in the released training.
        network.train()
        if options.freeze_backbone:
            network.feature_extractor.eval()
        set_learning_rate(state, self._recipe, options.steps)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        coarse = state.step < self._recipe.coarse_share * options.steps
        sums: LossTerms = {}
        generator = torch.Generator().manual_seed(_seed(options, state.step, self._group))
        for part in range(options.accumulate):
            batch = next(batches)
            turn = math.radians(options.max_roll_deg) * self._share_of_turn()
            draws = draw(len(batch), network.config.grid**2, turn, generator).to(self._group.device)
            with self._together(part), self._autocast():
                terms = self._model(batch, draws, LEVELS - 1 if coarse else LEVELS)
                (terms["total"] / options.accumulate).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() / options.accumulate
        nn.utils.clip_grad_norm_(network.parameters(), self._recipe.clip_norm)
        for optimizer in state.optimizers:
            optimizer.step()
        state.step += 1
        update_mean(state, options.ema)
        return sums

    def _share_of_turn(self) -> float:
        """Rotation in the image plane comes before the other difficulties."""
        share = self._state.step / self._options.curriculum_steps if self._options.curriculum_steps else 1.0
        return min(1.0, share / _FULL_TURN_SHARE)

    def _together(self, part: int) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes once a step."""
        last = part == self._options.accumulate - 1
        if isinstance(self._model, DistributedDataParallel) and not last:
            return self._model.no_sync()
        return nullcontext()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._group.device.type, torch.bfloat16, enabled=self._group.precision == "bf16")

    def _must_stop(self, started: float, stop: Callable[[], bool]) -> bool:
        minutes = self._options.minutes
        wanted = stop() or (minutes is not None and time.perf_counter() - started > 60 * minutes)
        if self._group.world == 1:
            return wanted
        votes = torch.tensor(float(wanted), device=self._group.device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return bool(votes.item())

    def _log(self, running: _Running, started: float) -> None:
        summary, step = self._summary, self._state.step
        summary.losses = running.means()
        seconds = time.perf_counter() - started
        done = step - summary.first_step
        summary.pairs_per_s = done * self._options.batch_size * self._options.accumulate * self._group.world / seconds
        summary.waiting_share = self._waited_s / seconds
        broken = [name for name, value in summary.losses.items() if not math.isfinite(value)]
        if broken:
            raise PicoPoseError(
                f"the loss {broken[-1]} is no longer finite at step {step}",
                where=self._options.output,
                fix="go on from the last checkpoint with a smaller --lr",
            )
        rate = learning_rate(self._recipe, step, self._options.steps)
        speed = {"pairs_per_s": summary.pairs_per_s, "waiting_share": summary.waiting_share}
        self.journal.add("loss", step, summary.losses | {"lr": rate} | speed)

    def _save(self) -> None:
        if self._group.leads:
            write_checkpoint(self._options.output, self._state, _facts(self._options, self._group))

    def _score(self) -> None:
        """Validate the mean weights on the leading process; the others wait at the next exchange of gradients."""
        if self._validate is None or not self._group.leads:
            return
        network = self._state.network
        own = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        if self._state.mean:
            network.load_state_dict(self._state.mean)
        network.eval()
        self._summary.validation = self._validate(network, self._state.step)
        network.load_state_dict(own)
        self.journal.add("validation", self._state.step, self._summary.validation)


class _Running:
    """Sums losses on the device until somebody reads their means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts = Counter[str]()  # not every step has every loss

    def __bool__(self) -> bool:
        return bool(self._sums)

    def add(self, terms: LossTerms) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._counts.update(terms.keys())

    def means(self) -> dict[str, float]:
        """Return the means since the last call; the device is waited for."""
        sums = torch.stack(list(self._sums.values())).tolist()
        means = {name: value / self._counts[name] for name, value in zip(self._sums, sums, strict=True)}
        self._sums, self._counts = {}, Counter()
        return means


def _seed(options: TrainOptions, step: int, group: TrainingProcess) -> int:
    return int(np.random.SeedSequence([options.seed, step, group.rank]).generate_state(1)[0])


def _facts(options: TrainOptions, group: TrainingProcess) -> dict[str, Any]:
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    return plain | {"world": group.world, "torch": torch.__version__}


def _report_changes(before: dict[str, Any], options: TrainOptions, group: TrainingProcess) -> None:
    now = json.loads(json.dumps(_facts(options, group)))
    for name in (*_MUST_AGREE, "world"):
        if before.get(name) != now[name]:
            LOGGER.warning("goes on with %s %s instead of %s: no exact continuation", name, now[name], before.get(name))
