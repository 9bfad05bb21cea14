"""Join the parts of a mesh file into one mesh: one vertex list, and one texture or one set of vertex colours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array, Mesh

GREY_RGB = (128, 128, 128)
"""Colour of a part without colour when another part of the same mesh has one."""

_PLAIN_TEXTURE_PX = 4


@dataclass(frozen=True)
class Part:
    """A part of a mesh file: `vertices` (N,3) in the file's unit, `faces` (F,3) i32, colours as in `Mesh`."""

    vertices: Array
    faces: Array
    vertex_rgb: Array | None = None
    uv: Array | None = None
    texture_rgb: Array | None = None


def join_parts(parts: list[Part], path: Path) -> Mesh:
    """Return one mesh, still in the file's unit, of all parts of the file `path` (named in errors).

    Textures are stacked into one. Raises PicoPoseError when textured parts repeat their texture or are mixed with parts
    of varying vertex colours: one texture cannot represent that.
    """
    first_index = np.cumsum([0, *(len(part.vertices) for part in parts)])
    vertices = np.concatenate([part.vertices for part in parts])
    faces = np.concatenate([part.faces + start for part, start in zip(parts, first_index, strict=False)])
    if len(parts) == 1:
        return Mesh(vertices, faces.astype(np.int32), parts[0].vertex_rgb, parts[0].uv, parts[0].texture_rgb)
    if any(part.texture_rgb is not None for part in parts):
        uv, texture_rgb = _stack_textures([_as_textured(part, path) for part in parts])
        return Mesh(vertices, faces.astype(np.int32), uv=uv, texture_rgb=texture_rgb)
    if any(part.vertex_rgb is not None for part in parts):
        return Mesh(vertices, faces.astype(np.int32), np.concatenate([_part_rgb(part) for part in parts]))
    return Mesh(vertices, faces.astype(np.int32))


def _part_rgb(part: Part) -> Array:
    if part.vertex_rgb is not None:
        return part.vertex_rgb
    return np.tile(np.array(GREY_RGB, np.uint8), (len(part.vertices), 1))


def _as_textured(part: Part, path: Path) -> Part:
    """Return the part with a texture of its own; a part of one colour gets a small plain one."""
    if part.uv is None:
        rgb = _part_rgb(part)
        if (rgb != rgb[0]).any():
            raise PicoPoseError(
                "textured and vertex-coloured parts are mixed", where=path, fix="bake the colours into one texture"
            )
        plain = np.tile(rgb[0], (_PLAIN_TEXTURE_PX, _PLAIN_TEXTURE_PX, 1))
        return Part(part.vertices, part.faces, uv=np.full((len(rgb), 2), 0.5, np.float32), texture_rgb=plain)
    if part.uv.min() < -1e-3 or part.uv.max() > 1 + 1e-3:
        raise PicoPoseError(
            "a mesh of several textures repeats one of them", where=path, fix="bake the colours into one texture"
        )
    return part


def _stack_textures(parts: list[Part]) -> tuple[Array, Array]:
    """Return uv (N,2) f32 and one texture (h,w,3) u8: the parts' textures one above the other, the last at v = 0."""
    textures = [part.texture_rgb for part in parts if part.texture_rgb is not None]
    width = max(texture.shape[1] for texture in textures)
    rows = [cv2.resize(t, (width, t.shape[0]), interpolation=cv2.INTER_LINEAR) for t in textures]
    height = sum(len(row) for row in rows)
    top, uvs = height, []
    for part, row in zip(parts, rows, strict=True):
        top -= len(row)
        assert part.uv is not None
        uvs.append(np.stack([part.uv[:, 0], (top + part.uv[:, 1] * len(row)) / height], axis=-1))
    return np.concatenate(uvs).astype(np.float32), np.concatenate(rows)
