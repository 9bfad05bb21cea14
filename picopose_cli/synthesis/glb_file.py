"""GLB files (binary glTF 2.0) of textured meshes, as HOT3D's models are."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.types import Array, Mesh
from picopose_cli.synthesis.image_files import encode_image

_FLOAT, _UNSIGNED_INT = 5126, 5125
_ALIGNMENT = 4


def write_textured_glb(path: Path, mesh: Mesh) -> None:
    """Write a textured mesh in metres, glTF's unit; raises PicoPoseError when the folder cannot be written."""
    assert mesh.uv is not None
    assert mesh.texture_rgb is not None
    positions = mesh.vertices_m.astype("<f4")
    uv = np.stack([mesh.uv[:, 0], 1 - mesh.uv[:, 1]], axis=1).astype("<f4")  # glTF's v begins at the top row
    indices = mesh.faces.astype("<u4").ravel()
    parts = [positions.tobytes(), uv.tobytes(), indices.tobytes(), encode_image(mesh.texture_rgb[..., ::-1])]
    views, blob = [], b""
    for part in parts:
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(part)})
        blob += _padded(part, b"\0")
    content = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0}}}],
        "textures": [{"source": 0}],
        "images": [{"bufferView": 3, "mimeType": "image/png"}],
        "accessors": [
            _accessor(0, positions, _FLOAT, "VEC3", bounds=True),
            _accessor(1, uv, _FLOAT, "VEC2"),
            _accessor(2, indices, _UNSIGNED_INT, "SCALAR"),
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    header = _padded(json.dumps(content).encode(), b" ")
    chunks = struct.pack("<I4s", len(header), b"JSON") + header + struct.pack("<I4s", len(blob), b"BIN\0") + blob
    atomic_write_bytes(path, struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


def _accessor(view: int, values: Array, component: int, kind: str, *, bounds: bool = False) -> dict[str, object]:
    limits = {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()} if bounds else {}
    return {"bufferView": view, "componentType": component, "count": len(values), "type": kind, **limits}


def _padded(data: bytes, filler: bytes) -> bytes:
    return data + filler * (-len(data) % _ALIGNMENT)
