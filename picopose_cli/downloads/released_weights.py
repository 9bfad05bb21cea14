"""The network that the PicoPose authors released: where it is, and how it is fetched and checked."""

from __future__ import annotations

import importlib
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path, file_sha256

FILE_NAME = "picopose.ckpt"
SHA256 = "9d1173d3db55e690e468edde453b06d47402d7b993748e4d2fe8f34a203014c0"
DRIVE_ID = "1hDDr0o4pEEHKi4QOUQ4zU0I-Ts5H2bI1"
PAGE = f"https://drive.google.com/file/d/{DRIVE_ID}/view"
SOURCE = "github.com/foollh/PicoPose, whose README names this file; it has an MIT badge and no licence file"


def is_complete(path: Path) -> bool:
    """Return whether the released network is at a path; raises PicoPoseError when another file is."""
    if not path.is_file():
        return False
    if file_sha256(path) != SHA256:
        raise PicoPoseError(
            "is another file than the released network, or damaged: its SHA-256 differs",
            where=path,
            fix="move or delete it, then run the command again",
        )
    return True


def fetch_weights(path: Path) -> None:
    """Fetch the released network with gdown and check its SHA-256.

    Raises PicoPoseError when gdown is not installed, Google Drive does not give the file, or it is another one.
    """
    by_hand = f"download {PAGE} in a browser as {path}, then run this command again to check it"
    try:
        gdown = importlib.import_module("gdown")
    except ImportError as error:
        fix = f"pip install gdown, or {by_hand}"
        raise PicoPoseError("gdown, which fetches files from Google Drive, is not installed", fix=fix) from error
    with atomic_path(path) as temporary:
        try:
            done = gdown.download(id=DRIVE_ID, output=str(temporary), quiet=False)
        except Exception as error:
            raise PicoPoseError(f"Google Drive does not give the file ({error})", where=PAGE, fix=by_hand) from error
        if not done or not temporary.is_file():
            raise PicoPoseError("Google Drive does not give the file (too many downloads?)", where=PAGE, fix=by_hand)
        if file_sha256(temporary) != SHA256:
            raise PicoPoseError("the file is not the released network (its SHA-256 differs)", where=PAGE, fix=by_hand)
