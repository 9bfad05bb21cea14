"""The training loop, the same for one process and for several."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.network.config import LEVELS
from picopose_cli.network.picopose import PicoPose
from picopose_cli.synthesis.samples import SampleSource
from picopose_cli.training.batches import PairBatch, StreamPosition, open_batches
from picopose_cli.training.distributed import TrainingProcess
from picopose_cli.training.log import RunningMeans, TrainingLog
from picopose_cli.training.losses import LossTerms, PairLosses, sample_draws
from picopose_cli.training.recipes import choose_recipe
from picopose_cli.training.sample_pool import SamplePool
from picopose_cli.training.state import (
    TrainState,
    find_checkpoint,
    find_not_finite,
    learning_rate,
    read_checkpoint,
    set_learning_rate,
    start_state,
    update_mean,
    write_checkpoint,
)
from picopose_cli.training.summary import TrainSummary

_LOG = logging.getLogger(__name__)

LOG_EVERY = 20
"""Number of steps whose mean losses make one line of the log."""
_FULL_ROLL_SHARE = 0.3
"""Share of the curriculum's steps after which observations are rotated up to the largest angle."""
_EXACT_OPTIONS = ("source", "batch_size", "accumulate", "workers", "reuse", "seed", "steps")
"""Options on which the exact continuation of a run depends."""

Validate = Callable[[PicoPose, int], dict[str, float]]
"""Scores a network in eval mode after a step."""


def train(
    options: TrainOptions,
    network: PicoPose,
    source: SampleSource,
    process: TrainingProcess,
    *,
    validate: Validate | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainSummary:
    """Train a network in place, from the newest checkpoint of the output folder, until the steps or minutes are over.

    At the end the network is in eval mode and has the running mean of its weights, if there is one. `stop` is called
    before each step. Raises PicoPoseError when a checkpoint or the folder cannot be used, or a loss is not finite.
    """
    network.to(process.device)
    state = start_state(network, choose_recipe(options), ema=options.ema > 0)
    checkpoint = find_checkpoint(options.output)
    if checkpoint is not None:
        _warn_of_changes(read_checkpoint(checkpoint, state), options, process)
    trainer = _Trainer(options, state, process, validate)
    try:
        summary = trainer.run(source, stop)
    finally:
        trainer.log.close()
    if state.mean:
        network.load_state_dict(state.mean)
    network.eval()
    return summary


class _Trainer:
    """One run of the loop over a state."""

    def __init__(
        self, options: TrainOptions, state: TrainState, process: TrainingProcess, validate: Validate | None
    ) -> None:
        self._options, self._state, self._process, self._validate = options, state, process, validate
        self._recipe = choose_recipe(options)
        self._model: nn.Module = PairLosses(state.network, self._recipe, rotate=options.max_roll_deg > 0)
        if options.compile:
            state.network.feature_extractor.dinov2.compile()
            state.network.offset_regressor.dpt_head.compile()
        if process.world > 1:
            unused = self._recipe.coarse_share > 0  # the finest grid's weights have no gradient at first
            self._model = DistributedDataParallel(self._model, find_unused_parameters=unused)
        self.log = TrainingLog(options.output, state.step, options.steps, is_leader=process.is_leader)
        self._summary = TrainSummary(first_step=state.step, step=state.step)
        self._started_s = self._waited_s = 0.0

    def run(self, source: SampleSource, stop: Callable[[], bool]) -> TrainSummary:
        options, state, summary = self._options, self._state, self._summary
        batches = self._open_batches(source)
        self._started_s, means = time.perf_counter(), RunningMeans()
        saved = validated = state.step
        while state.step < options.steps and not self._must_stop(stop):
            means.add(self._step(batches))
            if state.step % LOG_EVERY == 0 or state.step == options.steps:
                self._log_losses(means)
            if state.step % options.checkpoint_every == 0:
                self._save()
                saved = state.step
            if options.validate_every and state.step % options.validate_every == 0:
                self._run_validation()
                validated = state.step
        if means:
            self._log_losses(means)
        if saved != state.step:
            self._save()
        if validated != state.step or (state.step and not summary.validation):
            self._run_validation()
        summary.step, summary.finished = state.step, state.step >= options.steps
        summary.skipped = dict(state.skipped)
        summary.seconds = time.perf_counter() - self._started_s
        return summary

    def _open_batches(self, source: SampleSource) -> Iterator[PairBatch]:
        position = StreamPosition(self._process.rank, self._process.world, self._state.batches)
        batches = open_batches(
            source,
            batch_size=self._options.batch_size,
            workers=self._options.workers,
            position=position,
            pinned=self._process.device.type == "cuda",
        )
        on_device = (batch.to(self._process.device) for batch in self._counted(batches))
        if self._options.reuse == 1:
            return on_device
        return SamplePool(on_device, self._options.reuse, self._seed()).batches()

    def _counted(self, batches: Iterator[PairBatch]) -> Iterator[PairBatch]:
        """Yield the batches, counting them and the time in which they are waited for."""
        while True:
            started_s = time.perf_counter()
            batch = next(batches)
            self._waited_s += time.perf_counter() - started_s
            self._state.batches += 1
            self._state.skipped.update(batch.skipped)
            yield batch

    def _step(self, batches: Iterator[PairBatch]) -> LossTerms:
        """Update the weights once; returns the mean losses, still on the device."""
        options, state, network = self._options, self._state, self._state.network
        # Batch norms use the batch's own statistics and keep running ones for inference, as in the released training.
        network.train()
        if options.freeze_backbone:
            network.feature_extractor.eval()
        set_learning_rate(state, self._recipe, options.steps)
        for optimizer in state.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sums: LossTerms = {}
        generator = torch.Generator().manual_seed(self._seed())
        for part in range(options.accumulate):
            with self._exchange_gradients(part):
                terms = self._backward(next(batches), generator)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value / options.accumulate
        nn.utils.clip_grad_norm_(network.parameters(), self._recipe.clip_norm)
        for optimizer in state.optimizers:
            optimizer.step()
        state.step += 1
        update_mean(state, options.ema)
        return sums

    def _backward(self, batch: PairBatch, generator: torch.Generator) -> LossTerms:
        """Add the gradients of a batch and return its losses, detached."""
        options, cells = self._options, self._state.network.config.grid**2
        coarse = self._state.step < self._recipe.coarse_share * options.steps
        draws = sample_draws(len(batch), cells, self._max_roll_rad(), generator).to(self._process.device)
        with self._process.autocast():
            terms = self._model(batch, draws, LEVELS - 1 if coarse else LEVELS)
            (terms["total"] / options.accumulate).backward()
        return {name: value.detach() for name, value in terms.items()}

    def _max_roll_rad(self) -> float:
        """Return the largest rotation at this step: of all difficulties, rotation is the first to rise."""
        steps = self._options.curriculum_steps
        share = self._state.step / steps if steps else 1.0
        return math.radians(self._options.max_roll_deg) * min(1.0, share / _FULL_ROLL_SHARE)

    def _exchange_gradients(self, part: int) -> AbstractContextManager[Any]:
        """Return the context in which processes exchange gradients with the last batch of a step only."""
        last = part == self._options.accumulate - 1
        if isinstance(self._model, DistributedDataParallel) and not last:
            return self._model.no_sync()
        return nullcontext()

    def _must_stop(self, stop: Callable[[], bool]) -> bool:
        minutes = self._options.minutes
        over = minutes is not None and time.perf_counter() - self._started_s > 60 * minutes
        return self._process.any_process(stop() or over)

    def _log_losses(self, means: RunningMeans) -> None:
        """Log losses and speed; raises PicoPoseError when a loss is not finite."""
        summary, step, options = self._summary, self._state.step, self._options
        summary.losses = means.pop()
        seconds = time.perf_counter() - self._started_s
        pairs_per_step = options.batch_size * options.accumulate * self._process.world
        summary.pairs_per_s = (step - summary.first_step) * pairs_per_step / seconds
        summary.waiting_share = self._waited_s / seconds
        broken = [name for name, value in summary.losses.items() if not math.isfinite(value)]
        self._raise_if_any(f"the loss {broken[-1]}" if broken else None)
        rate = learning_rate(self._recipe, step, options.steps)
        speed = {"pairs_per_s": summary.pairs_per_s, "waiting_share": summary.waiting_share}
        self.log.add("loss", step, summary.losses | {"lr": rate} | speed)

    def _raise_if_any(self, broken: str | None) -> None:
        """Raise PicoPoseError in every process when one of them names something that is not finite."""
        if self._process.any_process(broken is not None):
            raise PicoPoseError(
                f"{broken or 'a number of another process'} is not finite at step {self._state.step}",
                where=self._options.output,
                fix="run again with a smaller --lr; it continues from the last checkpoint",
            )

    def _save(self) -> None:
        """Write a checkpoint; raises PicoPoseError when a weight is not finite: the last checkpoint is a sound one."""
        name = find_not_finite(self._state)
        self._raise_if_any(name and f"the tensor {name}")
        if self._process.is_leader:
            write_checkpoint(self._options.output, self._state, _facts(self._options, self._process))

    def _run_validation(self) -> None:
        """Validate the mean weights on the leader; other processes wait at the next exchange of gradients."""
        if self._validate is None or not self._process.is_leader:
            return
        network = self._state.network
        own = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        if self._state.mean:
            network.load_state_dict(self._state.mean)
        network.eval()
        self._summary.validation = self._validate(network, self._state.step)
        network.load_state_dict(own)
        self.log.add("validation", self._state.step, self._summary.validation)

    def _seed(self) -> int:
        """Return the seed of this process's random numbers at this step."""
        seeds = [self._options.seed, self._state.step, self._process.rank]
        return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def _facts(options: TrainOptions, process: TrainingProcess) -> dict[str, Any]:
    """Return what a checkpoint records of its run, as JSON."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    return plain | {"world": process.world, "torch": torch.__version__}


def _warn_of_changes(before: Mapping[str, Any], options: TrainOptions, process: TrainingProcess) -> None:
    now = json.loads(json.dumps(_facts(options, process)))
    for name in (*_EXACT_OPTIONS, "world"):
        if before.get(name) != now[name]:
            _LOG.warning(
                "resumed with %s %s instead of %s: not an exact continuation", name, now[name], before.get(name)
            )
