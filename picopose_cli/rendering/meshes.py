"""Read BOP meshes: PLY with vertex colours or a texture, OBJ with its material, GLB; millimetres become metres."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import MESH_SUFFIXES
from picopose_cli.base.texts import shorten
from picopose_cli.base.types import METRES_PER_UNIT, Array, Mesh
from picopose_cli.rendering.glb import read_glb_parts
from picopose_cli.rendering.mesh_parts import join_parts
from picopose_cli.rendering.mesh_size import DIAMETER_RATIOS, check_size, largest_distance_m
from picopose_cli.rendering.obj import material_paths, obj_textures, read_obj_parts, read_obj_vertices
from picopose_cli.rendering.ply import read_ply
from picopose_cli.rendering.ply_mesh import ply_textures, read_ply_parts
from picopose_cli.rendering.textures import is_file, is_folder

_DAMAGED = (ValueError, IndexError, OverflowError, MemoryError)
"""What the readers raise for a damaged file."""


def read_mesh(path: Path, unit: str = "mm") -> Mesh:
    """Read a mesh file and return it in metres, in the file's own object frame, vertices in the file's order or split.

    A vertex with several texture coordinates or a face with its own colour is split, one that no face uses is left out;
    no vertex is merged or moved.
    Colours are those of the file; a mesh without any has none. What is not used is in its `notes`.

    Raises PicoPoseError when the file is missing, truncated, not a mesh, without faces, holds NaN or faces with an
    invalid vertex index, lacks its texture, or has a size that is implausible in `unit`.
    """
    suffix = _check_file(path)
    try:
        parts, notes = {".ply": read_ply_parts, ".obj": read_obj_parts, ".glb": read_glb_parts}[suffix](path)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    parts = [part for part in parts if len(part.faces)]
    if not parts:
        raise _no_faces(path)
    mesh = _without_unused_vertices(join_parts(parts, path))
    if mesh.uv is not None and not np.isfinite(mesh.uv).all():
        raise _unreadable(path, ValueError("its texture coordinates hold NaN or infinity"))
    vertices_m = _in_metres(mesh.vertices_m, unit, path)
    has_colour = mesh.vertex_rgb is not None or mesh.texture_rgb is not None
    notes = notes if has_colour else [*notes, "it has no colours and is rendered grey"]
    mesh = replace(mesh, vertices_m=vertices_m, notes=tuple(notes))
    check_size(mesh, unit, path)
    return mesh


def read_shape(path: Path, unit: str = "mm") -> Mesh:
    """Read vertices and triangles of a mesh file in metres, without colours: what scores are computed with.

    Vertices are in the file's order, none is split, and an ASCII file's numbers keep all digits. Textures may be
    missing. Raises PicoPoseError as `read_mesh`.
    """
    suffix = _check_file(path)
    if suffix == ".glb":
        mesh = read_mesh(path, unit)
        return Mesh(mesh.vertices_m, mesh.faces)
    try:
        vertices, faces = _read_ply_shape(path) if suffix == ".ply" else read_obj_vertices(path)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if not len(faces):
        raise _no_faces(path)
    mesh = Mesh(_in_metres(vertices, unit, path), faces)
    check_size(mesh, unit, path)
    return mesh


def unit_in_file(path: Path, unit: str, diameter_m: float) -> str:
    """Return the unit of a mesh whose diameter is known: `unit`, except metres for a GLB that fits in those alone.

    BOP's unit is the millimetre, glTF's the metre: GLB files of HOT3D have either. A file that cannot be read, or fits
    in neither, is reported when it is used.
    """
    if path.suffix.lower() != ".glb" or unit != "mm":
        return unit
    for candidate in ("mm", "m"):
        try:
            ratio = diameter_m / largest_distance_m(read_shape(path, candidate))
        except PicoPoseError:
            continue
        if DIAMETER_RATIOS[0] <= ratio <= DIAMETER_RATIOS[1]:
            return candidate
    return unit


def mesh_files(path: Path) -> list[Path]:
    """Return a mesh file with the files of its materials and textures; raises PicoPoseError when one is missing."""
    _check_file(path)
    materials = material_paths(path) if path.suffix.lower() == ".obj" else []
    return [path, *materials, *texture_paths(path)]


def mesh_sha256(path: Path) -> str:
    """Return the SHA-256 of the mesh file and the material and texture files that it names.

    Raises PicoPoseError when one of them cannot be read.
    """
    digest = hashlib.sha256()
    for file in mesh_files(path):
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=file) from error
    return digest.hexdigest()


def texture_paths(path: Path) -> list[Path]:
    """Return the texture files that a mesh names, each of which exists; raises PicoPoseError when one is missing."""
    suffix = _check_file(path)
    return ply_textures(path) if suffix == ".ply" else obj_textures(path) if suffix == ".obj" else []


def _read_ply_shape(path: Path) -> tuple[Array, Array]:
    ply = read_ply(path)
    return ply.vertices(), ply.triangles().faces


def _check_file(path: Path) -> str:
    """Return a mesh file's suffix; raises PicoPoseError when it cannot be opened or is of another format."""
    if not is_file(path):
        what = "is a folder, not a mesh" if is_folder(path) else "the mesh is missing"
        raise PicoPoseError(what, where=path, fix="check the models folder")
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise PicoPoseError(f"{suffix!r} is not a mesh format", where=path, fix=f"use {', '.join(MESH_SUFFIXES)}")
    try:
        with path.open("rb"):
            return suffix
    except OSError as error:
        raise PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix="check the file") from error


def _without_unused_vertices(mesh: Mesh) -> Mesh:
    """Return a mesh without the vertices that no face uses, the others in their order."""
    used = np.zeros(len(mesh.vertices_m), bool)
    used[mesh.faces] = True
    if used.all():
        return mesh
    number = np.cumsum(used, dtype=np.int32) - 1
    return replace(
        mesh,
        vertices_m=mesh.vertices_m[used],
        faces=number[mesh.faces],
        vertex_rgb=None if mesh.vertex_rgb is None else mesh.vertex_rgb[used],
        uv=None if mesh.uv is None else mesh.uv[used],
    )


def _in_metres(vertices: Array, unit: str, path: Path) -> Array:
    if unit not in METRES_PER_UNIT:
        raise PicoPoseError(f"the unit {unit!r} is not known", where=path, fix=f"use {', '.join(METRES_PER_UNIT)}")
    if not np.isfinite(vertices).all():
        raise PicoPoseError("a vertex is NaN or infinite", where=path, fix="export the mesh again")
    metres: Array = vertices * METRES_PER_UNIT[unit]
    return metres


def _unreadable(path: Path, error: Exception) -> PicoPoseError:
    reason = shorten(str(error) or type(error).__name__)
    return PicoPoseError(f"not a readable mesh ({reason})", where=path, fix="export it again")


def _no_faces(path: Path) -> PicoPoseError:
    return PicoPoseError("the mesh has no faces", where=path, fix="export it with triangles")
