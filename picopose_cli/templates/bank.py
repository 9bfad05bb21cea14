"""The template bank on disk: one HDF5 file per object, `obj_000001.h5`, written whole, with its provenance."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.texts import shorten
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array, Provenance, TemplateBank
from picopose_cli.templates.bank_numbers import find_problem

FORMAT = "picopose template bank"
BANK_VERSION = 2
"""Raised whenever banks of earlier versions must be rendered again: other fields, other crops, other points."""

MAX_VIEWS = 1000
"""Views of a bank that fit into memory: 240 MB."""
MESH_UNITS = ("mm", "cm", "m", "images")
"""Units of a provenance; `images` for a bank built from images."""

_CENTRE = "centre_m"
"""Attribute that a bank of a centred mesh lacks."""
_OPTIONAL = ("notes",)
_LARGEST_M = 1e4
_FIELDS = fields(Provenance)
_H5PY_ERRORS = (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
"""What h5py raises for a damaged file; its texts are for programmers."""
_RENDER_AGAIN = "render it again: picopose render-templates --overwrite"
_V = -1  # the number of views in the table below
_STORED: dict[str, tuple[str, tuple[int, ...]]] = {
    "crops_rgb": ("uint8", (_V, CROP_PX, CROP_PX, 3)),
    "masks": ("uint8", (_V, CROP_PX, CROP_PX)),
    "depth_corner_m": ("float32", (_V, GRID_CELLS, GRID_CELLS)),
    "depth_centre_m": ("float32", (_V, GRID_CELLS, GRID_CELLS)),
    "K": ("float64", (3, 3)),
    "A_crop_from_image": ("float32", (_V, 3, 3)),
    "T_tmpl_from_obj": ("float64", (_V, 4, 4)),
}
_PER_VIEW: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
_SINGLE: dict[str, Any] = {"fletcher32": True}
"""A checksum; compressed data has one of its own."""


def bank_path(folder: Path, obj_id: int) -> Path:
    """Return the path of an object's bank in a templates folder."""
    return folder / f"obj_{obj_id:06d}.h5"


def write_bank(path: Path, bank: TemplateBank) -> None:
    """Write a bank whole or not at all; an existing file is replaced.

    Raises PicoPoseError when the folder cannot be written or the disk is full.
    """
    # Made in memory, about 10 MB: a full disk is then one plain write that fails, not a broken HDF5 library state.
    # The format of HDF5 1.10 has checksums of its structure: without, a changed byte made the library loop forever.
    with h5py.File(path.name, "w", driver="core", backing_store=False, libver="v110") as file:
        file.attrs.update(format=_fixed(FORMAT), format_version=BANK_VERSION)
        provenance = {
            name: _fixed(text) for name, text in asdict(bank.provenance).items() if text or name not in _OPTIONAL
        }
        file.attrs.update(obj_id=bank.obj_id, diameter_m=bank.diameter_m, **provenance)
        if bank.centre_m.any():
            file.attrs[_CENTRE] = bank.centre_m
        for name, (dtype, shape) in _STORED.items():
            options = _PER_VIEW | {"chunks": (1, *shape[1:])} if len(shape) > 2 else _SINGLE | {"chunks": shape}
            file.create_dataset(name, data=np.asarray(getattr(bank, name), dtype), **options)
        file.flush()
        image = file.id.get_file_image()
    atomic_write_bytes(path, image)


def read_bank(path: Path) -> TemplateBank:
    """Read a bank with its provenance, which tells whether it was made from a given mesh.

    Raises PicoPoseError when it is missing, truncated, not a bank, of another format version or object, or holds arrays
    of another shape or type, or numbers that no renderer writes.
    """
    with _opened(path) as file:
        provenance = _checked_provenance(file, path)
        obj_id, (diameter_m, centre_m) = _read_id(file, path), _read_lengths(file, path)
        stored = {name: _read_dataset(file, name, path) for name in _STORED}
    problem = find_problem(stored, centre_m)
    if problem is not None:
        raise _unusable(path, problem)
    stored["masks"] = stored["masks"] > 0
    return TemplateBank(obj_id=obj_id, diameter_m=diameter_m, provenance=provenance, centre_m=centre_m, **stored)


def read_provenance(path: Path) -> Provenance:
    """Return a bank's provenance without reading its arrays.

    Raises PicoPoseError when the file is missing, truncated, not a bank or of another format version or object.
    """
    with _opened(path) as file:
        _read_id(file, path)
        return _checked_provenance(file, path)


def read_diameter_m(path: Path) -> float:
    """Return the diagonal in metres of the box of a bank's object; raises PicoPoseError as `read_provenance`."""
    with _opened(path) as file:
        _checked_provenance(file, path)
        return _read_lengths(file, path)[0]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise PicoPoseError("the template bank is missing", where=path, fix="make it: picopose render-templates")
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error
    try:
        # Banks appear whole and are never changed, so no lock is needed; network file systems often have none.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _H5PY_ERRORS as error:
        raise PicoPoseError(
            "not a readable template bank (damaged, truncated or another format)", where=path, fix=_RENDER_AGAIN
        ) from error


def _checked_provenance(file: Any, path: Path) -> Provenance:
    if _text(file.attrs.get("format")) != FORMAT:
        raise PicoPoseError("an HDF5 file, but not a template bank", where=path, fix=_RENDER_AGAIN)
    version = file.attrs.get("format_version")
    if np.ndim(version) or version != BANK_VERSION:
        raise PicoPoseError(
            f"a template bank of format {shorten(str(version))}, this version reads {BANK_VERSION}",
            where=path,
            fix=_RENDER_AGAIN,
        )
    stored = {
        field.name: _text(file.attrs.get(field.name, "" if field.name in _OPTIONAL else None)) for field in _FIELDS
    }
    missing = [name for name, value in stored.items() if value is None]
    if missing:
        raise _unusable(path, f"its {missing[0]} is missing or not a text")
    if stored["mesh_unit"] not in MESH_UNITS:
        raise _unusable(path, f"its mesh unit {shorten(str(stored['mesh_unit']))!r} is not known")
    return Provenance(**{name: str(value) for name, value in stored.items()})


def _fixed(text: str) -> Array:
    """Return a text of fixed length: those of variable length are stored in a heap without a checksum."""
    data = text.encode()
    return np.array(data, f"S{max(len(data), 1)}")


def _text(value: Any) -> str | None:
    """Return an attribute that is a text, None for any other."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) else None


def _read_id(file: Any, path: Path) -> int:
    """Return the object's id; the name of a file obj_000001.h5 must have the same."""
    value = file.attrs.get("obj_id")
    if np.ndim(value) or not isinstance(value, (int, np.integer)) or value < 0:
        raise _unusable(path, "its object id is missing or not a whole number")
    named = re.fullmatch(r"obj_(\d{6,9})", path.stem)
    if named and int(named[1]) != value:
        raise _unusable(path, f"it holds the templates of object {value}")
    return int(value)


def _read_lengths(file: Any, path: Path) -> tuple[float, Array]:
    """Return the object's diameter and centre (3,) in metres."""
    diameter_m, centre_m = file.attrs.get("diameter_m"), file.attrs.get(_CENTRE, np.zeros(3))
    if np.ndim(diameter_m) or not isinstance(diameter_m, (float, np.floating)) or not 0 < diameter_m < _LARGEST_M:
        raise _unusable(path, "its diameter is not a plausible length")
    centre_m = np.asarray(centre_m)
    if centre_m.shape != (3,) or centre_m.dtype.kind != "f" or not (np.abs(centre_m) < _LARGEST_M).all():
        raise _unusable(path, "its centre is not a plausible point")
    return float(diameter_m), centre_m.astype(np.float64)


def _read_dataset(file: Any, name: str, path: Path) -> Array:
    dtype, shape = _STORED[name]
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise _unusable(path, f"{name} is missing or not an array")
    views = file["crops_rgb"].shape[:1] if isinstance(file.get("crops_rgb"), h5py.Dataset) else ()
    wanted = tuple((views or (0,))[0] if size == _V else size for size in shape)
    if dataset.dtype != np.dtype(dtype) or dataset.shape != wanted or 0 in wanted:
        raise _unusable(path, f"{name} is {dataset.dtype} {dataset.shape}, needs {dtype} {wanted}")
    if wanted[0] > MAX_VIEWS:
        raise _unusable(path, f"it has {wanted[0]} views, more than {MAX_VIEWS}")
    array: Array = dataset[()]
    return array


def _unusable(path: Path, what: str) -> PicoPoseError:
    return PicoPoseError(what, where=path, fix=_RENDER_AGAIN)
