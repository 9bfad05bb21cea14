"""Small meshes of known shape and colour, and writers of mesh files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.synthetic import box_mesh, random_rotation
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh


def make_box(size_m: tuple[float, float, float] = (0.1, 0.1, 0.1), *, coloured: bool = True) -> Mesh:
    """Return a box about the origin whose six sides have their own vertices and colours (synthetic.SIDE_RGB)."""
    mesh = box_mesh(size_m)
    return mesh if coloured else Mesh(mesh.vertices_m, mesh.faces)


def make_sphere(radius_m: float = 0.05, rings: int = 120) -> Mesh:
    """A sphere about the origin, of latitude rings."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij")
    xyz = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    index = np.arange(theta.size).reshape(theta.shape)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return Mesh(radius_m * xyz.reshape(-1, 3), faces.astype(np.int32))


def make_poster(width_m: float = 0.12, height_m: float = 0.08) -> Mesh:
    """A textured rectangle in the xy plane, upright for a camera that looks along +z with y down.

    Its texture: top left red, top right green, bottom left blue, bottom right white.
    """
    x, y = width_m / 2, height_m / 2
    vertices = np.array([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]])  # y is down: the first two are on top
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    texture = np.zeros((64, 96, 3), np.uint8)
    texture[:32, :48], texture[:32, 48:] = (255, 0, 0), (0, 255, 0)
    texture[32:, :48], texture[32:, 48:] = (0, 0, 255), (255, 255, 255)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv=uv, texture_rgb=texture)


def random_T(rng: np.random.Generator, t: tuple[float, float, float]) -> np.ndarray:
    """A random rotation with the given translation."""
    return make_T(random_rotation(rng), np.array(t, float))


def write_ply(path: Path, mesh: Mesh, *, binary: bool = False, unit_m: float = 1e-3, **names: str) -> Path:
    """Write a mesh with its colours or texture coordinates; `u`, `v` name these, `texture` the file to mention."""
    columns = [(name, "<f4", "float", mesh.vertices_m[:, i] / unit_m) for i, name in enumerate("xyz")]
    if mesh.vertex_rgb is not None:
        columns += [(n, "u1", "uchar", mesh.vertex_rgb[:, i]) for i, n in enumerate(("red", "green", "blue"))]
    if mesh.uv is not None:
        uv_names = (names.get("u", "texture_u"), names.get("v", "texture_v"))
        columns += [(n, "<f4", "float", mesh.uv[:, i]) for i, n in enumerate(uv_names)]
    header = ["ply", f"format {'binary_little_endian' if binary else 'ascii'} 1.0"]
    header += [f"comment TextureFile {names['texture']}"] if "texture" in names else []
    header += [f"element vertex {len(mesh.vertices_m)}", *(f"property {kind} {name}" for name, _, kind, _ in columns)]
    header += [f"element face {len(mesh.faces)}", "property list uchar int vertex_indices", "end_header", ""]
    vertices = np.zeros(len(mesh.vertices_m), [(name, dtype) for name, dtype, _, _ in columns])
    for name, _, _, values in columns:
        vertices[name] = values
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    if binary:
        body = vertices.tobytes() + faces.tobytes()
    else:
        rows = [" ".join(str(value) for value in row) for row in vertices.tolist()]
        body = "\n".join([*rows, *("3 " + " ".join(map(str, face)) for face in mesh.faces)]).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(header).encode() + body)
    return path
