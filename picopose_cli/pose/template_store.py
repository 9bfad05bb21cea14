"""Template features: what the network says of every view of an object, computed once and kept on disk.

A file lies beside the bank, is a plain safetensors file, appears whole, and carries the fingerprint of everything that
its numbers depend on: one that does not match is made again, never used. Views are read when they are needed.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path, file_sha256

FORMAT_VERSION = 1
"""Raised whenever the same bank and weights would give other features: another chunk, layout or arithmetic."""

_LOG = logging.getLogger(__name__)
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_LONGEST_HEADER = 1 << 16

Chunk = tuple[Tensor, Tensor]
"""Cells (n,P,C) and packed offset features (n,L) of some views, in the order of the bank."""


class TemplateFeatures(Protocol):
    """The features of an object's V views, on the host."""

    def cells(self) -> Tensor:
        """Return the unit cells (V,P,C) of all views."""

    def offsets(self, view: int) -> Tensor:
        """Return the packed offset features (L,) of one view."""


@dataclass(frozen=True)
class FeaturesInMemory:
    """Features that were not written, or cannot be."""

    all_cells: Tensor
    all_offsets: Tensor

    def cells(self) -> Tensor:
        """Return the unit cells (V,P,C) of all views."""
        return self.all_cells

    def offsets(self, view: int) -> Tensor:
        """Return the packed offset features (L,) of one view."""
        return self.all_offsets[view]


@dataclass(frozen=True)
class _Entry:
    """A tensor of the file: its type, its shape, and its first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.start + self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class FeaturesOnDisk:
    """A file of features; the cells are checked when it is opened, a view's offset features when they are read."""

    path: Path
    entries: dict[str, _Entry]
    checksums: Tensor
    """(V,2) CRC-32 of each view's cells and offset features."""

    def cells(self) -> Tensor:
        """Return the unit cells (V,P,C) of all views."""
        return _read_rows(self.path, self.entries["cells"], 0, len(self.checksums))

    def are_cells_whole(self) -> bool:
        """Say whether the cells are those that were written."""
        return [_checksum(view) for view in self.cells()] == self.checksums[:, 0].tolist()

    def offsets(self, view: int) -> Tensor:
        """Return the packed offset features (L,) of one view; raises PicoPoseError when they are damaged or gone."""
        try:
            offsets = _read_rows(self.path, self.entries["offsets"], view, view + 1)[0]
            if _checksum(offsets) != self.checksums[view, 1]:
                raise ValueError("a checksum differs")
        except (OSError, ValueError) as error:
            self.path.unlink(missing_ok=True)  # it passed for whole when the run began
            fix = "run it again: they are made anew"
            raise PicoPoseError(f"template features are damaged ({error})", where=self.path, fix=fix) from error
        return offsets


@dataclass(frozen=True)
class FeatureFile:
    """Where an object's features belong, and what they depend on."""

    path: Path
    fingerprint: str

    def read(self) -> FeaturesOnDisk | None:
        """Return the features in the file; None where it is missing, damaged, or of another fingerprint."""
        if not self.path.exists():
            return None
        try:
            entries, fingerprint = _read_header(self.path)
            if fingerprint != self.fingerprint:
                _LOG.info("template features are of other weights, templates or versions, made again: %s", self.path)
                return None
            checksums = _read_rows(self.path, entries["checksums"], 0, entries["checksums"].shape[0])
            features = FeaturesOnDisk(self.path, entries, checksums)
            if not features.are_cells_whole():
                raise ValueError("a checksum differs")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _LOG.info("template features cannot be used (%s), made again: %s", error, self.path)
            return None
        return features

    def write(self, views: int, chunks: Iterator[Chunk]) -> FeaturesOnDisk:
        """Write chunks as they come, so that memory holds one; raises PicoPoseError when the file cannot be written."""
        checksums: list[list[int]] = []
        with atomic_path(self.path) as temporary, temporary.open("wb") as stream:
            entries: dict[str, _Entry] = {}
            for cells, offsets in chunks:
                entries = entries or _write_header(stream, views, cells, offsets, self.fingerprint)
                for name, values in (("cells", cells), ("offsets", offsets)):
                    stream.seek(entries[name].start + len(checksums) * entries[name].row_bytes)
                    stream.write(_as_bytes(values))
                checksums += [[_checksum(a), _checksum(b)] for a, b in zip(cells, offsets, strict=True)]
            stream.seek(entries["checksums"].start)
            stream.write(_as_bytes(torch.tensor(checksums)))
        return FeaturesOnDisk(self.path, entries, torch.tensor(checksums))


def feature_file(bank: Path, *, weights_sha256: str, precision: str, device: str) -> FeatureFile:
    """Return where the features of a bank belong, and their fingerprint; raises PicoPoseError when the bank is gone."""
    depends_on = {
        "format_version": FORMAT_VERSION,
        "bank_sha256": file_sha256(bank),
        "weights_sha256": weights_sha256,
        "precision": precision,
        "device": "cuda" if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
    }
    return FeatureFile(bank.with_suffix(".features.safetensors"), json.dumps(depends_on, sort_keys=True))


def template_features(
    file: FeatureFile | None, views: int, compute: Callable[[], Iterator[Chunk]], *, may_write: bool
) -> TemplateFeatures:
    """Return the features of an object: from its file, else computed into the file, else computed into memory."""
    found = file.read() if file is not None else None
    if found is not None:
        return found
    if file is not None and may_write:
        try:
            return file.write(views, compute())
        except PicoPoseError as error:
            _LOG.warning("template features are not kept for another run: %s", error)
    cells, offsets = zip(*compute(), strict=True)
    return FeaturesInMemory(torch.cat(cells), torch.cat(offsets))


class Kept:
    """The values that were asked for last, within a budget of bytes; one larger than the budget is kept alone."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._values: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Return the value of a key, made where it is not kept."""
        if key not in self._values:
            value = make()
            while self._values and self.bytes + value.nbytes > self._budget:
                self._values.popitem(last=False)
            self._values[key] = value
        self._values.move_to_end(key)
        return self._values[key]

    @property
    def bytes(self) -> int:
        """Bytes that are kept."""
        return sum(value.nbytes for value in self._values.values())


def _write_header(stream: IO[bytes], views: int, cells: Tensor, offsets: Tensor, fingerprint: str) -> dict[str, _Entry]:
    """Write the header of a safetensors file and return where its tensors go."""
    shapes = {
        "cells": (cells.dtype, (views, *cells.shape[1:])),
        "offsets": (offsets.dtype, (views, *offsets.shape[1:])),
        "checksums": (torch.int64, (views, 2)),
    }
    entries, start = {}, 0
    for name, (dtype, shape) in shapes.items():
        entries[name] = _Entry(dtype, shape, start)
        start = entries[name].end
    header: dict[str, Any] = {
        name: {"dtype": _NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [entry.start, entry.end]}
        for name, entry in entries.items()
    }
    text = json.dumps(header | {"__metadata__": {"fingerprint": fingerprint}}).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    return {name: _Entry(e.dtype, e.shape, e.start + 8 + len(text)) for name, e in entries.items()}


def _read_header(path: Path) -> tuple[dict[str, _Entry], str]:
    """Return the tensors of a file of ours and its fingerprint; raises what damaged bytes lead to."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("no header")
        header = json.loads(stream.read(length))
    fingerprint = str(header.pop("__metadata__")["fingerprint"])
    entries = {
        name: _Entry(_TYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
    }
    size, wanted = path.stat().st_size, max(entry.end for entry in entries.values())
    if size != wanted:
        raise ValueError(f"{size} bytes in place of {wanted}")
    return entries, fingerprint


def _read_rows(path: Path, entry: _Entry, first: int, last: int) -> Tensor:
    """Return rows of a tensor; a plain read, since mapped pages would count as memory of the process."""
    count, start = (last - first) * entry.row_bytes, entry.start + first * entry.row_bytes
    data = np.fromfile(path, np.uint8, count, offset=start)
    if len(data) != count:
        raise ValueError("is truncated")
    return torch.from_numpy(data).view(entry.dtype).view(last - first, *entry.shape[1:])


def _as_bytes(values: Tensor) -> memoryview:
    return values.contiguous().view(torch.uint8).numpy().data.cast("B")


def _checksum(values: Tensor) -> int:
    return zlib.crc32(_as_bytes(values.flatten()))
