"""Batches of samples as tensors, made by worker processes in an order that a resumed run continues exactly."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from picopose_cli.synthesis.samples import CropView, Sample, SampleSource
from picopose_cli.templates.crops import CLIP_MEAN_RGB, CLIP_STD_RGB

_BATCHES_AHEAD = 2
"""Number of batches that each worker makes in advance: scenes take unequal time."""


@dataclass(frozen=True)
class ViewBatch:
    """One side of B pairs, with the fields of `CropView`.

    `crops_rgb` (B,224,224,3) u8, `masks` (B,224,224) bool, `depth_centre_m` (B,64,64) f32; f64: `K` and
    `A_crop_from_image` (B,3,3), `T_cam_from_obj` (B,4,4) metres.
    """

    crops_rgb: Tensor
    masks: Tensor
    depth_centre_m: Tensor
    K: Tensor
    A_crop_from_image: Tensor
    T_cam_from_obj: Tensor

    def mapped(self, function: Any) -> ViewBatch:
        """Return the batch with a function applied to each tensor."""
        return ViewBatch(*(function(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class PairBatch:
    """B training pairs; `diameter_m` (B,) f64 is the diagonal of each object's bounding box.

    `skipped` counts by reason the entries that the source could not use while it made the batch.
    """

    observation: ViewBatch
    template: ViewBatch
    diameter_m: Tensor
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.diameter_m)

    def mapped(self, function: Any) -> PairBatch:
        """Return the batch with a function applied to each tensor."""
        observation, template = self.observation.mapped(function), self.template.mapped(function)
        return PairBatch(observation, template, function(self.diameter_m), self.skipped)

    def to(self, device: torch.device) -> PairBatch:
        """Return the batch on a device; a pinned batch is copied in the background."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """Return the batch in page-locked memory; called by the data loader."""
        return self.mapped(lambda tensor: tensor.pin_memory())


def collate(samples: Sequence[Sample]) -> PairBatch:
    """Return samples as a batch on the CPU."""
    return PairBatch(
        _collate_views([sample.observation for sample in samples]),
        _collate_views([sample.template for sample in samples]),
        torch.tensor([sample.diameter_m for sample in samples], dtype=torch.float64),
    )


def _collate_views(views: Sequence[CropView]) -> ViewBatch:
    types = {"crops_rgb": np.uint8, "masks": bool, "depth_centre_m": np.float32}
    names = {"crops_rgb": "crop_rgb", "masks": "mask"}
    return ViewBatch(
        *(
            torch.from_numpy(
                np.stack([getattr(view, names.get(field.name, field.name)) for view in views]).astype(
                    types.get(field.name, np.float64), copy=False
                )
            )
            for field in fields(ViewBatch)
        )
    )


def network_inputs(crops_rgb: Tensor) -> Tensor:
    """Return the network's input (B,3,224,224) f32 of crops (B,224,224,3) u8 RGB, as `crops.normalise_bgr` does."""
    bgr = crops_rgb.flip(-1).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(CLIP_MEAN_RGB, device=bgr.device)[:, None, None]
    std = torch.tensor(CLIP_STD_RGB, device=bgr.device)[:, None, None]
    return (bgr - mean) / std


@dataclass(frozen=True)
class StreamPosition:
    """The position in a stream of batches of process `rank` of `world`, which has consumed `batches` batches."""

    rank: int = 0
    world: int = 1
    batches: int = 0


class BatchStream(IterableDataset[PairBatch]):
    """The batches of one process, made by `workers` worker processes (0: by the process itself).

    Batch n contains samples of share n modulo the process's number of shares, and each share is read by one worker in
    its order; so a stream that begins at batch n continues one that ended there, given the same numbers of workers.
    """

    def __init__(self, source: SampleSource, batch_size: int, workers: int, position: StreamPosition) -> None:
        self._source = source
        self._batch_size = batch_size
        self._shares = max(1, workers)
        self._position = position

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield this worker's batches, without end."""
        info = get_worker_info()
        first = self._position.batches + (0 if info is None else info.id)
        share, consumed = first % self._shares, first // self._shares
        shares_before = self._position.rank * self._shares
        samples = self._source.samples(
            shares_before + share, self._position.world * self._shares, consumed * self._batch_size
        )
        before = Counter(self._source.skipped)
        while batch := list(itertools.islice(samples, self._batch_size)):
            skipped = Counter(self._source.skipped)
            yield replace(collate(batch), skipped=dict(skipped - before))
            before = skipped


def open_batches(
    source: SampleSource, *, batch_size: int, workers: int, position: StreamPosition, pinned: bool
) -> Iterator[PairBatch]:
    """Return an endless iterator of batches from a position on.

    The source is pickled for the workers, which are forked from a separate server process: a fork of this process may
    hang because of the threads of PyTorch and OpenCV.
    """
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    loader: DataLoader[PairBatch] = DataLoader(
        BatchStream(source, batch_size, workers, position),
        batch_size=None,
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=_BATCHES_AHEAD if workers else None,
        worker_init_fn=_prepare_worker,
        multiprocessing_context=context,
        generator=torch.Generator(),  # leaves the global generator unchanged
    )
    return iter(loader)


def _prepare_worker(_: int) -> None:
    cv2.setNumThreads(1)  # the workers run in parallel already
