"""Seeded changes of a file's content: of its bytes, of its JSON, of its words, of its HDF5 datasets and tensors."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np

Change = Callable[[Path, Random], str]
"""Changes a file in place and returns what it did."""
VALUES: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, 0, 1e30, 1e308, 2**63, 1e-30, 0.5, 7, "text", "", "7", None, True, [], {}, [[]],
    [1, 2, 3], {"a": 1},
)  # fmt: skip
WORDS = ("nan", "inf", "-inf", "-1", "0", "1e30", "1e308", "9223372036854775808", "text", "", "\0", "é" * 300, "1 2 3")
_LONG = 5000


def change_bytes(path: Path, rng: Random) -> str:
    """Flip bits, cut, double, remove, zero or insert bytes; half of the places are in the first 512 bytes."""
    data = bytearray(path.read_bytes())
    what = rng.choice(("flip", "flip", "flip", "cut", "double", "remove", "zero", "insert", "empty"))
    at = rng.randrange(min(len(data), 512) if rng.random() < 0.5 else len(data)) if data else 0
    length = min(rng.choice((1, 2, 4, 16, 64, 512, 4096)), max(len(data) - at, 1))
    part = bytes(data[at : at + length])
    if what == "flip" and data:
        bit = rng.randrange(8)
        data[at] ^= 1 << bit
        what, length = f"flip bit {bit} of", 1
    elif what == "cut":
        del data[at:]
    elif what == "double":
        data[at:at] = part
    elif what == "remove":
        del data[at : at + length]
    elif what == "zero":
        data[at : at + length] = bytes(len(part))
    elif what == "insert":
        data[at:at] = rng.randbytes(length)
    else:
        data.clear()
    path.unlink()
    path.write_bytes(data)
    return f"{what} byte {at}, length {length}"


def change_file(path: Path, rng: Random) -> str:
    """Remove the file, or put a folder, a link to itself or another kind of file in its place."""
    what = rng.choice(("remove", "folder", "link", "text", "html"))
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to(path.name)
    elif what == "text":
        path.write_text("not what is expected\n" * 5)
    elif what == "html":
        path.write_text("<!DOCTYPE html><html><body>404</body></html>")
    return what


def change_json(path: Path, rng: Random) -> str:
    """Change a value, key or type somewhere in a JSON file."""
    text, what = changed_json(path.read_text(), rng)
    path.unlink()
    path.write_text(text)
    return what


def changed_json(text: str, rng: Random) -> tuple[str, str]:
    """Return a JSON text with one change, and what was changed."""
    content = json.loads(text)
    places: list[tuple[Any, Any]] = []
    _collect(content, places, depth=0)
    holder, key = rng.choice(places)
    old = holder[key]
    what = rng.choice(("value", "value", "value", "text", "remove", "double", "exchange", "rename", "long", "twice"))
    described = f"{what} {key!r}"
    if what == "value":
        holder[key] = rng.choice(VALUES)
        described = f"{key!r} = {holder[key]!r}"
    elif what == "text":
        holder[key] = str(old)
    elif what == "remove":
        del holder[key]
    elif what == "double" and isinstance(holder, list):
        holder.insert(key, old)
    elif what in ("exchange", "double"):
        other_holder, other_key = rng.choice(places)
        holder[key], other_holder[other_key] = other_holder[other_key], holder[key]
        if _is_cyclic(content):
            holder[key] = None
    elif what == "rename" and isinstance(holder, dict):
        holder[rng.choice(("text", "-1", "9" * 30, "", f"{key} "))] = holder.pop(key)
    elif what == "long":
        holder[key] = 987654321
        return json.dumps(content).replace("987654321", "7" * _LONG, 1), described
    elif what == "twice" and isinstance(holder, dict):
        holder["\0"] = 0
        return json.dumps(content).replace('"\\u0000": 0', f"{json.dumps(key)}: 0", 1), described
    return json.dumps(content), described


def _collect(content: Any, places: list[tuple[Any, Any]], depth: int) -> None:
    """Add all places of a content; those in long lists only now and then, so that names are hit often."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in list(items)[: 40 if depth else None]:
        places.append((content, key))
        if isinstance(value, (dict, list)):
            _collect(value, places, depth + 1)


def _is_cyclic(content: Any) -> bool:
    try:
        json.dumps(content)
    except (ValueError, RecursionError):
        return True
    return False


def change_words(path: Path, rng: Random) -> str:
    """Change a word or a line of a text file: PLY, OBJ, MTL or CSV."""
    lines = path.read_bytes().decode("latin-1").split("\n")
    index = rng.randrange(min(len(lines), 20)) if rng.random() < 0.5 else rng.randrange(len(lines))
    what = rng.choice(("word", "word", "word", "remove", "double", "exchange", "long"))
    if what == "remove":
        del lines[index]
    elif what == "double":
        lines.insert(index, lines[index])
    elif what == "exchange":
        other = rng.randrange(len(lines))
        lines[index], lines[other] = lines[other], lines[index]
    else:
        separator = "," if path.suffix == ".csv" and rng.random() < 0.5 else " "
        words = lines[index].split(separator)
        new = "7" * _LONG if what == "long" else rng.choice(WORDS)
        words[rng.randrange(len(words))] = new
        lines[index] = separator.join(words)
        what = f"word {new[:12]!r}"
    path.unlink()
    path.write_bytes("\n".join(lines).encode("latin-1", "replace"))
    return f"{what} in line {index + 1}"


def change_hdf5(path: Path, rng: Random) -> str:
    """Change a number, attribute, dataset or type inside an HDF5 file; the rest stays as it was."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    with h5py.File(path, "r+") as file:
        name = rng.choice([*file, *(f"@{name}" for name in file.attrs)])
        what = rng.choice(("value", "value", "value", "remove", "group", "text", "reshape", "double", "type"))
        if name.startswith("@"):
            value = rng.choice((math.nan, -1, 1e30, "text", np.bytes_("x"), np.zeros(3), 2**40))
            if what == "remove":
                del file.attrs[name[1:]]
                return f"remove {name}"
            file.attrs[name[1:]] = value
            return f"{name} = {value!r}"
        return f"{what} {name}{_change_dataset(file, name, what, rng)}"


def _change_dataset(file: h5py.File, name: str, what: str, rng: Random) -> str:
    array = file[name][()]
    del file[name]
    if what == "value":
        value = rng.choice((math.nan, math.inf, -1, 0, 1e30) if array.dtype.kind == "f" else (0, 1, 2, 255))
        at = tuple(rng.randrange(size) for size in array.shape)
        array[at] = value
        file[name] = array
        return f"{list(at)} = {value}"
    if what == "group":
        file.create_group(name)
    elif what == "text":
        file[name] = "text"
    elif what == "reshape":
        file[name] = array.reshape(-1)
    elif what == "double":
        file[name] = np.concatenate([array, array])
    elif what == "type":
        file[name] = array.astype(np.float16 if array.dtype.kind == "f" else np.int64)
    return ""


def change_safetensors(path: Path, rng: Random) -> str:
    """Change a number of a tensor, or the header, of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + length].decode(), bytearray(data[8 + length :])
    if rng.random() < 0.5:
        values = np.frombuffer(body, "<f4").copy()
        at, value = rng.randrange(len(values)), rng.choice((math.nan, math.inf, -1, 0, 1e30))
        values[at] = value
        what, body = f"value {at} = {value}", bytearray(values.tobytes())
    else:
        header, what = changed_json(header, rng)
    encoded = header.encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + body)
    return what


def change_pickle(path: Path, rng: Random) -> str:
    """Put other content than float tensors into a PyTorch file."""
    import torch

    state = torch.load(path, weights_only=True)
    inner = state.get("state_dict", state)
    name = rng.choice(list(inner))
    what = rng.choice(("meta", "list", "int", "none", "empty", "sparse", "complex", "remove", "number", "nested"))
    inner[name] = _other_content(inner[name], what)
    if what == "remove":
        del inner[name]
    path.unlink()
    torch.save(state, path)
    return f"{what} {name}"


def _other_content(value: Any, what: str) -> Any:
    import torch

    others: dict[str, Any] = {"list": [1, 2], "none": None, "number": 1.5, "nested": {"state_dict": {}}}
    if what in others:
        return others[what]
    if what == "empty":
        return value[:0] if value.ndim else value
    if what == "sparse":
        return value.to_sparse()
    return {"meta": value.to("meta"), "int": value.long(), "complex": value.to(torch.complex64)}.get(what, value)
