"""The parts of a PLY mesh with their colours: vertex or face colours, or textures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.rendering.mesh_parts import Part
from picopose_cli.rendering.ply import PlyColumn, PlyFile, PlyTriangles, ply_comments, read_ply
from picopose_cli.rendering.textures import find_texture, read_texture, unused_texture_error

_RGB_NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
_UV_NAMES = (("texture_u", "texture_v"), ("u", "v"), ("s", "t"))
_WEDGE_UV, _TEXTURE_NUMBER = "texcoord", "texnumber"


def ply_textures(path: Path) -> list[Path]:
    """Return the textures that the header names, in order; raises PicoPoseError when one is missing."""
    words = (comment.split(maxsplit=1) for comment in ply_comments(path))
    return [find_texture(path, word[1]) for word in words if len(word) == 2 and word[0].lower() == "texturefile"]


def read_ply_parts(path: Path) -> tuple[list[Part], list[str]]:
    """Return the parts of a PLY mesh, in the file's unit, and notes on colours that are not used.

    One part, or one for each texture. Colours are taken from the texture, else from the vertices, else from the faces.
    Raises PicoPoseError when a texture is missing, unreadable or all that the mesh has, without coordinates, and
    ValueError when the file is damaged.
    """
    textures = ply_textures(path)
    ply = read_ply(path)
    # rounded as the header says, so that an ASCII and a binary export of one mesh give the same templates
    vertices, triangles = ply.vertices(as_declared=True), ply.triangles()
    uv = _vertex_uv(ply)
    wedge_uv = None if uv is not None else _wedge_uv(ply, triangles)
    if textures and uv is not None:
        parts = [Part(vertices, triangles.faces, uv=uv)]
    elif textures and wedge_uv is not None:
        parts = [_split(vertices, triangles.faces, uv=wedge_uv.reshape(-1, 2))]
    else:
        part = _untextured(ply, vertices, triangles)
        if textures and part.vertex_rgb is None and len(triangles.faces):
            raise unused_texture_error(path)
        notes = [f"no texture coordinates for the texture {texture.name}" for texture in textures[:1]]
        if not textures and (uv is not None or wedge_uv is not None):
            notes = ["texture coordinates, but no comment TextureFile that names a texture"]
        return [part], notes
    return _assign_textures(parts[0], _texture_numbers(ply, triangles), textures)


def _untextured(ply: PlyFile, vertices: Array, triangles: PlyTriangles) -> Part:
    vertex_rgb, face_rgb = (_colours(ply.elements.get(element, {})) for element in ("vertex", "face"))
    if vertex_rgb is None and face_rgb is not None:
        return _split(vertices, triangles.faces, rgb=np.repeat(face_rgb[triangles.face], 3, axis=0))
    return Part(vertices, triangles.faces, vertex_rgb=vertex_rgb)


def _split(vertices: Array, faces: Array, *, rgb: Array | None = None, uv: Array | None = None) -> Part:
    """Return a part whose faces have vertices of their own, with the colours or coordinates (3F,...) of the corners."""
    own = np.arange(faces.size, dtype=np.int32).reshape(-1, 3)
    return Part(vertices[faces.reshape(-1)], own, vertex_rgb=rgb, uv=uv)


def _assign_textures(part: Part, numbers: Array | None, textures: Sequence[Path]) -> tuple[list[Part], list[str]]:
    """Return a part for each texture that a face uses, by the number of each face (F,), None for the first texture."""
    if numbers is None or len(textures) == 1:
        notes = [f"several textures, but no texnumber of the faces: {textures[0].name} is used"]
        part = Part(part.vertices, part.faces, uv=part.uv, texture_rgb=read_texture(textures[0]))
        return [part], notes if len(textures) > 1 else []
    known = (numbers >= 0) & (numbers < len(textures))
    parts = []
    for number in np.unique(np.where(known, numbers, -1)).astype(int).tolist():
        used, faces = np.unique(part.faces[np.where(known, numbers, -1) == number], return_inverse=True)
        assert part.uv is not None
        own = {"uv": part.uv[used], "texture_rgb": read_texture(textures[number])} if number >= 0 else {}
        parts.append(Part(part.vertices[used], faces.reshape(-1, 3).astype(np.int32), **own))
    return parts, [] if known.all() else ["faces with a texnumber of no texture are grey"]


def _texture_numbers(ply: PlyFile, triangles: PlyTriangles) -> Array | None:
    column = ply.elements.get("face", {}).get(_TEXTURE_NUMBER)
    return None if column is None or column.counts is not None else column.values[triangles.face]


def _vertex_uv(ply: PlyFile) -> Array | None:
    columns = ply.elements["vertex"]
    names = next((pair for pair in _UV_NAMES if _has_numbers(columns, pair)), None)
    return None if names is None else np.stack([columns[name].values for name in names], axis=1).astype(np.float32)


def _wedge_uv(ply: PlyFile, triangles: PlyTriangles) -> Array | None:
    """Return the texture coordinates (F,3,2) of the faces' corners, None where the file has none."""
    columns = ply.elements.get("face", {})
    uv, index = columns.get(_WEDGE_UV), next((columns[name] for name in _index_names(columns)), None)
    if uv is None or uv.counts is None or index is None or index.counts is None:
        return None
    if not np.array_equal(uv.counts, 2 * index.counts):
        raise ValueError("its faces have another number of texture coordinates than of corners")
    return uv.values.astype(np.float32).reshape(-1, 2)[triangles.corner]


def _index_names(columns: Mapping[str, PlyColumn]) -> list[str]:
    return [name for name in ("vertex_indices", "vertex_index") if name in columns]


def _colours(columns: Mapping[str, PlyColumn]) -> Array | None:
    """Return the colours (n,3) u8 of an element's rows, None where it has none."""
    names = next((triple for triple in _RGB_NAMES if _has_numbers(columns, triple)), None)
    if names is None:
        return None
    kinds = {columns[name].kind for name in names}
    values = np.stack([columns[name].values for name in names], axis=1).astype(np.float64)
    return colours_8_bits(values, is_real=any(kind.startswith("f") for kind in kinds))


def colours_8_bits(values: Array, *, is_real: bool) -> Array:
    """Return colours (n,3) u8 of numbers in [0, 255], real numbers in [0, 1], or integers of 16 bits.

    Raises ValueError for NaN.
    """
    if not np.isfinite(values).all():
        raise ValueError("a colour is NaN or infinite")
    largest = values.max(initial=0)
    scale = 255.0 if is_real and largest <= 1 else 1 / 257.0 if not is_real and largest > 255 else 1.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def _has_numbers(columns: Mapping[str, PlyColumn], names: Sequence[str]) -> bool:
    return all(name in columns and columns[name].counts is None for name in names)
