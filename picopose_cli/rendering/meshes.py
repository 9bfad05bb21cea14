"""Read BOP meshes: PLY with vertex colours or a texture, OBJ with its material, GLB; millimetres become metres."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import MESH_SUFFIXES
from picopose_cli.base.types import METRES_PER_UNIT, Mesh
from picopose_cli.rendering.mesh_parts import Part, join_parts

SMALLEST_MM, LARGEST_MM = 5.0, 5000.0
"""Diameters outside this range mean that the file is in another unit."""

_TRIMESH_GREY = (102, 102, 102)
"""Colour that trimesh gives a mesh whose file has none."""
_PLY_HEADER_WORDS = ("ply", "format", "comment", "obj_info", "element", "property")


def read_mesh(path: Path, unit: str = "mm") -> Mesh:
    """Read a mesh file and return it in metres, in the file's own object frame, vertices in the file's order or split.

    A vertex with several texture coordinates or a face with its own colour is split; no vertex is merged or moved.
    Colours are those of the file; a mesh without any has none.

    Raises PicoPoseError when the file is missing, truncated, not a mesh, without faces, holds NaN or faces with an
    invalid vertex index, lacks its texture, or has a size that is implausible in `unit`.
    """
    if not path.is_file():
        raise PicoPoseError("the mesh is missing", where=path, fix="check the models folder")
    textures = texture_paths(path)
    for texture in textures:
        _check_decodes(texture)
    # A GLB contains its images; in other formats an image without a file is trimesh's dummy.
    parts = _load_parts(path, with_images=bool(textures) or path.suffix.lower() == ".glb")
    if textures and not any(part.texture_rgb is not None for part in parts):
        raise PicoPoseError(
            "none of its faces uses the texture that the mesh names",
            where=path,
            fix="export texture coordinates as well",
        )
    mesh = join_parts(parts, path)
    _check_numbers(mesh, path)
    metres = METRES_PER_UNIT[unit]
    mesh = Mesh(mesh.vertices_m * metres, mesh.faces, mesh.vertex_rgb, mesh.uv, mesh.texture_rgb)
    _check_size(mesh, unit, path)
    return mesh


def mesh_diameter_m(mesh: Mesh) -> float:
    """Return the diagonal in metres of the axis-aligned box around the vertices that faces use."""
    low, high = mesh_bounds_m(mesh)
    return float(np.linalg.norm(high - low))


def mesh_bounds_m(mesh: Mesh) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and highest corner (3,) in metres of the vertices that faces use, object frame."""
    used = np.zeros(len(mesh.vertices_m), bool)
    used[mesh.faces] = True
    vertices = mesh.vertices_m if used.all() else mesh.vertices_m[used]
    return vertices.min(axis=0), vertices.max(axis=0)


def mesh_sha256(path: Path) -> str:
    """Return the SHA-256 of the mesh file and the material and texture files that it names.

    Raises PicoPoseError when one of them cannot be read.
    """
    digest = hashlib.sha256()
    for file in (path, *_material_paths(path), *texture_paths(path)):
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=file) from error
    return digest.hexdigest()


def texture_paths(path: Path) -> list[Path]:
    """Return the texture files that a mesh names, each of which exists.

    trimesh silently replaces a texture that it cannot find by a small dummy.
    Raises PicoPoseError when one is missing.
    """
    textures = {
        ".ply": lambda: [path.parent / name for name in _ply_texture_names(path)],
        ".obj": lambda: [texture for material in _material_paths(path) for texture in _mtl_textures(material)],
    }.get(path.suffix.lower(), list)()
    for texture in textures:
        if not texture.is_file():
            raise PicoPoseError(
                f"the texture {texture.name!r} is missing",
                where=path,
                fix="put it beside the mesh, as the file names it",
            )
    return textures


def _check_decodes(texture: Path) -> None:
    try:
        with Image.open(texture) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow: broken or no image
        raise PicoPoseError(f"the texture cannot be read ({error})", where=texture, fix="export it again") from error


def _ply_texture_names(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for line in iter(stream.readline, b""):
            words = line.decode("utf-8", "replace").strip().split(maxsplit=2)
            if words[:1] == ["comment"] and len(words) == 3 and words[1].lower() == "texturefile":
                yield words[2]
            if words[:1] == ["end_header"] or (words and words[0] not in _PLY_HEADER_WORDS):
                return


def _material_paths(path: Path) -> list[Path]:
    """Return the existing material libraries that an OBJ names (without one, the mesh is grey)."""
    if path.suffix.lower() != ".obj":
        return []
    names = _statements(path, "mtllib")
    return [path.parent / name for name in dict.fromkeys(names) if (path.parent / name).is_file()]


def _mtl_textures(material: Path) -> list[Path]:
    # Options such as "-s 1 1 1" may precede the name.
    names = [value if not value.startswith("-") else value.split()[-1] for value in _statements(material, "map_Kd")]
    return [material.parent / name.replace("\\", "/") for name in dict.fromkeys(names)]


def _statements(path: Path, keyword: str) -> list[str]:
    with path.open("r", encoding="utf-8", errors="replace") as stream:
        lines = (line.split(maxsplit=1) for line in stream)
        return [words[1].strip() for words in lines if len(words) == 2 and words[0] == keyword]


def _load_parts(path: Path, *, with_images: bool) -> list[Part]:
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise PicoPoseError(f"{path.suffix!r} is not a mesh format", where=path, fix=f"use {', '.join(MESH_SUFFIXES)}")
    import trimesh  # takes half a second, so only when a mesh is read

    level = trimesh.util.log.level
    trimesh.util.log.setLevel(logging.CRITICAL)  # what it only warns about is checked and raised here
    try:
        # process=True would merge vertices, which breaks texture seams and the order of vertices.
        scene = trimesh.load_scene(
            io.BytesIO(path.read_bytes()),
            file_type=path.suffix.lower()[1:],
            resolver=trimesh.resolvers.FilePathResolver(str(path)),
            process=False,
        )
        _check_complete(scene)
        geometries = [geometry for geometry in scene.dump() if isinstance(geometry, trimesh.Trimesh)]
        parts = [_make_part(geometry, with_images) for geometry in geometries if len(geometry.faces)]
    except Exception as error:  # a parser may raise anything on a damaged file
        reason = str(error) or type(error).__name__
        raise PicoPoseError(f"not a readable mesh ({reason})", where=path, fix="export it again") from error
    finally:
        trimesh.util.log.setLevel(level)
    if not parts:
        raise PicoPoseError("the mesh has no faces", where=path, fix="export it with triangles")
    return parts


def _check_complete(scene: Any) -> None:
    """Raise ValueError when a PLY has fewer rows than its header announces: trimesh accepts a truncated ASCII file."""
    for geometry in scene.geometry.values():
        for name, element in geometry.metadata.get("_ply_raw", {}).items():
            data = element.get("data")
            columns = list(data.values()) if isinstance(data, dict) else [data]
            if element["length"] and any(column is None or len(column) != element["length"] for column in columns):
                raise ValueError(f"fewer {name} rows than its header announces")


def _make_part(geometry: Any, with_images: bool) -> Part:
    vertices, faces = np.asarray(geometry.vertices, np.float64), np.asarray(geometry.faces)
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"a face refers to vertex {faces.max()} of {len(vertices)}")
    faces = faces.astype(np.int32)
    visual = geometry.visual
    if visual.kind == "texture":
        return _make_textured_part(vertices, faces, visual, with_images)
    if visual.kind == "vertex":
        return Part(vertices, faces, vertex_rgb=np.asarray(visual.vertex_colors)[:, :3].astype(np.uint8))
    if visual.kind == "face":
        corner_rgb = np.repeat(np.asarray(visual.face_colors)[:, :3].astype(np.uint8), 3, axis=0)
        split = np.arange(3 * len(faces), dtype=np.int32).reshape(-1, 3)
        return Part(vertices[faces.reshape(-1)], split, vertex_rgb=corner_rgb)
    return Part(vertices, faces)


def _make_textured_part(vertices: NDArray[Any], faces: NDArray[Any], visual: Any, with_images: bool) -> Part:
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    if with_images and image is not None and visual.uv is not None:
        if not np.isfinite(visual.uv).all():
            raise ValueError("its texture coordinates hold NaN or infinity")
        return Part(vertices, faces, uv=np.asarray(visual.uv, np.float32), texture_rgb=_image_rgb(image, material))
    rgb = tuple(int(value) for value in material.main_color[:3])
    if image is not None or rgb == _TRIMESH_GREY:
        return Part(vertices, faces)
    return Part(vertices, faces, vertex_rgb=np.tile(np.array(rgb, np.uint8), (len(vertices), 1)))


def _image_rgb(image: Image.Image, material: Any) -> NDArray[np.uint8]:
    """Return the texture (h,w,3), times a GLB's base colour factor; an OBJ's Kd is ignored, as exporters disagree."""
    rgb = np.asarray(image.convert("RGB"))
    factor = getattr(material, "baseColorFactor", None)
    if factor is None:
        return rgb
    return np.rint(rgb * (np.asarray(factor)[:3] / 255.0)).astype(np.uint8)


def _check_numbers(mesh: Mesh, path: Path) -> None:
    if not np.isfinite(mesh.vertices_m).all():
        raise PicoPoseError("a vertex is NaN or infinite", where=path, fix="export the mesh again")


def _check_size(mesh: Mesh, unit: str, path: Path) -> None:
    diameter_mm = mesh_diameter_m(mesh) * 1000
    if not SMALLEST_MM <= diameter_mm <= LARGEST_MM:
        raise PicoPoseError(
            f"its diameter in {unit} is {diameter_mm:.4g} mm, not {SMALLEST_MM:g} to {LARGEST_MM:g} mm",
            where=path,
            fix="pass the file's own unit as --mesh-unit",
        )
