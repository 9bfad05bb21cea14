"""The weight files that ship with the package: the small network, and the local features."""

from __future__ import annotations

from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.network.integrity import LOCAL_FEATURES_SHA256, SHIPPED_SHA256

_FOLDER = "weights"
_MINI = "mini.safetensors"
_LOCAL_FEATURES = "local_features.safetensors"


def bundled_weights() -> Path:
    """Return the weight file of the small network: inside the installed package, or beside it in a checkout.

    Raises PicoPoseError when it is in neither place, or is another file than the one that was shipped.
    """
    found = _find(_MINI, fix="install picopose again, or pass --weights FILE")
    fix = "install picopose again, or pass the file with --weights to use it as it is"
    return _require_shipped(found, SHIPPED_SHA256, fix)


def bundled_local_features() -> Path:
    """Return the weight file of the local features, from the same places; raises PicoPoseError as `bundled_weights`."""
    fix = "install picopose again"
    return _require_shipped(_find(_LOCAL_FEATURES, fix), LOCAL_FEATURES_SHA256, fix)


def _find(name: str, fix: str) -> Path:
    package = Path(__file__).resolve().parents[1]
    places = (package / _FOLDER / name, package.parent / _FOLDER / name)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise PicoPoseError(f"{_FOLDER}/{name}, which ships with picopose, is missing", where=package, fix=fix)
    return found


def _require_shipped(path: Path, sha256: str, fix: str) -> Path:
    if file_sha256(path) != sha256:
        raise PicoPoseError("is damaged or replaced: its SHA-256 is not that of the shipped file", where=path, fix=fix)
    return path
