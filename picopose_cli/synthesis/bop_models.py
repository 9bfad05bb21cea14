"""The models of a generated BOP data set: textured PLY files and models_info.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import MM_PER_M, Array, Mesh
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.synthesis.image_files import encode_image, write_json
from picopose_cli.synthesis.objects import SyntheticObject, make_distinct_mesh
from picopose_cli.synthesis.seeds import DATASET_MODELS, DATASET_STREAM
from picopose_cli.synthesis.symmetric_objects import NO_SYMMETRIES, make_symmetric_mesh

_TEXTURE_PX = 512
_SIZE_M = (0.06, 0.2)
_DISTANCE_ROWS = 512


def write_models(folder: Path, objects: int, seed: int, *, symmetric: bool) -> dict[int, SyntheticObject]:
    """Write the models of a data set and return its objects by obj_id.

    The objects are read back from the files, so that rendered images show exactly what the files contain. Raises
    PicoPoseError when the folder cannot be written.
    """
    items, infos = dict[int, SyntheticObject](), dict[str, dict[str, Any]]()
    for obj_id in range(1, objects + 1):
        mesh_seed, symmetries = [DATASET_STREAM, seed, DATASET_MODELS, obj_id], NO_SYMMETRIES
        if symmetric:
            mesh, symmetries = make_symmetric_mesh(mesh_seed, _SIZE_M, _TEXTURE_PX)
        else:
            mesh = make_distinct_mesh(mesh_seed, _SIZE_M, _TEXTURE_PX)
        path = folder / f"obj_{obj_id:06d}.ply"
        write_textured_ply(path, mesh)
        items[obj_id] = SyntheticObject(path.stem, read_mesh(path))
        infos[str(obj_id)] = _model_info(items[obj_id].mesh) | symmetries.as_model_info()
    write_json(folder / "models_info.json", infos)
    return items


def write_textured_ply(path: Path, mesh: Mesh) -> None:
    """Write a mesh as a binary PLY in mm, as BOP's; a texture is written beside it as a PNG that the file names.

    Raises PicoPoseError when the folder cannot be written.
    """
    columns: list[tuple[str, str, Array]] = [
        (axis, "f4", mesh.vertices_m[:, i] * MM_PER_M) for i, axis in enumerate("xyz")
    ]
    header = ["ply", "format binary_little_endian 1.0"]
    if mesh.uv is not None and mesh.texture_rgb is not None:
        texture = path.with_suffix(".png")
        atomic_write_bytes(texture, encode_image(mesh.texture_rgb[..., ::-1]))
        header.append(f"comment TextureFile {texture.name}")
        columns += [(f"texture_{axis}", "f4", mesh.uv[:, i]) for i, axis in enumerate("uv")]
    if mesh.vertex_rgb is not None:
        columns += [(name, "u1", mesh.vertex_rgb[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    vertices = np.zeros(len(mesh.vertices_m), [(name, "<" + kind) for name, kind, _ in columns])
    for name, _, values in columns:
        vertices[name] = values
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header.append(f"element vertex {len(vertices)}")
    header += [f"property {'float' if kind == 'f4' else 'uchar'} {name}" for name, kind, _ in columns]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    atomic_write_bytes(path, "\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def _model_info(mesh: Mesh) -> dict[str, Any]:
    """Return the entry of models_info.json: diameter and bounding box in mm."""
    vertices = mesh.vertices_m[np.unique(mesh.faces)] * MM_PER_M
    low, size = vertices.min(axis=0), np.ptp(vertices, axis=0)
    info: dict[str, Any] = {"diameter": diameter_of_points(vertices)}
    info |= {f"min_{axis}": float(value) for axis, value in zip("xyz", low, strict=True)}
    info |= {f"size_{axis}": float(value) for axis, value in zip("xyz", size, strict=True)}
    return info


def diameter_of_points(points: Array) -> float:
    """Return the largest distance between two of the points (N,3)."""
    starts = range(0, len(points), _DISTANCE_ROWS)
    return float(max(cdist(points[start : start + _DISTANCE_ROWS], points).max() for start in starts))
