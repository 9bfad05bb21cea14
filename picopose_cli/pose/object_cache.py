"""The user's cache: the template bank of each mesh, rendered once, with its template features beside it."""

from __future__ import annotations

import os
from pathlib import Path

from picopose_cli.base.environment import available_cores
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.locks import writer_lock
from picopose_cli.rendering.meshes import mesh_sha256
from picopose_cli.templates.bank import bank_path, read_provenance, write_bank
from picopose_cli.templates.build import render_bank

CACHE_VARIABLE = "PICOPOSE_CACHE"
"""Environment variable with the folder of the cache."""
BANK_ID = 1
"""Object id in the banks of the cache, which are named after their mesh."""
_MOST_THREADS = 16
_KEY_DIGITS = 24


def default_cache_dir() -> Path:
    """Return the folder of the user's cache: PICOPOSE_CACHE, else picopose in the system's folder of caches."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "picopose"


def cached_bank(mesh: Path, unit: str, cache: Path) -> Path:
    """Return the template bank of a mesh file, which is rendered when the cache does not have it.

    The folder of the bank is named after the SHA-256 of the mesh with its texture, and the unit. Raises PicoPoseError
    when the mesh cannot be used or the cache cannot be written.
    """
    sha256 = mesh_sha256(mesh)
    path = bank_path(cache / "objects" / f"{sha256[:_KEY_DIGITS]}-{unit}", BANK_ID)
    if _is_current(path, sha256, unit):
        return path
    threads = min(available_cores(), _MOST_THREADS)
    bank = render_bank(BANK_ID, mesh, mesh_unit=unit, kind="software", threads=threads)
    with writer_lock(path):
        write_bank(path, bank)
    return path


def _is_current(path: Path, sha256: str, unit: str) -> bool:
    try:
        made = read_provenance(path)
    except PicoPoseError:
        return False
    return (made.source_sha256, made.mesh_unit) == (sha256, unit)
