from __future__ import annotations

import numpy as np
import pytest
from helpers.meshes import make_ball, make_box, write_ply

from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.ply import read_plain_ply


def write_binary(path, mesh, *, count_type="u1", extra=b""):
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment by hand\nelement vertex {len(mesh.vertices_m)}\n"
        "property double x\nproperty double y\nproperty double z\nproperty uchar red\n"
        f"element face {len(mesh.faces)}\n"
        f"property list {'uchar' if count_type == 'u1' else 'int'} uint vertex_indices\n"
        "end_header\n"
    )
    vertices = np.zeros(len(mesh.vertices_m), [("xyz", "<f8", 3), ("red", "u1")])
    vertices["xyz"] = mesh.vertices_m * 1000
    faces = np.empty(len(mesh.faces), [("count", count_type), ("indices", "<u4", 3)])
    faces["count"], faces["indices"] = 3, mesh.faces
    path.write_bytes(header.encode() + vertices.tobytes() + faces.tobytes() + extra)


@pytest.mark.parametrize("kind", ["ascii", "binary", "int counts"])
@pytest.mark.parametrize("mesh", [make_box((0.08, 0.1, 0.06)), make_ball((0.05, 0.04, 0.06))], ids=["box", "ball"])
def test_plain_files_are_read_as_by_the_full_reader(tmp_path, mesh, kind):
    path = tmp_path / "obj_000001.ply"
    if kind == "ascii":
        write_ply(path, mesh)
    else:
        write_binary(path, mesh, count_type="u1" if kind == "binary" else "<i4")
    found, wanted = read_plain_ply(path), read_mesh(path)
    np.testing.assert_allclose(found.vertices_m, wanted.vertices_m, atol=1e-8)
    np.testing.assert_array_equal(found.faces, wanted.faces)
    assert found.vertex_rgb is None


def test_models_of_a_real_data_set(shared_dir):
    for path in sorted((shared_dir / "scoring/ycbv/models_eval").glob("*.ply"))[:3]:
        found, wanted = read_plain_ply(path), read_mesh(path)
        np.testing.assert_allclose(found.vertices_m, wanted.vertices_m, atol=1e-8)
        np.testing.assert_array_equal(found.faces, wanted.faces)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("format ascii", "format binary_big_endian"),
        lambda text: text.replace("\n3 0 1 2", "\n4 0 1 2 3", 1),
        lambda text: text.replace("\n3 0 1 2", "\n3 0 1 99", 1),
        lambda text: text[:-40],
        lambda text: text.replace("-40.0", "nan", 1),
        lambda text: text.replace("-40.0", "wide", 1),
        lambda text: text.replace("-40.0", "-40000000", 1),
        lambda text: text.replace("property float x", "property list uchar float x"),
        lambda text: text.replace("end_header", "element edge 0\nend_header"),
        lambda text: "solid " + text,
        lambda text: text[:60],
        lambda _: "",
    ],
)
def test_anything_else_is_left_to_the_full_reader(tmp_path, change):
    path = tmp_path / "obj_000001.ply"
    write_ply(path, make_box((0.08, 0.1, 0.06)))
    path.write_text(change(path.read_text()))
    assert read_plain_ply(path) is None


def test_a_missing_or_overlong_file_is_left_to_the_full_reader(tmp_path):
    path = tmp_path / "obj_000001.ply"
    assert read_plain_ply(path) is None
    write_binary(path, make_box((0.08, 0.1, 0.06)), extra=b"more")
    assert read_plain_ply(path) is None
