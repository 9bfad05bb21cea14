"""The one exception that a user's input can raise."""

from __future__ import annotations

from pathlib import Path

BUG_EXIT_CODE = 70
"""Exit code after an exception that no input should raise (EX_SOFTWARE of sysexits.h)."""


class PicoPoseError(Exception):
    """Input or environment that cannot be used: what is wrong, where, and what to do next.

    The command line prints it as one line on stderr and exits with code 2. Code that can go on without the broken
    part catches it, records it as skipped and lets the run exit with code 1.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | Path | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        located = self.what if self.where is None else f"{self.where}: {self.what}"
        text = located if self.fix is None else f"{located}; {self.fix}"
        return " ".join(text.split())

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the three parts when a worker process sends the error to its parent."""
        return (_rebuild, (self.what, self.where, self.fix))


class OutOfMemoryError(PicoPoseError):
    """The device's memory is too small for the smallest piece of work; another device's may do."""


def _rebuild(what: str, where: str | None, fix: str | None) -> PicoPoseError:
    return PicoPoseError(what, where=where, fix=fix)
