"""The parts of a GLB mesh, read with trimesh."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from picopose_cli.base.types import Array
from picopose_cli.rendering.mesh_parts import Part
from picopose_cli.rendering.textures import image_rgb

_TRIMESH_GREY = (102, 102, 102)
"""Colour that trimesh gives a mesh whose file has none."""


def read_glb_parts(path: Path) -> tuple[list[Part], list[str]]:
    """Return the parts of a GLB mesh, in the file's unit, and no notes; raises ValueError when the file is damaged."""
    import trimesh  # takes half a second, so only when such a mesh is read

    level = trimesh.util.log.level
    trimesh.util.log.setLevel(logging.CRITICAL)  # what it only warns about is checked and raised here
    try:
        # process=True would merge vertices, which breaks texture seams and the order of vertices.
        scene = trimesh.load_scene(io.BytesIO(path.read_bytes()), file_type="glb", process=False)
        geometries = [geometry for geometry in scene.dump() if isinstance(geometry, trimesh.Trimesh)]
        return [_make_part(geometry) for geometry in geometries if len(geometry.faces)], []
    except Exception as error:  # a parser may raise anything on a damaged file
        raise ValueError(str(error) or type(error).__name__) from error
    finally:
        trimesh.util.log.setLevel(level)


def _make_part(geometry: Any) -> Part:
    vertices, faces = np.asarray(geometry.vertices, np.float64), np.asarray(geometry.faces)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"a face refers to vertex {faces.max()} of {len(vertices)}")
    faces = faces.astype(np.int32)
    visual = geometry.visual
    if visual.kind == "texture":
        return _make_textured_part(vertices, faces, visual)
    if visual.kind == "vertex":
        return Part(vertices, faces, vertex_rgb=np.asarray(visual.vertex_colors)[:, :3].astype(np.uint8))
    return Part(vertices, faces)


def _make_textured_part(vertices: Array, faces: Array, visual: Any) -> Part:
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if image is not None and visual.uv is not None:
        return Part(vertices, faces, uv=np.asarray(visual.uv, np.float32), texture_rgb=_base_colour(image, material))
    rgb = tuple(int(value) for value in material.main_color[:3])
    if image is not None or rgb == _TRIMESH_GREY:
        return Part(vertices, faces)
    return Part(vertices, faces, vertex_rgb=np.tile(np.array(rgb, np.uint8), (len(vertices), 1)))


def _base_colour(image: Image.Image, material: Any) -> Array:
    """Return the texture (h,w,3) u8 times the base colour factor."""
    rgb = image_rgb(image)
    factor = getattr(material, "baseColorFactor", None)
    if factor is None:
        return rgb
    return np.rint(rgb * (np.asarray(factor)[:3] / 255.0)).astype(np.uint8)
