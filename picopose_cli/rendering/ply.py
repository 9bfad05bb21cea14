"""PLY files: header, columns of numbers, and triangles, in ASCII or binary of either byte order.

The only reader of PLY: templates, refinement and scores see the same vertices and faces. It keeps all digits of an
ASCII file (other readers round them to float32, which moves vertices by up to 4e-9 m and changes the last digits of
scores) and takes 0.06 s for the 21 meshes of YCB-V's models_eval.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from picopose_cli.base.types import Array

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_BYTE_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}
_FACE_LISTS = ("vertex_indices", "vertex_index")


@dataclass(frozen=True)
class _Property:
    """A column: the `kind` that the header names (such as f4), the stored `number`, and a list's stored `count`."""

    name: str
    kind: str
    number: np.dtype[Any]
    count: np.dtype[Any] | None


@dataclass(frozen=True)
class _Element:
    name: str
    rows: int
    properties: list[_Property]


@dataclass(frozen=True)
class PlyColumn:
    """A column of an element.

    `values` (n,) in the file's order; for a list all items one after the other, with `counts` (rows,) of each row.
    `kind` is the type that the header names, such as f4; the values of an ASCII file are f8.
    """

    values: Array
    kind: str
    counts: NDArray[np.int64] | None = None

    def as_declared(self) -> Array:
        """Return the values rounded to the header's floating-point type, as f8."""
        rounded = self.values.astype(self.kind) if self.kind.startswith("f") else self.values
        return rounded.astype(np.float64)


@dataclass(frozen=True)
class PlyFile:
    """The content of a PLY: its comments, and its columns by element and name."""

    comments: tuple[str, ...]
    elements: dict[str, dict[str, PlyColumn]]

    def vertices(self, *, as_declared: bool = False) -> NDArray[np.float64]:
        """Return the vertices (N,3) in the file's unit and order.

        `as_declared` rounds an ASCII file's numbers to the type that its header names, so that they equal those of a
        binary file. Raises ValueError without x, y or z.
        """
        columns = self.elements.get("vertex", {})
        if not {"x", "y", "z"} <= set(columns) or any(columns[axis].counts is not None for axis in "xyz"):
            raise ValueError("its vertices have no x, y and z")
        read = PlyColumn.as_declared if as_declared else _exact
        return np.stack([read(columns[axis]) for axis in "xyz"], axis=1)

    def triangles(self) -> PlyTriangles:
        """Return the faces, polygons split into triangles.

        Raises ValueError when a face refers to a vertex that does not exist.
        """
        column = _face_list(self.elements.get("face", {}))
        if column is None or column.counts is None:
            return PlyTriangles(np.zeros((0, 3), np.int32), np.zeros(0, np.int64), np.zeros((0, 3), np.int64))
        face, corner = _split_polygons(column.counts)
        index, vertices = column.values[corner], len(self.elements["vertex"]["x"].values)
        wrong = index[~((index >= 0) & (index < vertices) & (index == np.floor(index)))]
        if len(wrong):
            raise ValueError(f"a face refers to vertex {wrong[0]:g} of {vertices}")
        return PlyTriangles(index.astype(np.int32), face, corner)


@dataclass(frozen=True)
class PlyTriangles:
    """Triangles: `faces` (F,3) i32 vertex indices, `face` (F,) the row of the file, `corner` (F,3) indices of items."""

    faces: NDArray[np.int32]
    face: NDArray[np.int64]
    corner: NDArray[np.int64]


def read_ply(path: Path) -> PlyFile:
    """Read a PLY file; raises ValueError when it is damaged, truncated or longer than its header says, or OSError."""
    data = path.read_bytes()
    lines, start = _header_lines(data)
    form, elements = _parse_header(lines)
    body = _numbers(data[start:]).tobytes() if form == "ascii" else data[start:]
    columns, offset = dict[str, dict[str, PlyColumn]](), 0
    for element in elements:
        columns[element.name], offset = _read_element(element, body, offset)
    if offset != len(body):
        raise ValueError("it has more data than its header announces")
    comments = tuple(line.partition(" ")[2].strip() for line in lines if line.startswith("comment "))
    return PlyFile(comments, columns)


def ply_comments(path: Path) -> tuple[str, ...]:
    """Return the comments of a PLY's header without reading its body; none of a file without a header."""
    try:
        lines, _ = _header_lines(path.read_bytes())
    except ValueError:
        return ()
    return tuple(line.partition(" ")[2].strip() for line in lines if line.startswith("comment "))


def _header_lines(data: bytes) -> tuple[list[str], int]:
    """Return the header's lines and where the body starts; lines end in LF, CRLF or CR, as the first one does."""
    magic = data[:5]
    newline = next((end for end in (b"\r\n", b"\n", b"\r") if magic[3:].startswith(end)), None)
    if not magic.startswith(b"ply") or newline is None:
        raise ValueError("it does not begin with the line 'ply'")
    end = data.find(newline + b"end_header")
    stop = data.find(newline, end + 1) if end >= 0 else -1
    if stop < 0 or data[end + len(newline) : stop].strip() != b"end_header":
        raise ValueError("its header has no end")
    lines = [line.decode("utf-8", "replace").strip() for line in data[:end].split(newline)]
    return lines, stop + len(newline)


def _parse_header(lines: list[str]) -> tuple[str, list[_Element]]:
    form, elements = "", list[_Element]()
    for line in lines[1:]:
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1 and words[1] in _BYTE_ORDERS:
            form = words[1]
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 16:
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[:1] == ["property"] and elements and form:
            elements[-1].properties.append(_parse_property(words, form))
        elif words and words[0] not in ("comment", "obj_info"):
            raise ValueError(f"its header has the line {line[:60]!r}")
    names = [(element.name, one.name) for element in elements for one in element.properties]
    if len(set(names)) < len(names) or len({element.name for element in elements}) < len(elements):
        raise ValueError("its header names a column twice")
    return form, elements


def _parse_property(words: list[str], form: str) -> _Property:
    listed = words[1:2] == ["list"]
    kinds = [_TYPES.get(word) for word in words[2:4] if listed] or [_TYPES.get(word) for word in words[1:2]]
    if None in kinds or len(words) != (5 if listed else 3):
        raise ValueError(f"its header has the line {' '.join(words)[:60]!r}")
    stored = [np.dtype("<f8" if form == "ascii" else _BYTE_ORDERS[form] + str(kind)) for kind in kinds]
    return _Property(words[-1], str(kinds[-1]), stored[-1], stored[0] if listed else None)


def _numbers(text: bytes) -> NDArray[np.float64]:
    if not text.strip():
        return np.zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # the reaction of older numpy to text that is not a number
        try:
            return np.fromstring(text, np.float64, sep=" ")
        except (DeprecationWarning, ValueError) as error:
            raise ValueError("its body holds text that is not a number") from error


def _read_element(element: _Element, body: bytes, offset: int) -> tuple[dict[str, PlyColumn], int]:
    """Return the columns of an element whose rows begin at a byte of the body, and the byte after them."""
    if not element.rows or not element.properties:
        empty = np.zeros(0, np.int64)
        return {one.name: PlyColumn(np.zeros(0), one.kind, one.count and empty) for one in element.properties}, offset
    lengths = _first_lengths(element, body, offset)
    row = np.dtype(list(_row_fields(element, lengths)))
    end = offset + row.itemsize * element.rows
    if end <= len(body):
        table = np.frombuffer(body, row, element.rows, offset)
        if all((table[f"count{i}"] == lengths[i]).all() for i, one in enumerate(element.properties) if one.count):
            columns = {}
            for i, one in enumerate(element.properties):
                counts = np.full(element.rows, lengths[i]) if one.count else None
                columns[one.name] = PlyColumn(table[f"values{i}"].reshape(-1), one.kind, counts)
            return columns, end
    return _read_rows(element, body, offset)


def _row_fields(element: _Element, lengths: list[int]) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    for i, (one, length) in enumerate(zip(element.properties, lengths, strict=True)):
        if one.count:
            yield f"count{i}", one.count, ()
        yield f"values{i}", one.number, (length,)


def _first_lengths(element: _Element, body: bytes, offset: int) -> list[int]:
    """Return the length of each list of the first row, and 1 for a number: in most files all rows have the same."""
    lengths = []
    for one in element.properties:
        length, offset = _read_count(element, one, body, offset)
        lengths.append(length)
        offset += length * one.number.itemsize
    return lengths


def _read_count(element: _Element, one: _Property, body: bytes, offset: int) -> tuple[int, int]:
    """Return the number of items of a column in a row, and the byte where they begin."""
    if one.count is None:
        return 1, offset
    if offset + one.count.itemsize > len(body):
        raise _too_short(element)
    length = np.frombuffer(body, one.count, 1, offset)[0]
    if not 0 <= length <= len(body) or length != int(length):
        raise ValueError(f"{one.name} of a {element.name} has {length} items")
    return int(length), offset + one.count.itemsize


def _read_rows(element: _Element, body: bytes, offset: int) -> tuple[dict[str, PlyColumn], int]:
    """Read the rows of an element one by one, because their lists differ in length."""
    counts: list[list[int]] = [[] for _ in element.properties]
    values: list[list[Array]] = [[] for _ in element.properties]
    for _ in range(element.rows):
        for i, one in enumerate(element.properties):
            length, offset = _read_count(element, one, body, offset)
            if offset + length * one.number.itemsize > len(body):
                raise _too_short(element)
            counts[i].append(length)
            values[i].append(np.frombuffer(body, one.number, length, offset))
            offset += length * one.number.itemsize
    columns = {
        one.name: PlyColumn(np.concatenate(values[i]), one.kind, np.array(counts[i]) if one.count else None)
        for i, one in enumerate(element.properties)
    }
    return columns, offset


def _too_short(element: _Element) -> ValueError:
    return ValueError(f"it has fewer {element.name} rows than its header announces")


def _exact(column: PlyColumn) -> Array:
    return column.values.astype(np.float64)


def _face_list(columns: dict[str, PlyColumn]) -> PlyColumn | None:
    """Return the column of vertex indices: the one of a usual name, else the only list."""
    lists = {name: column for name, column in columns.items() if column.counts is not None}
    named = [lists[name] for name in _FACE_LISTS if name in lists]
    return named[0] if named else next(iter(lists.values()), None)


def _split_polygons(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row (F,) and the corners' places (F,3) in the list's items of the triangles of each polygon.

    A polygon of n corners gives n - 2 triangles around its first corner; fewer than three corners give none.
    """
    triangles = np.maximum(counts - 2, 0)
    face = np.repeat(np.arange(len(counts)), triangles)
    first = np.concatenate([[0], np.cumsum(counts)])[face]
    within = np.arange(len(face)) - np.repeat(np.cumsum(triangles) - triangles, triangles)
    return face, np.stack([first, first + within + 1, first + within + 2], axis=1)
