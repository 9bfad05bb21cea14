"""Reading JSON files of unknown origin: every fault becomes an error that names the file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError

_GZIP_MAGIC = b"\x1f\x8b"
_REPLACE = "replace the file with a complete copy"


def read_json(path: Path, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the content of a JSON file; a gzipped file is recognised by its first bytes, not by its name.

    `object_hook` is called with every JSON object as soon as it is parsed (see `json.loads`).
    Raises PicoPoseError when the file is missing, unreadable, truncated or not JSON.
    """
    try:
        data = path.read_bytes()
        if data[:2] == _GZIP_MAGIC:
            data = gzip.decompress(data)
    except FileNotFoundError as error:
        raise PicoPoseError("the file does not exist", where=path, fix="check the path or the download") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PicoPoseError(f"is not a complete gzip file ({error})", where=path, fix=_REPLACE) from error
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error
    if not data.strip():
        raise PicoPoseError("the file is empty", where=path, fix=_REPLACE)
    try:
        return json.loads(data, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise PicoPoseError(f"is not valid JSON ({error})", where=path, fix=_REPLACE) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises PicoPoseError when it is something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise PicoPoseError(f"is {_kind(content)}, must be an object", where=path, fix="check the file")
    return content


def read_json_list(path: Path, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> list[Any]:
    """Return the list in a JSON file; raises PicoPoseError when it is something else."""
    content = read_json(path, object_hook=object_hook)
    if not isinstance(content, list):
        raise PicoPoseError(f"is {_kind(content)}, must be a list", where=path, fix="check the file")
    return content


def read_indexed(path: Path) -> dict[int, Any]:
    """Return a JSON object whose keys are whole numbers (image or object ids); raises PicoPoseError for other keys."""
    indexed = {}
    for key, value in read_json_object(path).items():
        if not (key.isascii() and key.isdigit()):
            raise PicoPoseError(f"key {key[:40]!r} is not an id", where=path, fix="keys must be whole numbers")
        indexed[int(key)] = value
    return indexed


def _kind(content: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(content), "a number")
