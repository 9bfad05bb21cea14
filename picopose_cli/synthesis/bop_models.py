"""The models of a generated BOP data set: textured PLY files and models_info.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import MM_PER_M, Array, Mesh
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.synthesis.appearance import coloured_part, plain_look, recoloured_cad, wrong_cad
from picopose_cli.synthesis.image_files import encode_image, write_json
from picopose_cli.synthesis.objects import SyntheticObject, make_distinct_mesh
from picopose_cli.synthesis.parts import random_part
from picopose_cli.synthesis.seeds import DATASET_MODELS, DATASET_STREAM
from picopose_cli.synthesis.shape_symmetries import find_symmetries
from picopose_cli.synthesis.shapes import centred
from picopose_cli.synthesis.solids import joined
from picopose_cli.synthesis.symmetric_objects import NO_SYMMETRIES, Symmetries, make_symmetric_mesh

_TEXTURE_PX = 512
_SIZE_M = (0.06, 0.2)
_DISTANCE_ROWS = 512
SHOWN_FOLDER = "shown"
"""Beside models/: the meshes as images show them, of objects whose CAD model looks different."""


@dataclass(frozen=True)
class DatasetObject:
    """An object of a data set, its box centred at the origin, and the symmetries that models_info.json lists."""

    item: SyntheticObject
    symmetries: Symmetries = NO_SYMMETRIES


ObjectMaker = Callable[[Sequence[int]], DatasetObject]
"""Makes the object of a seed; the same seed gives the same object."""


def textured_object(seed: Sequence[int]) -> DatasetObject:
    """Return a textured object without symmetries, its CAD model exact."""
    return DatasetObject(SyntheticObject("", make_distinct_mesh(seed, _SIZE_M, _TEXTURE_PX)))


def symmetric_object(seed: Sequence[int]) -> DatasetObject:
    """Return a textured object with symmetries, its CAD model exact."""
    mesh, symmetries = make_symmetric_mesh(seed, _SIZE_M, _TEXTURE_PX)
    return DatasetObject(SyntheticObject("", mesh), symmetries)


def untextured_object(seed: Sequence[int]) -> DatasetObject:
    """Return a machine part in one or two colours, of metal or plastic, its CAD model grey, with its symmetries."""
    rng = np.random.default_rng(seed)
    symmetries = None
    while symmetries is None:
        solids = random_part(rng)
        shape = centred(joined(solids), float(np.exp(rng.uniform(*np.log(_SIZE_M)))))
        cad = Mesh(shape.vertices, shape.faces)
        symmetries = find_symmetries(cad)
    colours, material = plain_look(rng)
    shown = replace(cad, vertex_rgb=coloured_part(rng, solids, colours))
    return DatasetObject(SyntheticObject("", shown, cad, material), symmetries)


def wrong_albedo_object(seed: Sequence[int]) -> DatasetObject:
    """Return the object of `textured_object`, but with a CAD model that looks different.

    Where the CAD model does not show the texture, the shape's symmetries are the object's; a shape whose symmetries are
    ambiguous keeps its texture, in wrong colours.
    """
    mesh = textured_object(seed).item.mesh
    rng = np.random.default_rng([*seed, 1])
    cad, symmetries = wrong_cad(rng, mesh), NO_SYMMETRIES
    if cad.texture_rgb is None:
        found = find_symmetries(cad)
        cad, symmetries = (cad, found) if found is not None else (recoloured_cad(rng, mesh), NO_SYMMETRIES)
    return DatasetObject(SyntheticObject("", mesh, cad), symmetries)


def make_objects(make_object: ObjectMaker, objects: int, seed: int) -> list[DatasetObject]:
    """Return the objects of a data set: object k is the same whatever their number."""
    return [make_object([DATASET_STREAM, seed, DATASET_MODELS, obj_id]) for obj_id in range(1, objects + 1)]


def write_models(folder: Path, objects: Sequence[DatasetObject]) -> dict[int, SyntheticObject]:
    """Write the models of a data set to its models folder and return its objects by obj_id: 1, 2, ... in their order.

    The objects are read back from the files, so that rendered images show exactly what the files contain. Raises
    PicoPoseError when the folder cannot be written.
    """
    items, infos = dict[int, SyntheticObject](), dict[str, dict[str, Any]]()
    for obj_id, each in enumerate(objects, start=1):
        name = f"obj_{obj_id:06d}.ply"
        cad = _written(folder / name, each.item.cad or each.item.mesh)
        shown = cad if each.item.cad is None else _written(folder.parent / SHOWN_FOLDER / name, each.item.mesh)
        items[obj_id] = replace(each.item, key=Path(name).stem, mesh=shown, cad=None if shown is cad else cad)
        infos[str(obj_id)] = _model_info(cad) | each.symmetries.as_model_info()
    write_json(folder / "models_info.json", infos)
    return items


def _written(path: Path, mesh: Mesh) -> Mesh:
    """Write a mesh and return it as it is read from its file."""
    write_textured_ply(path, mesh)
    return read_mesh(path)


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
