"""Files of the driver on another node: at the same path where the content is the same, otherwise a copy in a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path
from picopose_cli.base.locks import writer_lock
from picopose_cli.base.tasks import ImageTask

BLOCK_BYTES = 8 << 20
"""Bytes that are sent at a time."""
_KEY_DIGITS = 24

ReadBlock = Callable[[Path, int], bytes | None]
"""Returns the bytes of a file of the driver from an offset on, at most `BLOCK_BYTES`; None where there is no file."""


@dataclass(frozen=True)
class FileBundle:
    """Files of the driver that belong together, the first of which is opened, and the SHA-256 of their contents."""

    files: tuple[Path, ...]
    sha256: str


def bundle_files(*files: Path) -> FileBundle:
    """Return files as a bundle; raises PicoPoseError when one cannot be read."""
    absolute = tuple(file.absolute() for file in files)
    sha256 = _sha256(absolute)
    if sha256 is None:
        raise PicoPoseError("cannot be read", where=absolute[0], fix="check the file")
    return FileBundle(absolute, sha256)


def read_block(path: Path, offset: int) -> bytes | None:
    """Return a block of a file, as a node asks for it."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(BLOCK_BYTES)
    except OSError:
        return None


@dataclass(frozen=True)
class NodeFiles:
    """The driver's files as a node sees them; copies are kept in `folder`, by their content, for later runs."""

    folder: Path
    read: ReadBlock

    def local(self, bundle: FileBundle) -> Path:
        """Return where the first file of a bundle is on this node, copied with the others where the node lacks them.

        Raises PicoPoseError when they cannot be copied.
        """
        if self.has(bundle):
            return bundle.files[0]
        root = os.path.commonpath([file.parent for file in bundle.files])
        folder = self.folder / bundle.sha256[:_KEY_DIGITS]
        copies = [folder / file.relative_to(root) for file in bundle.files]
        with writer_lock(copies[0]):
            if _sha256(copies) != bundle.sha256:
                for file, copy in zip(bundle.files, copies, strict=True):
                    self.copy(file, copy)
                if _sha256(copies) != bundle.sha256:
                    what = "was changed while it was sent to the nodes"
                    raise PicoPoseError(what, where=bundle.files[0], fix="run the same command again")
        return copies[0]

    def has(self, bundle: FileBundle) -> bool:
        """Return whether the files are at the driver's paths on this node, with the same content."""
        return _sha256(bundle.files) == bundle.sha256

    def copy(self, file: Path, copy: Path) -> bool:
        """Copy a file of the driver, block by block; return whether there is one.

        Raises PicoPoseError when the copy cannot be written.
        """
        block = self.read(file, 0)
        if block is None:
            return False
        with atomic_path(copy) as temporary, temporary.open("wb") as stream:
            while block:
                stream.write(block)
                block = self.read(file, stream.tell())
        return True

    def copied_for_now(self, task: ImageTask, folder: Path) -> ImageTask:
        """Return a task with copies of its files in a temporary folder; one that does not exist keeps its path."""

        def copied(file: Path) -> Path:
            copy = folder / str(file).strip(os.sep)
            return copy if self.copy(file, copy) else file

        return with_paths(task, copied)


def with_paths(task: ImageTask, changed: Callable[[Path], Path]) -> ImageTask:
    """Return a task with other paths of its image, its depth image and its masks."""
    return replace(
        task,
        image_path=changed(task.image_path),
        depth=None if task.depth is None else replace(task.depth, path=changed(task.depth.path)),
        detections=tuple(
            replace(one, mask=changed(one.mask)) if isinstance(one.mask, Path) else one for one in task.detections
        ),
    )


def _sha256(files: Sequence[Path]) -> str | None:
    """Return the SHA-256 of the contents one after the other, None where a file cannot be read."""
    digest = hashlib.sha256()
    try:
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
