"""Reading JSON files of unknown origin: every fault becomes an error that names the file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError

MAX_BYTES = 2 << 30
"""Of a file once it is unpacked: a gzipped file of a few MB can hold any amount."""
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 1 << 24
_LONGEST_ID = 15
_REPLACE = "replace the file with a complete copy"


class RepeatedKeyError(ValueError):
    """A JSON object has a key twice, of which a plain reader would keep the last value only."""


def read_json(path: Path, *, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the content of a JSON file; a gzipped file is recognised by its first bytes, not by its name.

    `object_hook` is called with every JSON object as soon as it is parsed (see `json.loads`). With it, an object that
    has a key twice is replaced by a RepeatedKeyError, so that the others can be used; without, the file is refused.
    Raises PicoPoseError when the file is missing, unreadable, truncated, too large or not JSON.
    """
    data = _read_bytes(path)
    if not data.strip():
        raise PicoPoseError("the file is empty", where=path, fix=_REPLACE)
    try:
        content = json.loads(data, object_pairs_hook=lambda pairs: _object(pairs, object_hook))
    except RepeatedKeyError as error:
        raise PicoPoseError(str(error), where=path, fix="keep one of them") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PicoPoseError(f"is not valid JSON ({error})", where=path, fix=_REPLACE) from error
    except RecursionError as error:
        raise PicoPoseError("is nested too deeply", where=path, fix="check the file") from error
    except ValueError as error:  # the limit of int()
        raise PicoPoseError("has a number of thousands of digits", where=path, fix="check the file") from error
    if isinstance(content, RepeatedKeyError):
        raise PicoPoseError(str(content), where=path, fix="keep one of them")
    return content


def _object(pairs: list[tuple[str, Any]], object_hook: Callable[[dict[str, Any]], Any] | None) -> Any:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content if object_hook is None else object_hook(content)
    keys = [key for key, _ in pairs]
    repeated = next(key for key in content if keys.count(key) > 1)
    error = RepeatedKeyError(f"key {repeated[:40]!r} occurs twice in one object")
    if object_hook is None:
        raise error
    return error


def _read_bytes(path: Path) -> bytearray:
    """Return the content of a file, unpacked if it is gzipped."""
    data = bytearray()
    try:
        with path.open("rb") as stream:
            packed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            stream.seek(0)
            source: Any = gzip.GzipFile(fileobj=stream) if packed else stream
            while block := source.read(_BLOCK_BYTES):
                data += block
                if len(data) > MAX_BYTES:
                    what = f"has more than {MAX_BYTES / 2**30:g} GiB{' when unpacked' if packed else ''}"
                    raise PicoPoseError(what, where=path, fix="check the file, or write less into it")
    except FileNotFoundError as error:
        raise PicoPoseError("the file does not exist", where=path, fix="check the path or the download") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PicoPoseError(f"is not a complete gzip file ({error})", where=path, fix=_REPLACE) from error
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error
    return data


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raises PicoPoseError when it is something else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise PicoPoseError(f"is {_kind(content)}, must be an object", where=path, fix="check the file")
    return content


def read_json_list(path: Path) -> list[Any]:
    """Return the list in a JSON file; raises PicoPoseError when it is something else."""
    content = read_json(path)
    if not isinstance(content, list):
        raise PicoPoseError(f"is {_kind(content)}, must be a list", where=path, fix="check the file")
    return content


def read_indexed(path: Path) -> dict[int, Any]:
    """Return a JSON object whose keys are whole numbers (image or object ids).

    Raises PicoPoseError for other keys, and for an id that occurs twice.
    """
    indexed: dict[int, Any] = {}
    for key, value in read_json_object(path).items():
        if not (key.isascii() and key.isdigit() and len(key) <= _LONGEST_ID):
            raise PicoPoseError(f"key {key[:40]!r} is not an id", where=path, fix="keys must be whole numbers")
        if int(key) in indexed:
            raise PicoPoseError(f"id {int(key)} occurs twice", where=path, fix="keep one of them")
        indexed[int(key)] = value
    return indexed


def _kind(content: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(content), "a number")
