"""Small meshes of known shape and colour, a writer of PLY files, and two measures of a closed surface."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from picopose_cli.base.types import Mesh
from picopose_cli.synthesis.shapes import Shape

SIDE_RGB = np.array(
    [[220, 40, 40], [40, 200, 40], [50, 60, 230], [230, 220, 40], [220, 60, 220], [40, 210, 220]], np.uint8
)
"""Colours of the sides of a box: -x red, +x green, -y blue, +y yellow, -z magenta, +z cyan."""


def make_box(size_m: tuple[float, float, float] = (0.1, 0.1, 0.1), *, coloured: bool = True) -> Mesh:
    """Return a box about the origin whose six sides have their own vertices and colours (`SIDE_RGB`)."""
    half = np.asarray(size_m) / 2
    vertices, faces, colours = [], [], []
    for axis in range(3):
        for sign in (-1, 1):
            u, v = (axis + 1) % 3, (axis + 2) % 3
            corners = np.zeros((4, 3))
            corners[:, axis] = sign
            corners[:, u] = np.array([-1, 1, 1, -1]) * sign
            corners[:, v] = [-1, -1, 1, 1]
            start = len(vertices) * 4
            faces += [[start, start + 1, start + 2], [start, start + 2, start + 3]]
            vertices.append(corners * half)
            colours.append(np.repeat(SIDE_RGB[None, 2 * axis + (sign + 1) // 2], 4, axis=0))
    return Mesh(np.concatenate(vertices), np.array(faces, np.int32), np.concatenate(colours) if coloured else None)


def make_ball(radii_m: tuple[float, float, float], rings: int = 24, segments: int = 48) -> Mesh:
    """Return an ellipsoid with a smooth colour that differs everywhere."""
    theta = np.linspace(0, np.pi, rings + 1)
    phi = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    t, p = (grid.ravel() for grid in np.meshgrid(theta, phi, indexing="ij"))
    unit = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=1)
    ring, segment = (grid.ravel() for grid in np.meshgrid(np.arange(rings), np.arange(segments), indexing="ij"))
    a, b = ring * segments + segment, ring * segments + (segment + 1) % segments
    faces = np.concatenate([np.stack([a, a + segments, b], 1), np.stack([b, a + segments, b + segments], 1)])
    colour = np.stack([128 + 120 * np.sin(3 * p), 128 + 120 * np.cos(4 * t), 128 + 120 * np.sin(2 * t + p)], axis=1)
    return Mesh(unit * radii_m, faces.astype(np.int32), colour.astype(np.uint8))


def make_sphere(radius_m: float = 0.05, rings: int = 120) -> Mesh:
    """Return a sphere about the origin, made of latitude rings."""
    theta, phi = np.meshgrid(np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings + 1), indexing="ij")
    xyz = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1)
    index = np.arange(theta.size).reshape(theta.shape)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return Mesh(radius_m * xyz.reshape(-1, 3), faces.astype(np.int32))


def make_poster(width_m: float = 0.12, height_m: float = 0.08) -> Mesh:
    """Return a textured rectangle in the xy plane, upright for a camera that looks along +z with y down.

    Its texture: top left red, top right green, bottom left blue, bottom right white.
    """
    x, y = width_m / 2, height_m / 2
    vertices = np.array([[-x, -y, 0], [x, -y, 0], [x, y, 0], [-x, y, 0]])  # y is down: the first two are on top
    uv = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], np.float32)
    texture = np.zeros((64, 96, 3), np.uint8)
    texture[:32, :48], texture[:32, 48:] = (255, 0, 0), (0, 255, 0)
    texture[32:, :48], texture[32:, 48:] = (0, 0, 255), (255, 255, 255)
    return Mesh(vertices, np.array([[0, 1, 2], [0, 2, 3]], np.int32), uv=uv, texture_rgb=texture)


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


def signed_volume(shape: Shape) -> float:
    """Return the enclosed volume, positive when the faces are oriented outward."""
    a, b, c = (shape.vertices[shape.faces[:, corner]] for corner in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def count_open_edges(shape: Shape) -> int:
    """Return the number of edges, texture seams closed, that are not run through once in each direction."""
    place = np.unique(np.rint(shape.vertices * 1e6), axis=0, return_inverse=True)[1].reshape(-1)
    faces = place[shape.faces]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    forth = {(int(a), int(b)) for a, b in edges}
    return sum((b, a) not in forth for a, b in forth)
