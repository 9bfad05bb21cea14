"""Mesh files of every kind that BOP has, and every way in which they can be unusable."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import trimesh
from helpers.meshes import make_box, make_poster, make_sphere, write_ply
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.mesh_size import mesh_bounds_m, mesh_diameter_m
from picopose_cli.rendering.meshes import mesh_sha256, read_mesh
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, template_camera

SEEN = {"top left": (200, 260), "top right": (200, 380), "bottom left": (280, 260), "bottom right": (280, 380)}


def save_texture(path: Path, mesh: Mesh) -> None:
    assert mesh.texture_rgb is not None
    Image.fromarray(mesh.texture_rgb).save(path)


def poster_corners(mesh: Mesh) -> list[list[int]]:
    """The colours seen near the corners of `meshes.make_poster`, in reading order."""
    pose = make_T(np.eye(3), np.array([0.0, 0.0, 0.35]))
    view = SoftwareRenderer(mesh, template_camera(), TEMPLATE_SIZE_HW).render(pose)
    return [view.rgb[place].tolist() for place in SEEN.values()]


POSTER = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


@pytest.mark.parametrize("binary", [False, True])
def test_ply_with_vertex_colours(tmp_path: Path, binary: bool):
    box = make_box()
    mesh = read_mesh(write_ply(tmp_path / "obj_000001.ply", box, binary=binary))
    np.testing.assert_allclose(mesh.vertices_m, box.vertices_m, atol=1e-8)
    np.testing.assert_array_equal(mesh.faces, box.faces)
    np.testing.assert_array_equal(mesh.vertex_rgb, box.vertex_rgb)
    assert mesh.uv is None
    assert mesh.vertices_m.dtype == np.float64
    assert mesh.faces.dtype == np.int32


@pytest.mark.parametrize("names", [("texture_u", "texture_v"), ("u", "v"), ("s", "t")])
@pytest.mark.parametrize("binary", [False, True])
def test_ply_with_a_texture(tmp_path: Path, names: tuple[str, str], binary: bool):
    poster = make_poster()
    path = write_ply(tmp_path / "a.ply", poster, binary=binary, u=names[0], v=names[1], texture="a picture.png")
    save_texture(tmp_path / "a picture.png", poster)
    mesh = read_mesh(path)
    assert mesh.texture_rgb is not None
    assert mesh.texture_rgb.shape == (64, 96, 3)
    assert poster_corners(mesh) == POSTER


def test_ply_with_texture_coordinates_of_face_corners(tmp_path: Path):
    poster = make_poster()
    assert poster.uv is not None
    rows = [" ".join(str(value * 1000) for value in vertex) for vertex in poster.vertices_m]
    for face in poster.faces:
        uv = poster.uv[face].reshape(-1)
        rows.append(f"3 {' '.join(map(str, face))} 6 {' '.join(map(str, uv))}")
    header = "ply\nformat ascii 1.0\ncomment TextureFile t.png\nelement vertex 4\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "element face 2\n"
    header += "property list uchar int vertex_indices\nproperty list uchar float texcoord\nend_header\n"
    (tmp_path / "a.ply").write_text(header + "\n".join(rows) + "\n")
    save_texture(tmp_path / "t.png", poster)
    assert poster_corners(read_mesh(tmp_path / "a.ply")) == POSTER


def test_ply_without_colours_or_with_coordinates_only(tmp_path: Path):
    mesh = read_mesh(write_ply(tmp_path / "a.ply", make_box(coloured=False)))
    assert (mesh.vertex_rgb, mesh.uv, mesh.texture_rgb) == (None, None, None)
    mesh = read_mesh(write_ply(tmp_path / "b.ply", make_poster()))
    assert mesh.vertex_rgb is None
    assert mesh.texture_rgb is None


def test_ply_with_face_colours_and_quads(tmp_path: Path):
    header = "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    header += "element face 2\nproperty list uchar int vertex_indices\n"
    header += "".join(f"property uchar {name}\n" for name in ("red", "green", "blue")) + "end_header\n"
    corners = "-50 -50 0\n50 -50 0\n50 50 0\n-50 50 0\n"
    (tmp_path / "a.ply").write_text(f"{header}{corners}3 0 1 2 200 10 20\n3 0 2 3 5 6 250\n")
    mesh = read_mesh(tmp_path / "a.ply")
    assert mesh.vertex_rgb is not None
    assert mesh.vertex_rgb[mesh.faces][:, 0].tolist() == [[200, 10, 20], [5, 6, 250]]
    quad = header.replace("element face 2", "element face 1").replace("property uchar red\n", "")
    quad = quad.replace("property uchar green\n", "").replace("property uchar blue\n", "")
    (tmp_path / "b.ply").write_text(f"{quad}{corners}4 0 1 2 3\n")
    assert len(read_mesh(tmp_path / "b.ply").faces) == 2


def write_obj(folder: Path, poster: Mesh, material: str = "map_Kd t.png") -> Path:
    assert poster.uv is not None
    lines = ["mtllib a.mtl", "usemtl m"]
    lines += [f"v {x * 1000} {y * 1000} {z * 1000}" for x, y, z in poster.vertices_m]
    lines += [f"vt {u} {v}" for u, v in poster.uv]
    lines += ["f " + " ".join(f"{i + 1}/{i + 1}" for i in face) for face in poster.faces]
    (folder / "a.obj").write_text("\n".join(lines) + "\n")
    (folder / "a.mtl").write_text(f"newmtl m\nKd 0.4 0.4 0.4\n{material}\n")
    return folder / "a.obj"


def test_obj_with_its_texture(tmp_path: Path):
    path = write_obj(tmp_path, make_poster())
    save_texture(tmp_path / "t.png", make_poster())
    assert poster_corners(read_mesh(path)) == POSTER  # Kd does not darken it


def test_obj_of_one_colour_and_without_material(tmp_path: Path):
    mesh = read_mesh(write_obj(tmp_path, make_poster(), "Kd 1.0 0.5 0.0"))
    assert mesh.vertex_rgb is not None
    assert np.abs(mesh.vertex_rgb.astype(int) - [255, 128, 0]).max() <= 1
    (tmp_path / "a.mtl").unlink()
    mesh = read_mesh(tmp_path / "a.obj")
    assert mesh.texture_rgb is None
    assert mesh.vertex_rgb is None


def textured_trimesh(poster: Mesh, offset: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    assert poster.texture_rgb is not None
    visual = trimesh.visual.TextureVisuals(
        uv=poster.uv,
        material=trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(poster.texture_rgb)),
    )
    vertices = poster.vertices_m * 1000 + np.array(offset)
    return trimesh.Trimesh(vertices, poster.faces, visual=visual, process=False)


def test_glb(tmp_path: Path):
    (tmp_path / "a.glb").write_bytes(trimesh.Scene(textured_trimesh(make_poster())).export(file_type="glb"))
    assert poster_corners(read_mesh(tmp_path / "a.glb")) == POSTER


def test_glb_of_several_textures(tmp_path: Path):
    """A poster, another with a picture turned by half behind it, and a plain box: each keeps its own colours."""
    first, second = make_poster(), make_poster()
    assert second.texture_rgb is not None
    turned = Mesh(second.vertices_m, second.faces, uv=second.uv, texture_rgb=second.texture_rgb[::-1, ::-1].copy())
    plain = trimesh.Trimesh(make_box(coloured=False).vertices_m * 100, make_box().faces, process=False)
    scene = trimesh.Scene(
        [textured_trimesh(first), textured_trimesh(turned, (0, 0, 50)), plain.apply_translation([0, 0, 100])]
    )
    (tmp_path / "a.glb").write_bytes(scene.export(file_type="glb"))
    mesh = read_mesh(tmp_path / "a.glb")
    assert poster_corners(mesh) == POSTER
    depths = mesh.vertices_m[mesh.faces, 2]  # (F,3)
    back = mesh.faces[((depths > 0.049) & (depths < 0.051)).all(axis=1)]
    behind = Mesh(mesh.vertices_m - [0, 0, 0.05], back, uv=mesh.uv, texture_rgb=mesh.texture_rgb)
    assert poster_corners(behind) == POSTER[::-1]
    assert len(mesh.vertices_m) == 4 + 4 + 24


def test_parts_with_their_own_vertex_colours(tmp_path: Path):
    parts = []
    for rgb, x in (((250, 0, 0), -30), ((0, 0, 250), 30)):
        part = trimesh.creation.box((40, 40, 40))
        part.visual.vertex_colors = np.tile([*rgb, 255], (len(part.vertices), 1))
        parts.append(part.apply_translation([x, 0, 0]))
    (tmp_path / "a.glb").write_bytes(trimesh.Scene(parts).export(file_type="glb"))
    mesh = read_mesh(tmp_path / "a.glb")
    assert mesh.vertex_rgb is not None
    assert (mesh.vertex_rgb[mesh.vertices_m[:, 0] < 0] == [250, 0, 0]).all()
    assert (mesh.vertex_rgb[mesh.vertices_m[:, 0] > 0] == [0, 0, 250]).all()


@pytest.mark.parametrize(("unit", "metres"), [("mm", 1e-3), ("cm", 1e-2), ("m", 1.0)])
def test_units(tmp_path: Path, unit: str, metres: float):
    path = write_ply(tmp_path / "a.ply", make_box(), unit_m=metres)
    np.testing.assert_allclose(mesh_diameter_m(read_mesh(path, unit)), 0.1 * np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize(("size_m", "unit"), [(0.1, "m"), (0.1, "mm"), (0.002, "mm"), (4.0, "mm")])
def test_a_wrong_unit_is_noticed(tmp_path: Path, size_m: float, unit: str):
    written_m = 1e-3 if unit == "m" or size_m != 0.1 else 1.0
    path = write_ply(tmp_path / "a.ply", make_box((size_m,) * 3), unit_m=written_m)
    with pytest.raises(PicoPoseError, match="--mesh-unit"):
        read_mesh(path, unit)


def test_vertices_of_no_face_do_not_count(tmp_path: Path):
    box = make_box(coloured=False)
    stray = Mesh(np.concatenate([box.vertices_m, [[9.0, 9, 9]]]), box.faces)
    mesh = read_mesh(write_ply(tmp_path / "a.ply", stray))
    np.testing.assert_allclose(mesh_bounds_m(mesh)[1], [0.05] * 3, atol=1e-8)


def spoilt(path: Path, change) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda _: b"", "not a readable mesh"),
        (lambda _: b"\x00\x01garbage" * 50, "not a readable mesh"),
        (lambda data: data[: len(data) * 2 // 3], "not a readable mesh"),
        (lambda data: data[:-60], "not a readable mesh"),
        (lambda data: data.replace(b"element face 12", b"element face 15"), "not a readable mesh"),
        (lambda data: data.replace(b"end_header", b"end_head"), "not a readable mesh"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_damaged_files_are_refused(tmp_path: Path, change, text: str, binary: bool):
    path = spoilt(write_ply(tmp_path / "a.ply", make_box(), binary=binary), change)
    with pytest.raises(PicoPoseError, match=text) as caught:
        read_mesh(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_useless_meshes_are_refused(tmp_path: Path):
    box = make_box(coloured=False)
    with pytest.raises(PicoPoseError, match="missing"):
        read_mesh(tmp_path / "none.ply")
    with pytest.raises(PicoPoseError, match="not a mesh format"):
        read_mesh(spoilt(write_ply(tmp_path / "a.stl", box), bytes))
    with pytest.raises(PicoPoseError, match="no faces"):
        read_mesh(write_ply(tmp_path / "points.ply", Mesh(box.vertices_m, np.zeros((0, 3), np.int32))))
    with pytest.raises(PicoPoseError, match="no faces"):
        read_mesh(write_ply(tmp_path / "empty.ply", Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))))
    for value in (np.nan, np.inf):
        broken = box.vertices_m.copy()
        broken[3, 1] = value
        with pytest.raises(PicoPoseError, match="NaN"):
            read_mesh(write_ply(tmp_path / "nan.ply", Mesh(broken, box.faces), binary=True))
    for index in (24, -1, 10**6):
        faces = box.faces.copy()
        faces[5, 1] = index
        with pytest.raises(PicoPoseError, match="not a readable mesh"):
            read_mesh(write_ply(tmp_path / "range.ply", Mesh(box.vertices_m, faces), binary=True))


def test_a_missing_or_broken_texture_is_named(tmp_path: Path):
    poster = make_poster()
    ply, obj = write_ply(tmp_path / "a.ply", poster, texture="t.png"), write_obj(tmp_path, poster)
    for path in (ply, obj):
        with pytest.raises(PicoPoseError, match=r"texture 't\.png' is missing"):
            read_mesh(path)
    (tmp_path / "t.png").write_bytes(b"no picture")
    for path in (ply, obj):
        with pytest.raises(PicoPoseError, match="texture"):
            read_mesh(path)


def test_a_texture_without_coordinates_is_refused(tmp_path: Path):
    save_texture(tmp_path / "t.png", make_poster())
    box = Mesh(make_box().vertices_m, make_box().faces)
    with pytest.raises(PicoPoseError, match="none of its faces uses the texture"):
        read_mesh(write_ply(tmp_path / "a.ply", box, texture="t.png"))


def test_the_hash_covers_the_texture(tmp_path: Path):
    poster = make_poster()
    path = write_obj(tmp_path, poster)
    save_texture(tmp_path / "t.png", poster)
    first = mesh_sha256(path)
    assert first == mesh_sha256(path)
    cv2.imwrite(str(tmp_path / "t.png"), np.zeros((4, 4, 3), np.uint8))
    second = mesh_sha256(path)
    (tmp_path / "a.mtl").write_text((tmp_path / "a.mtl").read_text() + "# changed\n")
    assert len({first, second, mesh_sha256(path)}) == 3
    assert mesh_sha256(write_ply(tmp_path / "a.ply", make_box())) != first


def test_big_endian_binary(tmp_path: Path):
    box = make_box(coloured=False)
    header = f"ply\nformat binary_big_endian 1.0\nelement vertex {len(box.vertices_m)}\n"
    header += "property float x\nproperty float y\nproperty float z\n"
    header += f"element face {len(box.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    body = (box.vertices_m * 1000).astype(">f4").tobytes()
    body += b"".join(struct.pack(">B3i", 3, *face) for face in box.faces.tolist())
    (tmp_path / "a.ply").write_bytes(header.encode() + body)
    np.testing.assert_allclose(read_mesh(tmp_path / "a.ply").vertices_m, box.vertices_m, atol=1e-8)


def test_real_meshes_arrive_with_their_colours(shared_dir: Path):
    paths = sorted((shared_dir / "real").glob("*/models/*.ply"))
    assert paths
    for path in paths:
        mesh = read_mesh(path)
        textured = path.with_suffix(".png").is_file()
        assert (mesh.texture_rgb is not None) == textured
        assert (mesh.vertex_rgb is not None) != textured
        assert 0.05 < mesh_diameter_m(mesh) < 0.4


def test_a_large_sphere_keeps_vertex_order(tmp_path: Path):
    sphere = make_sphere(rings=30)
    mesh = read_mesh(write_ply(tmp_path / "a.ply", sphere, binary=True))
    np.testing.assert_allclose(mesh.vertices_m, sphere.vertices_m, atol=1e-7)
    np.testing.assert_array_equal(mesh.faces, sphere.faces)
