"""The template bank on disk: one HDF5 file an object, `obj_000001.h5`, that appears whole and says where it is from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Provenance, TemplateBank
from picopose_cli.templates.codec import decode_lengths, decode_rgb, encode_lengths, encode_rgb

FORMAT = "picopose template bank"
FORMAT_VERSION = 1
"""Raised whenever a bank made before must be rendered again: other fields, other crops, other points."""

_RENDER_AGAIN = "render it again: picopose render-templates --overwrite"
_V = -1  # stands for the number of views in the table below
_ENCODING = "crops_rgb and lengths are differenced integers: decode_rgb, decode_lengths in picopose_cli.templates.codec"
_STORED: dict[str, tuple[str, tuple[int, ...]]] = {
    "crops_rgb": ("uint8", (_V, 3, CROP_PX, CROP_PX)),
    "masks": ("uint8", (_V, CROP_PX, CROP_PX)),
    "xyz_obj_m": ("uint32", (_V, 3, GRID_CELLS, GRID_CELLS)),
    "depth_centre_m": ("uint32", (_V, GRID_CELLS, GRID_CELLS)),
    "K": ("float64", (3, 3)),
    "A_crop_from_image": ("float32", (_V, 3, 3)),
    "T_tmpl_from_obj": ("float64", (_V, 4, 4)),
}


def bank_path(folder: Path, obj_id: int) -> Path:
    """Return where the bank of an object lies in a templates folder."""
    return folder / f"obj_{obj_id:06d}.h5"


def write_bank(path: Path, bank: TemplateBank) -> None:
    """Write a bank so that it appears whole; what was there before is replaced.

    Raises PicoPoseError when the folder cannot be written or the disk is full.
    """
    # Made in memory, about 10 MB: a full disk is then one plain write that fails, not a broken HDF5 library state.
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, encoding=_ENCODING)
        file.attrs.update(obj_id=bank.obj_id, diameter_m=bank.diameter_m, **asdict(bank.provenance))
        for name, array in _encoded(bank).items():
            dtype, shape = _STORED[name]
            options = _PER_VIEW | {"chunks": (1, *shape[1:])} if len(shape) > 2 else {}
            file.create_dataset(name, data=np.asarray(array, dtype), **options)
        file.flush()
        image = file.id.get_file_image()
    atomic_write_bytes(path, image)


_PER_VIEW: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def _encoded(bank: TemplateBank) -> dict[str, NDArray[Any]]:
    return {
        "crops_rgb": encode_rgb(bank.crops_rgb),
        "masks": bank.masks,
        "xyz_obj_m": encode_lengths(bank.xyz_obj_m.transpose(0, 3, 1, 2)),
        "depth_centre_m": encode_lengths(bank.depth_centre_m),
        "K": bank.K,
        "A_crop_from_image": bank.A_crop_from_image,
        "T_tmpl_from_obj": bank.T_tmpl_from_obj,
    }


def _decoded(stored: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return stored | {
        "crops_rgb": decode_rgb(stored["crops_rgb"]),
        "masks": stored["masks"] > 0,
        "xyz_obj_m": np.ascontiguousarray(decode_lengths(stored["xyz_obj_m"]).transpose(0, 2, 3, 1)),
        "depth_centre_m": decode_lengths(stored["depth_centre_m"]),
    }


def read_bank(path: Path) -> TemplateBank:
    """Read a bank; its provenance tells whether it is made from the mesh that one has.

    Raises PicoPoseError when it is missing, truncated, no bank, of another format version, or holds arrays of another
    shape or type, NaN, or poses that are no rigid motions.
    """
    with _opened(path) as file:
        provenance = _checked_provenance(file, path)
        stored = {name: _read_dataset(file, name, path) for name in _STORED}
        obj_id, diameter_m = int(file.attrs["obj_id"]), float(file.attrs["diameter_m"])
    _check_numbers(stored, path)
    return TemplateBank(obj_id=obj_id, diameter_m=diameter_m, provenance=provenance, **_decoded(stored))


def read_provenance(path: Path) -> Provenance:
    """Return where a bank is from, without reading its arrays.

    Raises PicoPoseError when the file is missing, truncated, no bank or of another format version.
    """
    with _opened(path) as file:
        return _checked_provenance(file, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise PicoPoseError("the template bank is missing", where=path, fix="make it: picopose render-templates")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # what h5py makes of a damaged file
        raise PicoPoseError(f"not a readable template bank ({error})", where=path, fix=_RENDER_AGAIN) from error


def _checked_provenance(file: Any, path: Path) -> Provenance:
    if file.attrs.get("format") != FORMAT:
        raise PicoPoseError("an HDF5 file, but not a template bank", where=path, fix=_RENDER_AGAIN)
    version = file.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise PicoPoseError(
            f"a template bank of format {version}, this version reads {FORMAT_VERSION}", where=path, fix=_RENDER_AGAIN
        )
    return Provenance(**{field.name: str(file.attrs[field.name]) for field in fields(Provenance)})


def _read_dataset(file: Any, name: str, path: Path) -> NDArray[Any]:
    dtype, shape = _STORED[name]
    views = len(file["crops_rgb"])
    wanted = tuple(views if size == _V else size for size in shape)
    dataset = file[name]
    if dataset.dtype != np.dtype(dtype) or dataset.shape != wanted or views == 0:
        raise PicoPoseError(
            f"{name} is {dataset.dtype} {dataset.shape}, needs {dtype} {wanted}", where=path, fix=_RENDER_AGAIN
        )
    array: NDArray[Any] = dataset[()]
    return array


def _check_numbers(stored: dict[str, NDArray[Any]], path: Path) -> None:
    for name, array in stored.items():
        if not np.isfinite(array).all():
            raise PicoPoseError(f"{name} holds NaN or infinity", where=path, fix=_RENDER_AGAIN)
    R = stored["T_tmpl_from_obj"][:, :3, :3]
    if np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max() > 1e-3 or (np.linalg.det(R) < 0).any():
        raise PicoPoseError("a template's pose is no rigid motion", where=path, fix=_RENDER_AGAIN)
