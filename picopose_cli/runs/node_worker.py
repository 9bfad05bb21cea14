"""What a worker on a node of a cluster is given, and what it answers; nothing heavy is imported here."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from picopose_cli.base.errors import OutOfMemoryError, PicoPoseError
from picopose_cli.runs.node_files import NodeFiles


@dataclass(frozen=True)
class NodeContext:
    """What a worker knows of its place: files of the driver, threads that it may use, and its index on the node."""

    files: NodeFiles
    threads: int
    index: int


Work = Callable[[Any, int], Any]
"""Does a job with batches that are halved some times; raises PicoPoseError, which is the job's outcome."""


class MakeWork(Protocol):
    """Makes the function that does the jobs of a worker, on its node; pickled, so it must be of a module."""

    def __call__(self, context: NodeContext) -> Work:
        """Prepare a worker; raises PicoPoseError when that is impossible on this node."""


@dataclass(frozen=True)
class Bug:
    """The traceback of an exception other than PicoPoseError."""

    trace: str


class MemoryTooSmall:
    """The answer of a worker whose memory was too small for a job."""


def outcome_of(work: Callable[[], Any]) -> Any:
    """Return the result of some work, its PicoPoseError, or what it means that it raised something else."""
    try:
        return work()
    except (MemoryError, OutOfMemoryError):
        return MemoryTooSmall()
    except PicoPoseError as error:
        return error
    except RuntimeError as error:
        text = str(error).lower()  # of PyTorch: that of CUDA is a class of its own, that of the CPU is not
        lacks = "out of memory" in text or "allocate memory" in text or "not enough memory" in text
        return MemoryTooSmall() if lacks else Bug(traceback.format_exc())
    except Exception:  # noqa: BLE001 - raised again in the driver
        return Bug(traceback.format_exc())
