"""PLY files of every form that exporters write, read the same by templates and by scores."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.meshes import make_box, write_ply

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.rendering.meshes import read_mesh, read_shape
from picopose_cli.rendering.ply import read_ply

BOX = make_box((0.08, 0.1, 0.06))


def changed(path: Path, change) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def header_changed(data: bytes, change) -> bytes:
    end = data.index(b"end_header\n") + len(b"end_header\n")
    return change(data[:end]) + data[end:]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.replace(b"\n", b"\r\n"),
        lambda header: header.replace(b"ply\n", b"ply\n" + b"comment " + b"x" * 9000 + b"\n"),
        lambda header: header.replace(b"ply\n", b"ply\n" + b"comment many\n" * 5000),
        lambda header: header.replace(b"end_header", b"obj_info by hand\nend_header"),
        lambda header: header.replace(b"element face", b"element empty 0\nproperty int z\nelement face"),
    ],
    ids=["CRLF", "long comment", "many comments", "obj_info", "empty element"],
)
def test_the_header_changes_nothing(tmp_path: Path, binary: bool, change):
    """A long or CRLF header once sent the scores' meshes to another reader, which rounded them."""
    mesh = make_box((0.0812345678, 0.1012345678, 0.0612345678))
    plain = read_shape(write_ply(tmp_path / "a.ply", mesh, binary=binary))
    path = changed(write_ply(tmp_path / "b.ply", mesh, binary=binary), lambda data: header_changed(data, change))
    for found in (read_shape(path), read_mesh(path)):
        np.testing.assert_array_equal(found.faces, plain.faces)
    np.testing.assert_array_equal(read_shape(path).vertices_m, plain.vertices_m)
    np.testing.assert_array_equal(read_mesh(path).vertex_rgb, mesh.vertex_rgb)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_ascii_file_keeps_all_digits_for_scores_and_equals_its_binary_copy_for_templates(tmp_path: Path, newline):
    mesh = make_box((0.0812345678, 0.1012345678, 0.0612345678))
    text = write_ply(tmp_path / "a.ply", mesh)
    text.write_bytes(text.read_bytes().replace(b"\n", newline.encode()))
    np.testing.assert_allclose(read_shape(text).vertices_m, mesh.vertices_m, atol=1e-17)
    binary = write_ply(tmp_path / "b.ply", mesh, binary=True)
    np.testing.assert_array_equal(read_mesh(text).vertices_m, read_mesh(binary).vertices_m)
    double = changed(text, lambda data: data.replace(b"property float", b"property double"))
    np.testing.assert_array_equal(read_mesh(double).vertices_m, read_shape(double).vertices_m)


@pytest.mark.parametrize("order", ["<", ">"])
def test_binary_of_either_byte_order_with_lists_of_different_lengths(tmp_path: Path, order: str):
    header = f"ply\nformat binary_{'little' if order == '<' else 'big'}_endian 1.0\nelement vertex 5\n"
    header += "property double x\nproperty double y\nproperty double z\nelement face 3\n"
    header += "property uchar flags\nproperty list uint uint vertex_index\nelement edge 1\nproperty int a\nend_header\n"
    vertices = [[-50, -50, 0], [50, -50, 0], [50, 50, 0], [-50, 50, 0], [0, 80, 0]]
    body = b"".join(struct.pack(f"{order}3d", *vertex) for vertex in vertices)
    for face in ([0, 1, 2, 3], [3, 2, 4], [0, 1, 2, 4, 3]):
        body += struct.pack(f"{order}BI{len(face)}I", 7, len(face), *face)
    body += struct.pack(f"{order}i", 5)
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    mesh = read_shape(tmp_path / "a.ply")
    np.testing.assert_allclose(mesh.vertices_m * 1000, vertices)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [3, 2, 4], [0, 1, 2], [0, 2, 4], [0, 4, 3]]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("textured", [False, True])
@pytest.mark.parametrize("index", [-1, 24, 10**6])
def test_a_face_of_no_vertex_is_refused(tmp_path: Path, binary: bool, textured: bool, index: int):
    faces = BOX.faces.copy()
    faces[5, 1] = index
    uv = np.zeros((24, 2), np.float32) if textured else None
    texture = np.zeros((4, 4, 3), np.uint8) if textured else None
    mesh = type(BOX)(BOX.vertices_m, faces, uv=uv, texture_rgb=texture)
    if textured:
        from PIL import Image

        Image.fromarray(texture).save(tmp_path / "t.png")
    path = write_ply(tmp_path / "a.ply", mesh, binary=binary, **({"texture": "t.png"} if textured else {}))
    for read in (read_mesh, read_shape):
        with pytest.raises(PicoPoseError, match=f"a face refers to vertex {index:g} of 24".replace("+", r"\+")):
            read(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data[:-40], "fewer face rows"),
        (lambda data: data[:400], "fewer vertex rows"),
        (lambda data: data + b"more", "more data|not a number"),
        (lambda data: data.replace(b"element vertex 24", b"element vertex 999999999999"), "fewer vertex rows"),
        (lambda data: data.replace(b"element vertex 24", b"element vertex " + b"9" * 5000), "element vertex"),
        (lambda data: data.replace(b"element vertex 24", b"element vertex -4"), "element vertex"),
        (lambda data: data.replace(b"property float z", b"property float y"), "twice"),
        (lambda data: data.replace(b"property float z", b"property float w"), "no x, y and z"),
        (lambda data: data.replace(b"property float z", b"property real z"), "property real z"),
        (lambda data: data.replace(b"end_header\n", b""), "no end"),
        (lambda data: b"solid " + data, "begin with the line 'ply'"),
        (lambda _: b"", "begin with the line 'ply'"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_damage_is_named(tmp_path: Path, change, text: str, binary: bool):
    path = changed(write_ply(tmp_path / "a.ply", BOX, binary=binary), change)
    for read in (read_mesh, read_shape):
        with pytest.raises(PicoPoseError, match="not a readable mesh") as caught:
            read(path)
        assert caught.match(text)
        assert len(str(caught.value)) < 300 + len(str(path))


def test_text_that_is_no_number_is_refused(tmp_path: Path):
    path = changed(write_ply(tmp_path / "a.ply", BOX), lambda data: data.replace(b"-40.0", b"wide", 1))
    with pytest.raises(PicoPoseError, match="not a number"):
        read_shape(path)


def test_comments_of_the_header(tmp_path: Path):
    path = write_ply(tmp_path / "a.ply", BOX, texture="a picture.png")
    assert read_ply(path).comments == ("TextureFile a picture.png",)


def test_models_of_a_real_data_set(shared_dir: Path):
    """Whole sums of the coordinates in the file's unit, added up line by line by hand."""
    for path in sorted((shared_dir / "scoring/ycbv/models_eval").glob("*.ply"))[:3]:
        lines = path.read_text().split("end_header\n")[1].splitlines()
        mesh = read_shape(path)
        wanted = [[float(word) for word in line.split()[:3]] for line in lines[: len(mesh.vertices_m)]]
        np.testing.assert_array_equal(mesh.vertices_m, np.array(wanted) * 1e-3)
        faces = [[int(word) for word in line.split()[1:4]] for line in lines[len(wanted) :]]
        np.testing.assert_array_equal(mesh.faces, faces)


def test_vertices_that_no_face_uses_are_left_out_of_templates_only(tmp_path):
    """The order of the others decides the sums of smooth normals, and so the last bits of generated images."""
    loose = replace(
        BOX,
        vertices_m=np.insert(BOX.vertices_m, 3, [0.0, 0.0, 0.0], axis=0),
        faces=np.where(BOX.faces >= 3, BOX.faces + 1, BOX.faces),
        vertex_rgb=np.insert(BOX.vertex_rgb, 3, [1, 2, 3], axis=0),
    )
    path = write_ply(tmp_path / "obj_000001.ply", loose)
    mesh = read_mesh(path)
    np.testing.assert_array_equal(mesh.faces, BOX.faces)
    np.testing.assert_array_equal(mesh.vertex_rgb, BOX.vertex_rgb)
    np.testing.assert_allclose(mesh.vertices_m, BOX.vertices_m, atol=1e-9)
    assert len(read_shape(path).vertices_m) == len(BOX.vertices_m) + 1
