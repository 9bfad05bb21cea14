"""The template bank on disk: one HDF5 file per object, `obj_000001.h5`, written whole, with its provenance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array, Provenance, TemplateBank

FORMAT = "picopose template bank"
BANK_VERSION = 2
"""Raised whenever banks of earlier versions must be rendered again: other fields, other crops, other points."""

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


def bank_path(folder: Path, obj_id: int) -> Path:
    """Return the path of an object's bank in a templates folder."""
    return folder / f"obj_{obj_id:06d}.h5"


def write_bank(path: Path, bank: TemplateBank) -> None:
    """Write a bank whole or not at all; an existing file is replaced.

    Raises PicoPoseError when the folder cannot be written or the disk is full.
    """
    # Made in memory, about 10 MB: a full disk is then one plain write that fails, not a broken HDF5 library state.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update(format=FORMAT, format_version=BANK_VERSION)
        file.attrs.update(obj_id=bank.obj_id, diameter_m=bank.diameter_m, **asdict(bank.provenance))
        for name, (dtype, shape) in _STORED.items():
            options = _PER_VIEW | {"chunks": (1, *shape[1:])} if len(shape) > 2 else {}
            file.create_dataset(name, data=np.asarray(getattr(bank, name), dtype), **options)
        file.flush()
        image = file.id.get_file_image()
    atomic_write_bytes(path, image)


def read_bank(path: Path) -> TemplateBank:
    """Read a bank with its provenance, which tells whether it was made from a given mesh.

    Raises PicoPoseError when it is missing, truncated, not a bank, of another format version, or holds arrays of
    another shape or type, NaN, or poses that are not rigid transforms.
    """
    with _opened(path) as file:
        provenance = _checked_provenance(file, path)
        stored = {name: _read_dataset(file, name, path) for name in _STORED}
        obj_id, diameter_m = int(file.attrs["obj_id"]), float(file.attrs["diameter_m"])
    _check_numbers(stored, path)
    stored["masks"] = stored["masks"] > 0
    return TemplateBank(obj_id=obj_id, diameter_m=diameter_m, provenance=provenance, **stored)


def read_provenance(path: Path) -> Provenance:
    """Return a bank's provenance without reading its arrays.

    Raises PicoPoseError when the file is missing, truncated, not a bank or of another format version.
    """
    with _opened(path) as file:
        return _checked_provenance(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise PicoPoseError("the template bank is missing", where=path, fix="make it: picopose render-templates")
    try:
        # Banks appear whole and are never changed, so no lock is needed; network file systems often have none.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # h5py's errors for a damaged file
        raise PicoPoseError(f"not a readable template bank ({error})", where=path, fix=_RENDER_AGAIN) from error


def _checked_provenance(file: Any, path: Path) -> Provenance:
    if file.attrs.get("format") != FORMAT:
        raise PicoPoseError("an HDF5 file, but not a template bank", where=path, fix=_RENDER_AGAIN)
    version = file.attrs.get("format_version")
    if version != BANK_VERSION:
        raise PicoPoseError(
            f"a template bank of format {version}, this version reads {BANK_VERSION}", where=path, fix=_RENDER_AGAIN
        )
    return Provenance(**{field.name: str(file.attrs[field.name]) for field in fields(Provenance)})


def _read_dataset(file: Any, name: str, path: Path) -> Array:
    dtype, shape = _STORED[name]
    views = len(file["crops_rgb"])
    wanted = tuple(views if size == _V else size for size in shape)
    dataset = file[name]
    if dataset.dtype != np.dtype(dtype) or dataset.shape != wanted or views == 0:
        raise PicoPoseError(
            f"{name} is {dataset.dtype} {dataset.shape}, needs {dtype} {wanted}", where=path, fix=_RENDER_AGAIN
        )
    array: Array = dataset[()]
    return array


def _check_numbers(stored: dict[str, Array], path: Path) -> None:
    for name, array in stored.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PicoPoseError(f"{name} holds NaN or infinity", where=path, fix=_RENDER_AGAIN)
    R = stored["T_tmpl_from_obj"][:, :3, :3]
    if np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max() > 1e-3 or (np.linalg.det(R) < 0).any():
        raise PicoPoseError("a template's pose is not a rigid transform", where=path, fix=_RENDER_AGAIN)
