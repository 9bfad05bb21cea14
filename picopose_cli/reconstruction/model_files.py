"""The files of a reconstructed model, in millimetres: PLY with its texture, models_info.json, the quality report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import MM_PER_M, Mesh
from picopose_cli.bop.images import write_png
from picopose_cli.bop.json_files import read_json_object
from picopose_cli.reconstruction.colours import Texture
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.rendering.mesh_size import exact_diameter_m

MODELS_INFO = "models_info.json"


def report_path(model: Path) -> Path:
    """Return the path of the quality report of a model."""
    return model.with_suffix(".reconstruction.json")


def sheet_path(model: Path) -> Path:
    """Return the path of the picture that compares photographs and renders of a model."""
    return model.with_suffix(".reconstruction.png")


def check_output(model: Path) -> None:
    """Raise PicoPoseError when the output is not a PLY file, or a file that is not of an earlier reconstruction."""
    if model.suffix != ".ply":
        raise PicoPoseError("is not the name of a .ply file", where=model, fix="pass --output models/obj_000001.ply")
    if model.exists() and not report_path(model).is_file():
        what = "exists and was not made by picopose reconstruct"
        raise PicoPoseError(what, where=model, fix="choose another --output")


def write_model(path: Path, surface: Surface, texture: Texture) -> None:
    """Write the PLY and beside it the PNG of its texture, whose coordinates belong to the corners of triangles.

    Vertices are shared, so that the file is one closed surface; they have colours, too, for programs that read no
    textures. Raises PicoPoseError when a file cannot be written.
    """
    image = path.with_suffix(".png")
    write_png(image, texture.rgb)
    rgb = ("red", "green", "blue")
    vertices = np.zeros(len(surface.vertices), [*((axis, "<f4") for axis in "xyz"), *((name, "u1") for name in rgb)])
    for i, axis in enumerate("xyz"):
        vertices[axis] = surface.vertices[:, i] * MM_PER_M
        vertices[rgb[i]] = texture.vertex_rgb[:, i]
    faces = np.zeros(len(surface.faces), [("count", "u1"), ("index", "<i4", 3), ("numbers", "u1"), ("uv", "<f4", 6)])
    faces["count"], faces["index"] = 3, surface.faces
    faces["numbers"], faces["uv"] = 6, texture.uv.reshape(-1, 6)
    header = [
        "ply", "format binary_little_endian 1.0",
        f"comment TextureFile {image.name}", f"element vertex {len(vertices)}",
        *(f"property float {axis}" for axis in "xyz"), *(f"property uchar {name}" for name in rgb),
        f"element face {len(faces)}", "property list uchar int vertex_indices", "property list uchar float texcoord",
        "end_header", "",
    ]  # fmt: skip
    atomic_write_bytes(path, "\n".join(header).encode() + vertices.tobytes() + faces.tobytes())


def write_model_info(folder: Path, obj_id: int, surface: Surface) -> None:
    """Add the object to models_info.json: diameter and box in mm; symmetries and other objects in it stay.

    Raises PicoPoseError when the file is damaged or cannot be written.
    """
    path = folder / MODELS_INFO
    infos = read_json_object(path) if path.is_file() else {}
    entry = infos.get(str(obj_id), {})
    if not isinstance(entry, dict):
        raise PicoPoseError(f"object {obj_id}: the entry is not an object", where=path, fix="correct the file")
    infos[str(obj_id)] = entry | model_info(surface)
    atomic_write_bytes(path, json.dumps(infos, indent=1).encode() + b"\n")


def model_info(surface: Surface) -> dict[str, Any]:
    """Return the entry of models_info.json, in mm."""
    low, size = surface.vertices.min(axis=0) * MM_PER_M, np.ptp(surface.vertices, axis=0) * MM_PER_M
    info = {"diameter": exact_diameter_m(Mesh(surface.vertices, surface.faces)) * MM_PER_M}
    info |= {f"min_{axis}": float(value) for axis, value in zip("xyz", low, strict=True)}
    return info | {f"size_{axis}": float(value) for axis, value in zip("xyz", size, strict=True)}
