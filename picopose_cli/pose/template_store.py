"""Onboarded objects: the network's features of every template view, computed once, and what else stages 1-3 need."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import apply_affine, move_origin, project_points
from picopose_cli.base.symmetries import equivalent_views, symmetry_transforms
from picopose_cli.base.types import Array, ObjectInfo, TemplateBank
from picopose_cli.network.devices import sharing_threads, thread_count
from picopose_cli.network.offsets import OffsetFeatures, pack_features, unpack_features
from picopose_cli.pose.feature_file import FeatureChunk, FeatureFile
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.silhouette_starts import Silhouettes, make_silhouettes
from picopose_cli.pose.tensor_cache import TensorCache
from picopose_cli.templates.crops import normalise_bgr

TEMPLATE_CHUNK = 16
"""Views that go through the backbone together. Always the same ones, so that their features are always the same."""
CPU_CACHE_BYTES = {"cells": 3 << 29, "offsets": 1 << 26}
"""Template features kept in memory on a CPU; others are read again when needed. At the released sizes in fp32 the cells
of an object take 170 MB, the offset features of a view 5.5 MB."""
GPU_CACHE_SHARES = {"cells": 0.15, "offsets": 0.4}
"""Likewise on a GPU, as shares of the memory that is free after the network is loaded: on one of 80 GB everything of
YCB-V stays, 22 GB in fp32."""

_LOG = logging.getLogger(__name__)


class TemplateStore:
    """The onboarded objects of a network: features on disk or in host memory, the recently used ones on the device."""

    def __init__(self, network: InferenceNetwork) -> None:
        self._network = network
        self._objects: dict[int, OnboardedObject] = {}
        budgets = _cache_budgets(network.device)
        self._cells, self._offsets = TensorCache(budgets["cells"]), TensorCache(budgets["offsets"])
        self._unwritable: set[Path] = set()
        self._reader = ThreadPoolExecutor(1, "template features")
        self._ahead: dict[tuple[int, int], Future[Tensor]] = {}

    def add_object(
        self,
        bank: TemplateBank,
        *,
        file: FeatureFile | None = None,
        info: ObjectInfo | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        """Read the template features of a bank from `file`, or compute them and write it.

        Without a file, or if it cannot be written, the features stay in host memory. `info` gives the object's
        symmetries. `on_progress(n)` is called with the number of views that were finished since the last call.
        """
        features = self._read_or_compute(bank, file, on_progress or (lambda _: None))
        T_tmpl_from_centre = move_origin(bank.T_tmpl_from_obj, bank.centre_m)
        centres = apply_affine(bank.A_crop_from_image, project_points(bank.K, T_tmpl_from_centre[:, None, :3, 3]))
        self._objects[bank.obj_id] = OnboardedObject(
            features=features,
            masks=self._network.grid_masks(bank.masks),
            centres=self._network.tensor(centres[:, 0].astype(np.float32)),
            depth_corner_m=bank.depth_corner_m,
            depth_centre_m=bank.depth_centre_m,
            K=bank.K,
            A_crop_from_image=bank.A_crop_from_image,
            T_tmpl_from_obj=bank.T_tmpl_from_obj,
            centre_m=bank.centre_m,
            equivalent_views=None if info is None else equivalent_views(T_tmpl_from_centre, symmetry_transforms(info)),
        )

    @property
    def obj_ids(self) -> set[int]:
        """Ids of the onboarded objects."""
        return set(self._objects)

    def __getitem__(self, obj_id: int) -> OnboardedObject:
        return self._objects[obj_id]

    def silhouettes(self, obj_id: int) -> Silhouettes:
        """Return the silhouettes of an object's views."""
        return self._objects[obj_id].silhouettes

    def cells(self, obj_id: int) -> Tensor:
        """Return the unit cells (V,P,C) of an object, on the device; raises PicoPoseError when they are damaged."""
        features = self._objects[obj_id].features
        return self._cells.get(obj_id, lambda: features.cells().to(self._network.device))

    def read_ahead(self, templates: Iterable[tuple[int, int]]) -> None:
        """Begin to read the offset features of (obj_id, view) that are not on the device, while it is at work.

        The next call of `offset_features` for a view takes what was read.
        """
        for key in templates:
            if key not in self._offsets and key not in self._ahead:
                self._ahead[key] = self._reader.submit(self._read_offsets, *key)

    def offset_features(self, templates: Sequence[tuple[int, int]]) -> tuple[OffsetFeatures, list[int]]:
        """Return the offset features of the distinct (obj_id, view) among N templates, and the N indices into them.

        They are on the device. Raises PicoPoseError when the features of a view are damaged.
        """
        index = {key: i for i, key in enumerate(dict.fromkeys(templates))}
        packed = torch.stack([self._packed_offsets(key) for key in index])
        return unpack_features(packed, self._network.config), [index[key] for key in templates]

    def _packed_offsets(self, key: tuple[int, int]) -> Tensor:
        ahead = self._ahead.pop(key, None)
        return self._offsets.get(key, lambda: self._read_offsets(*key) if ahead is None else ahead.result())

    def _read_offsets(self, obj_id: int, view: int) -> Tensor:
        return self._objects[obj_id].features.offsets(view, self._network.device)

    def _read_or_compute(
        self, bank: TemplateBank, file: FeatureFile | None, on_progress: Callable[[int], None]
    ) -> TemplateFeatures:
        views, computed = len(bank.crops_rgb), 0

        def chunks() -> Iterator[FeatureChunk]:
            nonlocal computed
            for chunk in self._computed_ahead(bank.crops_rgb):
                computed += len(chunk[0])
                on_progress(len(chunk[0]))
                yield chunk

        features: TemplateFeatures | None = None if file is None else file.read()
        if features is None and file is not None and file.path.parent not in self._unwritable:
            try:
                features = file.read_or_write(views, chunks())
            except PicoPoseError as error:
                self._unwritable.add(file.path.parent)
                _LOG.warning("template features are not stored for later runs: %s", error)
        if features is None:
            cells, offsets = zip(*chunks(), strict=True)
            features = FeaturesInMemory(torch.cat(cells), torch.cat(offsets))
        if not computed:
            on_progress(views)
        return features

    def _computed_ahead(self, crops_rgb: Array) -> Iterator[FeatureChunk]:
        """Yield the features of all views in chunks, in order; the next ones are computed while one is written.

        On a CPU several chunks are computed at the same time.
        """
        at_once = thread_count() if self._network.device.type == "cpu" else 1
        ahead: deque[Future[FeatureChunk]] = deque()
        with sharing_threads(at_once, "features") as threads:
            for start in range(0, len(crops_rgb), TEMPLATE_CHUNK):
                ahead.append(threads.submit(self._compute, crops_rgb[start : start + TEMPLATE_CHUNK]))
                if len(ahead) > at_once:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _compute(self, crops_rgb: Array) -> FeatureChunk:
        """Return the cells and packed offset features of views (n,224,224,3) u8, on the host."""
        with self._network.arithmetic():
            cells, offsets = self._network.extract(normalise_bgr(crops_rgb))
            return cells.cpu(), pack_features(offsets).to(self._network.dtype).cpu()


def _cache_budgets(device: torch.device) -> dict[str, int]:
    if device.type == "cpu":
        return CPU_CACHE_BYTES
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return {name: int(share * free_bytes) for name, share in GPU_CACHE_SHARES.items()}


@dataclass(frozen=True)
class OnboardedObject:
    """The features of an object and the geometry of its bank (see `TemplateBank`).

    `masks` (V,g,g) on the grid and `centres` (V,2) crop px, the projected centre of the object, are on the device.
    `equivalent_views` (V,V) bool, None for an object without symmetries.
    """

    features: TemplateFeatures
    masks: Tensor
    centres: Tensor
    depth_corner_m: Array
    depth_centre_m: Array
    K: Array
    A_crop_from_image: Array
    T_tmpl_from_obj: Array
    centre_m: Array
    equivalent_views: NDArray[np.bool_] | None

    @cached_property
    def silhouettes(self) -> Silhouettes:
        """The silhouettes of the views."""
        return make_silhouettes(
            self.depth_centre_m, self.K, self.A_crop_from_image, self.T_tmpl_from_obj, self.centre_m
        )


class TemplateFeatures(Protocol):
    """The features of an object's V views."""

    def cells(self) -> Tensor:
        """Return the unit cells (V,P,C) of all views, on the host."""

    def offsets(self, view: int, device: torch.device) -> Tensor:
        """Return the packed offset features (L,) of one view, on a device."""


@dataclass(frozen=True)
class FeaturesInMemory:
    """Features that are not written to a file."""

    all_cells: Tensor
    all_offsets: Tensor

    def cells(self) -> Tensor:
        """Return the unit cells (V,P,C) of all views, on the host."""
        return self.all_cells

    def offsets(self, view: int, device: torch.device) -> Tensor:
        """Return the packed offset features (L,) of one view, on a device."""
        return self.all_offsets[view].to(device)
