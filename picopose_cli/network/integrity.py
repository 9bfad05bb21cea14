"""Damage in weight files: checksums of the shipped and the released network, and those that files carry themselves."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from picopose_cli.base.errors import PicoPoseError

SHIPPED_SHA256 = "59dec46c421b894beea182e504526179d3c88ca5c5118fefe0282bd2a8fac102"
"""Of the network that ships with the package, as weights/README.md has it."""
LOCAL_FEATURES_SHA256 = "16758e7a05a323a9cec139587540d59fe87603ee6adad7ee35f658ea5d70bdc1"
"""Of XFeat and LighterGlue as they ship with the package, as weights/README.md has it."""
RELEASED_SHA256 = "9d1173d3db55e690e468edde453b06d47402d7b993748e4d2fe8f34a203014c0"
"""Of the checkpoint that the PicoPose authors released."""
FETCH_AGAIN = "copy or download it again and compare its SHA-256"

_ZIP_MAGIC = b"PK\x03\x04"


def tensors_sha256(tensors: Mapping[str, Tensor], config: str) -> str:
    """Return a hash of the names, types, shapes and values of tensors, and of the text of the network's sizes."""
    digest = hashlib.sha256(config.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def require_intact_archive(path: Path) -> None:
    """Compare the parts of a PyTorch file with the checksums in it, which PyTorch itself does not read.

    A file whose checksums were all left out when it was written is accepted. Raises PicoPoseError for a damaged file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = [info.filename for info in archive.infolist() if not _is_intact(archive, info)]
            total = len(archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise PicoPoseError(f"is truncated or damaged ({error})", where=path, fix=FETCH_AGAIN) from error
    if damaged and len(damaged) < total:
        raise PicoPoseError(f"is damaged ({damaged[0]} does not have its checksum)", where=path, fix=FETCH_AGAIN)


def _is_intact(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(info) as stream:
            while stream.read(1 << 22):
                pass
    except zipfile.BadZipFile as error:
        if "CRC" not in str(error):
            raise
        return False
    return True


def unverified_weights(path: Path, sha256: str, has_hash: bool) -> list[str]:
    """Return a warning for weights without any checksum, nothing for those whose damage is noticed.

    `has_hash`: the file carries the hash of its tensors.
    """
    with path.open("rb") as stream:
        is_archive = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    if has_hash or is_archive or sha256 in (SHIPPED_SHA256, RELEASED_SHA256):
        return []
    what = f"{path} contains no checksum, so damage in it cannot be noticed"
    return [f"{what}; compare its SHA-256 ({sha256[:12]}...) with that of its source"]
