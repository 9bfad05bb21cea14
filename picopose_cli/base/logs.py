"""Where log messages go: the console and, with --log-file, a file; and how a command is kept silent."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from picopose_cli.base.environment import environment_lines
from picopose_cli.base.files import unwritable_error

_CONSOLE_FORMAT = "%(levelname)s %(name)s: %(message)s"
_FILE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOG = logging.getLogger("picopose_cli")


def start_log(*, verbose: bool, file: Path | None) -> None:
    """Send messages to stderr, warnings alone unless `verbose`, and all of them to the end of `file`.

    The file begins with the command and the versions. Raises PicoPoseError when it cannot be written.
    """
    console = logging.StreamHandler()
    console.setLevel(logging.INFO if verbose else logging.WARNING)
    console.setFormatter(logging.Formatter(_CONSOLE_FORMAT))
    handlers: list[logging.Handler] = [console]
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise unwritable_error(file, error) from error
        handlers[-1].setFormatter(logging.Formatter(_FILE_FORMAT))
    logging.basicConfig(level=logging.INFO if verbose or file else logging.WARNING, handlers=handlers)
    if file is not None:
        log_to_file(shlex.join(["picopose", *sys.argv[1:]]), *environment_lines())


def log_to_file(*texts: str) -> None:
    """Write texts to the log file alone; nothing happens without one."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            for text in texts:
                handler.handle(_LOG.makeRecord(_LOG.name, logging.INFO, "", 0, text, (), None))


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Throw away what is printed on stdout inside the context; stderr has errors and warnings."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
