"""Material libraries (MTL) of OBJ meshes: the diffuse colour and texture of each material."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

_MAP_ARGUMENTS = {
    "-blendu": 1, "-blendv": 1, "-cc": 1, "-clamp": 1, "-texres": 1, "-boost": 1, "-bm": 1, "-imfchan": 1, "-type": 1,
    "-mm": 2, "-o": 3, "-s": 3, "-t": 3,
}  # fmt: skip
"""Options of map_Kd and the number of their arguments; -o, -s and -t may have fewer."""
_VECTORS = ("-o", "-s", "-t")


@dataclass(frozen=True)
class Material:
    """A material of a `library`: its diffuse colour `rgb` in [0, 1], its texture by name, uv scale and offset."""

    library: Path
    rgb: tuple[float, ...] | None = None
    texture: str | None = None
    uv_scale: tuple[float, float] = (1.0, 1.0)
    uv_offset: tuple[float, float] = (0.0, 0.0)


def read_materials(path: Path) -> dict[str, Material]:
    """Return the materials of a library by name."""
    materials, name = dict[str, Material](), None
    for keyword, value in statements(path.read_bytes()):
        if keyword == "newmtl":
            name = value
            materials.setdefault(name, Material(path))
        elif name is not None and keyword == "kd":
            rgb = _numbers(value.split(), 3)
            materials[name] = replace(materials[name], rgb=tuple(rgb) if len(rgb) == 3 else None)
        elif name is not None and keyword == "map_kd":
            materials[name] = _with_texture(materials[name], value)
    return materials


def statements(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the statements of an OBJ or MTL file as keyword, in lower case, and value; comments are left out.

    A byte order mark, Windows line ends and lines that a backslash continues are understood.
    """
    text = data.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\\\n", " ")
    for line in text.splitlines():
        words = line.split(maxsplit=1)
        if words and not words[0].startswith("#"):
            yield words[0].lower(), words[1].strip() if len(words) == 2 else ""


def _with_texture(material: Material, value: str) -> Material:
    """Return a material with the texture of a map_Kd statement: options, then a name that may hold blanks."""
    vectors = {"-s": [1.0, 1.0], "-o": [0.0, 0.0]}
    while value.startswith("-") and value.split()[0].lower() in _MAP_ARGUMENTS:
        option, _, value = value.partition(" ")
        option, value = option.lower(), value.strip()
        for position in range(_MAP_ARGUMENTS[option]):
            word, _, rest = value.partition(" ")
            number = _numbers([word], 1)
            if not rest or (option in _VECTORS and not number):
                break
            if option in vectors and position < 2:
                vectors[option][position] = number[0]
            value = rest.strip()
    scale, offset = vectors["-s"], vectors["-o"]
    return replace(material, texture=value or None, uv_scale=(scale[0], scale[1]), uv_offset=(offset[0], offset[1]))


def _numbers(words: list[str], count: int) -> list[float]:
    """Return the leading finite numbers among the first `count` words."""
    numbers = []
    for word in words[:count]:
        try:
            numbers.append(float(word))
        except ValueError:
            break
    return [number for number in numbers if np.isfinite(number)]
