"""Reuse of samples, so that the device need not wait where rendering is slower."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from picopose_cli.training.batches import PairBatch

POOL_BATCHES = 64
"""Number of batches in the pool: a sample is in a different batch each time, many steps later."""


class SamplePool:
    """A pool of samples in which each new batch replaces the oldest one, and from which further batches are drawn."""

    def __init__(self, fresh: Iterator[PairBatch], times: int, seed: int, pool_batches: int = POOL_BATCHES) -> None:
        self._fresh = fresh
        self._times = times
        self._pool_batches = pool_batches
        self._generator = torch.Generator().manual_seed(seed)

    def batches(self) -> Iterator[PairBatch]:
        """Yield batches without end: each new one, then `times` - 1 batches of random samples from the pool."""
        pool, place, filled = None, 0, 0
        for fresh in self._fresh:
            size = len(fresh)
            if pool is None:
                pool = fresh.mapped(self._allocate)
            _write(pool, place * size, fresh)
            place, filled = (place + 1) % self._pool_batches, min(filled + 1, self._pool_batches)
            yield fresh
            for _ in range(self._times - 1):
                yield _gather(pool, torch.randperm(filled * size, generator=self._generator)[:size])

    def _allocate(self, like: Tensor) -> Tensor:
        return like.new_empty(self._pool_batches * len(like), *like.shape[1:])


def _write(pool: PairBatch, start: int, fresh: PairBatch) -> None:
    for old, new in zip(_tensors(pool), _tensors(fresh), strict=True):
        old[start : start + len(new)] = new


def _gather(pool: PairBatch, index: Tensor) -> PairBatch:
    index = index.to(pool.diameter_m.device)
    return pool.mapped(lambda tensor: tensor[index])


def _tensors(batch: PairBatch) -> list[Tensor]:
    found: list[Tensor] = []
    batch.mapped(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found
