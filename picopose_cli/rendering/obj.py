"""OBJ meshes: vertices with or without colours, texture coordinates, faces and their materials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from picopose_cli.base.texts import shorten
from picopose_cli.base.types import Array
from picopose_cli.rendering.materials import Material, read_materials, statements
from picopose_cli.rendering.mesh_parts import Part
from picopose_cli.rendering.ply_mesh import colours_8_bits
from picopose_cli.rendering.textures import find_named_file, find_texture, read_texture, unused_texture_error

_NO_MATERIAL = ""


@dataclass
class _ObjContent:
    """The statements of a file: rows of numbers, and for each triangle its corners and the name of its material."""

    vertices: list[list[float]] = field(default_factory=list)
    uv: list[list[float]] = field(default_factory=list)
    corners: list[tuple[int, int]] = field(default_factory=list)
    """Vertex and texture coordinate (-1: none) of the corners of each triangle, one after the other."""
    materials: list[str] = field(default_factory=list)
    libraries: list[str] = field(default_factory=list)


def read_obj_vertices(path: Path) -> tuple[Array, Array]:
    """Return vertices (N,3) in the file's unit and order, and faces (F,3); raises ValueError for a damaged file."""
    content = _parse(path)
    faces = np.array(content.corners, np.int64).reshape(-1, 3, 2)[..., 0]
    return _xyz(content), faces.astype(np.int32)


def material_paths(path: Path) -> list[Path]:
    """Return the existing material libraries that an OBJ names, in order (without one, the mesh is grey)."""
    names = [value for keyword, value in statements(path.read_bytes()) if keyword == "mtllib"]
    return list(dict.fromkeys(found for name in names for _, found in _libraries(path, name) if found is not None))


def obj_textures(path: Path) -> list[Path]:
    """Return the textures that the materials of an OBJ name; raises PicoPoseError when one is missing."""
    found = []
    for library in material_paths(path):
        names = [material.texture for material in read_materials(library).values() if material.texture]
        found += [find_texture(library, name) for name in dict.fromkeys(names)]
    return found


def read_obj_parts(path: Path) -> tuple[list[Part], list[str]]:
    """Return a part for each material of an OBJ mesh, in the file's unit, and notes on colours that are not used.

    Colours are taken from the material's texture, else from the vertices, else from the material's diffuse colour; the
    diffuse colour does not darken a texture, as exporters disagree. Raises PicoPoseError when a texture is missing,
    unreadable or all that the mesh has, without coordinates, and ValueError when the file is damaged.
    """
    content = _parse(path)
    materials, notes = _read_libraries(path, content)
    names, index = np.unique(content.materials, return_inverse=True)
    corners = np.array(content.corners, np.int64).reshape(-1, 3, 2)
    parts, without_uv = [], False
    for i, name in enumerate(names.tolist()):
        material, chosen = materials.get(name), corners[index == i]
        if name != _NO_MATERIAL and material is None:
            notes.append(f"the material {shorten(name)!r} is in no material library")
        if material is not None and material.texture and (chosen[..., 1] >= 0).all():
            parts.append(_textured_part(content, chosen, material))
            continue
        if material is not None and material.texture:
            notes.append(f"no texture coordinates for the texture {shorten(material.texture)}")
            without_uv = True
        parts.append(_coloured_part(content, chosen[..., 0], material, keeps_order=len(names) == 1))
    if without_uv and _vertex_rgb(content) is None and all(part.texture_rgb is None for part in parts):
        raise unused_texture_error(path)
    return parts, notes


def _textured_part(content: _ObjContent, corners: Array, material: Material) -> Part:
    """Return the part of corners (F,3,2), whose vertices are the distinct pairs of vertex and texture coordinate."""
    pairs, index = np.unique(corners.reshape(-1, 2), axis=0, return_inverse=True)
    uv = np.array(content.uv)[pairs[:, 1]] * material.uv_scale + material.uv_offset
    texture_rgb = read_texture(find_texture(material.library, material.texture or ""))
    faces = index.reshape(-1, 3).astype(np.int32)
    return Part(_xyz(content)[pairs[:, 0]], faces, uv=uv.astype(np.float32), texture_rgb=texture_rgb)


def _coloured_part(content: _ObjContent, faces: Array, material: Material | None, *, keeps_order: bool) -> Part:
    """Return the part of faces (F,3); of the only part all vertices are kept, in the file's order."""
    used, own = np.unique(faces, return_inverse=True)
    if keeps_order:
        used, own = np.arange(len(content.vertices)), faces
    rgb = _vertex_rgb(content)
    if rgb is not None:
        rgb = rgb[used]
    elif material is not None and material.rgb is not None:
        rgb = np.tile(colours_8_bits(np.array([material.rgb]), is_real=True), (len(used), 1))
    return Part(_xyz(content)[used], own.reshape(-1, 3).astype(np.int32), vertex_rgb=rgb)


def _read_libraries(path: Path, content: _ObjContent) -> tuple[dict[str, Material], list[str]]:
    """Return the materials by name, of several with one name the first, and notes on missing libraries."""
    materials, notes = dict[str, Material](), []
    for name, library in dict(found for value in content.libraries for found in _libraries(path, value)).items():
        if library is None:
            notes.append(f"the material library {shorten(name)!r} is missing")
        else:
            materials = read_materials(library) | materials
    return materials, notes


def _libraries(path: Path, value: str) -> Iterator[tuple[str, Path | None]]:
    """Yield name and file (None: missing) of the libraries of a mtllib statement: one name with blanks, or several."""
    whole = find_named_file(path.parent, value)
    if whole is not None:
        yield value, whole
    else:
        yield from ((name, find_named_file(path.parent, name)) for name in value.split())


def _parse(path: Path) -> _ObjContent:
    content, material = _ObjContent(), _NO_MATERIAL
    for keyword, value in statements(path.read_bytes()):
        if keyword == "v":
            content.vertices.append([float(word) for word in value.split()])
        elif keyword == "vt":
            content.uv.append([*map(float, value.split()[:2]), 0.0][:2])
        elif keyword == "f":
            polygon = [_corner(word, content) for word in value.split()]
            for second, third in pairwise(polygon[1:]):
                content.corners += (polygon[0], second, third)
                content.materials.append(material)
        elif keyword == "usemtl":
            material = value
        elif keyword == "mtllib":
            content.libraries.append(value)
    if any(len(vertex) < 3 for vertex in content.vertices):
        raise ValueError("a vertex has fewer than three coordinates")
    _check_corners(content)
    return content


def _corner(word: str, content: _ObjContent) -> tuple[int, int]:
    """Return the indices from 0 of a corner's vertex and texture coordinate (-1: none); negative ones count back."""
    vertex, _, rest = word.partition("/")
    uv = rest.partition("/")[0]
    return _index(vertex, len(content.vertices)), _index(uv, len(content.uv)) if uv else -1


def _index(text: str, count: int) -> int:
    number = int(text)
    index = number - 1 if number > 0 else count + number
    if number == 0 or index < 0:
        raise ValueError(f"a face refers to element {number} of {count}")
    return index


def _check_corners(content: _ObjContent) -> None:
    corners = np.array(content.corners, np.int64).reshape(-1, 2)
    for name, index, count in (
        ("vertex", corners[:, 0], len(content.vertices)),
        ("texture coordinate", corners[:, 1], len(content.uv)),
    ):
        if index.max(initial=-1) >= count:
            raise ValueError(f"a face refers to {name} {index.max() + 1} of {count}")


def _xyz(content: _ObjContent) -> Array:
    return np.array([vertex[:3] for vertex in content.vertices], np.float64).reshape(-1, 3)


def _vertex_rgb(content: _ObjContent) -> Array | None:
    """Return the colours (N,3) u8 of the vertices (x y z r g b, or x y z w r g b), None where not all have one."""
    if not content.vertices or min(map(len, content.vertices)) < 6:
        return None
    return colours_8_bits(np.array([vertex[-3:] for vertex in content.vertices]), is_real=True)
