"""The weight file of the small network that ships with the package."""

from __future__ import annotations

from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import file_sha256
from picopose_cli.network.integrity import SHIPPED_SHA256

_FILE = "weights/mini.safetensors"


def bundled_weights() -> Path:
    """Return the weight file that ships with the package: inside the installed package, or beside it in a checkout.

    Raises PicoPoseError when it is in neither place, or is another file than the one that was shipped.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / _FILE, package.parent / _FILE)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        fix = "install picopose again, or pass --weights FILE"
        raise PicoPoseError(f"the small network that ships with picopose ({_FILE}) is missing", where=package, fix=fix)
    if file_sha256(found) != SHIPPED_SHA256:
        fix = "install picopose again, or pass the file with --weights to use it as it is"
        raise PicoPoseError("is damaged or replaced: its SHA-256 is not that of the shipped file", where=found, fix=fix)
    return found
