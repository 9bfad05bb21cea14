"""The features of an object's template views in a file beside its bank, written once and read by every later run.

The file is HDF5. Its name contains the first digits of the fingerprint of all that its numbers depend on, so that files
of other weights or precisions exist side by side. It is written whole under a temporary name by the one process that
holds the lock; readers never change or delete it.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path, file_sha256
from picopose_cli.base.locks import remove_stale_lock, writer_lock
from picopose_cli.base.types import Array

FORMAT = "picopose template features"
FORMAT_VERSION = 2
"""Raised whenever the same bank and weights would give other features: another chunk, layout or arithmetic."""

FeatureChunk = tuple[Tensor, Tensor]
"""Cells (n,P,C) and packed offset features (n,L) of some views on the host, in the order of the bank."""

_LOG = logging.getLogger(__name__)
_READ_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)
"""Exceptions of h5py for damaged files."""
_TYPES = {(b"bfloat16", "uint16"): (np.int16, torch.bfloat16), (b"float32", "float32"): (np.float32, torch.float32)}
"""How PyTorch takes the values of a dataset, by their type and the type they are stored as."""


class FeaturesOnDisk:
    """The features in a file, read through one handle that stays open; checksums are verified by every read.

    Safe to use from several threads: h5py serialises its calls. Raises OSError or KeyError if `path` is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # No chunk is read twice: what is used again is cached on the device, so HDF5's own cache is off.
        self._file = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
        self.fingerprint = self._file.attrs["fingerprint"].decode()

    def cells(self) -> Tensor:
        """Return the unit cells (V,P,C) of all views, on the host; raises PicoPoseError when they are damaged."""
        return self._read("cells", slice(None), np.empty)

    def offsets(self, view: int, device: torch.device) -> Tensor:
        """Return the packed offset features (L,) of one view; raises PicoPoseError when they are damaged."""
        return self._read("offsets", slice(view, view + 1), _STAGING.array)[0].to(device, copy=True)

    def _read(self, name: str, views: slice, allocate: Callable[[tuple[int, ...], np.dtype[Any]], Array]) -> Tensor:
        """Read some views into an array of `allocate`."""
        try:
            dataset = self._file[name]
            array_type, dtype = _TYPES[bytes(dataset.attrs["dtype"]), str(dataset.dtype)]
            array = allocate((len(range(*views.indices(len(dataset)))), *dataset.shape[1:]), dataset.dtype)
            dataset.read_direct(array, views)
            # A chunk of zeros, such as a hole in a copy, has a valid checksum.
            if not array.reshape(len(array), -1).any(axis=1).all():
                raise self._damaged(": a view has no data")
            return torch.from_numpy(array.view(array_type)).view(dtype)
        except _READ_ERRORS as error:
            raise self._damaged() from error

    def _damaged(self, reason: str = "") -> PicoPoseError:
        fix = "delete the file and run again: the features are computed anew"
        return PicoPoseError(f"template features are damaged{reason}", where=self._path, fix=fix)


class _Staging(threading.local):
    """Memory of a thread that is used by every read, since fresh memory costs more time than the read itself."""

    def __init__(self) -> None:
        self._array: Array = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array whose values last until the next call."""
        if (self._array.shape, self._array.dtype) != (shape, dtype):
            self._array = np.empty(shape, dtype)
        return self._array


_STAGING = _Staging()


@dataclass(frozen=True)
class FeatureFile:
    """Where the features of an object are stored, and the fingerprint of what they depend on."""

    path: Path
    fingerprint: str

    def read(self) -> FeaturesOnDisk | None:
        """Return the features in the file, None if it is missing, damaged or of another fingerprint.

        The cells are checked here, the offset features of a view when they are read.
        """
        if not self.path.exists():
            return None
        try:
            features = FeaturesOnDisk(self.path)
            if features.fingerprint != self.fingerprint:
                raise ValueError("they belong to other weights, templates or versions")
            features.cells()
        except (*_READ_ERRORS, PicoPoseError) as error:
            _LOG.info("template features cannot be used and are computed again (%s): %s", error, self.path)
            return None
        remove_stale_lock(self.path)
        return features

    def read_or_write(self, views: int, chunks: Iterator[FeatureChunk]) -> FeaturesOnDisk:
        """Return the features that another process has written by now; otherwise compute and write them.

        One process writes a file at a time; others wait for it. Raises PicoPoseError when the file cannot be written.
        """
        with writer_lock(self.path):
            return self.read() or self.write(views, chunks)

    def write(self, views: int, chunks: Iterator[FeatureChunk]) -> FeaturesOnDisk:
        """Write chunks as they are computed, one in memory at a time; raises PicoPoseError when that is impossible."""
        with atomic_path(self.path) as temporary, temporary.open("r+b", buffering=0) as stream:
            checked, first = _CheckedStream(stream), 0
            # HDF5 1.10's format has checksums on its metadata too.
            with h5py.File(checked, "w", libver="v110") as file:
                # Of fixed length: HDF5 keeps other texts in a heap without checksum, and hangs where it is damaged.
                file.attrs.update(format=np.bytes_(FORMAT), fingerprint=np.bytes_(self.fingerprint))
                for chunk in chunks:
                    for name, values in zip(("cells", "offsets"), chunk, strict=True):
                        dataset = file[name] if first else _create_dataset(file, name, views, values)
                        dataset[first : first + len(values)] = _as_numpy(values)
                    first += len(chunk[0])
                    checked.raise_error()
            checked.raise_error()
        return FeaturesOnDisk(self.path)


def feature_file(bank: Path, *, weights_sha256: str, precision: str, device: str) -> FeatureFile:
    """Return where the features of a bank are stored; raises PicoPoseError when the bank cannot be read."""
    depends_on = {
        "format_version": FORMAT_VERSION,
        "bank_sha256": file_sha256(bank),
        "weights_sha256": weights_sha256,
        "precision": precision,
        "device": "cuda" if device.startswith("cuda") else "cpu",
        "torch": torch.__version__,
    }
    fingerprint = json.dumps(depends_on, sort_keys=True)
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    return FeatureFile(bank.with_name(f"{bank.stem}.features-{digest[:12]}.h5"), fingerprint)


def _create_dataset(file: h5py.File, name: str, views: int, like: Tensor) -> h5py.Dataset:
    shape = like.shape[1:]
    dataset = file.create_dataset(
        name, (views, *shape), _as_numpy(like[:0]).dtype, chunks=(1, *shape), fletcher32=True, fillvalue=0
    )
    dataset.attrs["dtype"] = np.bytes_(str(like.dtype).removeprefix("torch."))
    return dataset


def _as_numpy(values: Tensor) -> Array:
    """Return a tensor as HDF5 stores it: bf16, which it does not know, as the bits."""
    array: Array = (
        values.view(torch.int16).numpy().view(np.uint16) if values.dtype == torch.bfloat16 else values.numpy()
    )
    return array


class _CheckedStream(io.RawIOBase):
    """A stream for HDF5 that remembers the first failed write instead of raising it.

    HDF5 cannot close a file whose disk is full, and then crashes the process when it ends.
    """

    def __init__(self, stream: io.FileIO) -> None:
        self._stream = stream
        self._error: OSError | None = None

    def raise_error(self) -> None:
        """Raise the OSError of the first write that failed."""
        if self._error is not None:
            raise self._error

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def readinto(self, buffer: Any, /) -> int:
        return self._stream.readinto(buffer)

    def write(self, data: Any, /) -> int:
        self._attempt(lambda: self._write_all(memoryview(data)))
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        self._attempt(lambda: self._stream.truncate(size))
        return self._stream.tell() if size is None else size

    def _write_all(self, data: memoryview) -> None:
        while data:
            data = data[self._stream.write(data) :]

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            self._error = self._error or error
