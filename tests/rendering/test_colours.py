"""Colours of mesh files: every form that exporters write arrives, and what is lost is said."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.meshes import make_box, make_poster, write_ply
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.meshes import mesh_sha256, read_mesh
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, template_camera

CORNERS = {"top left": (200, 260), "top right": (200, 380), "bottom left": (280, 260), "bottom right": (280, 380)}
POSTER = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
GREY = "it has no colours and is rendered grey"


def corners(mesh: Mesh) -> list[list[int]]:
    """The colours seen near the corners of `make_poster`, in reading order."""
    pose = make_T(np.eye(3), np.array([0.0, 0.0, 0.35]))
    view = SoftwareRenderer(mesh, template_camera(), TEMPLATE_SIZE_HW).render(pose)
    return [view.rgb[place].tolist() for place in CORNERS.values()]


def save_texture(path: Path) -> None:
    texture = make_poster().texture_rgb
    assert texture is not None
    Image.fromarray(texture).save(path)


def write_obj(folder: Path, *, head: str = "mtllib a.mtl\nusemtl m", rgb: bool = False, vt: bool = True) -> Path:
    poster = make_poster()
    assert poster.uv is not None
    colours = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]] if rgb else [[]] * 4
    lines = head.split("\n")
    lines += [
        " ".join(map(str, ["v", *vertex, *colour]))
        for vertex, colour in zip((poster.vertices_m * 1000).tolist(), colours, strict=True)
    ]
    lines += [f"vt {u} {v}" for u, v in poster.uv]
    lines += ["f " + " ".join(f"{i + 1}/{i + 1}" if vt else f"{i + 1}" for i in face) for face in poster.faces]
    (folder / "a.obj").write_text("\n".join(lines) + "\n")
    return folder / "a.obj"


def write_mtl(folder: Path, statement: str = "map_Kd t.png", *, name: str = "a.mtl", bom: bool = False) -> None:
    (folder / name).write_text(f"newmtl m\nKd 0.5 0.5 0.5\n{statement}\n", encoding="utf-8-sig" if bom else "utf-8")


@pytest.mark.parametrize(
    "head",
    [
        "mtllib other.mtl\nmtllib a.mtl\nusemtl m",
        "mtllib a.mtl\nmtllib other.mtl\nusemtl m",
        "mtllib other.mtl a.mtl\nusemtl m",
        "mtllib .\\a.mtl\nusemtl m",
        "MTLLIB A.MTL\nusemtl m",
        "mtllib C:\\export\\a.mtl\nusemtl m",
        "# by hand\nmtllib \\\n a.mtl\nusemtl m",
    ],
)
def test_obj_material_libraries(tmp_path: Path, head: str):
    write_mtl(tmp_path)
    (tmp_path / "other.mtl").write_text("newmtl other\nKd 0.1 0.2 0.3\n")
    save_texture(tmp_path / "t.png")
    mesh = read_mesh(write_obj(tmp_path, head=head))
    assert corners(mesh) == POSTER
    assert mesh.notes == ()
    before = mesh_sha256(tmp_path / "a.obj")
    write_mtl(tmp_path, "map_Kd t.png\n# changed")
    assert mesh_sha256(tmp_path / "a.obj") != before


def test_a_library_whose_name_has_a_blank(tmp_path: Path):
    write_mtl(tmp_path, name="my colours.mtl")
    save_texture(tmp_path / "t.png")
    assert corners(read_mesh(write_obj(tmp_path, head="mtllib my colours.mtl\nusemtl m"))) == POSTER


@pytest.mark.parametrize(
    "statement",
    [
        "map_kd t.png",
        "MAP_KD t.png",
        "map_Kd -s 1 1 1 -o 0 0 0 t.png",
        "map_Kd -clamp on -bm 0.5 -mm 0 1 t.png",
        "map_Kd -s 1 1 t.png",
        "map_Kd a folder\\t.png",
        "map_Kd D:\\x\\T.PNG",
        'map_Kd "t.png"',
    ],
)
@pytest.mark.parametrize("bom", [False, True])
def test_mtl_texture_statements(tmp_path: Path, statement: str, bom: bool):
    write_mtl(tmp_path, statement, bom=bom)
    save_texture(tmp_path / "t.png")
    assert corners(read_mesh(write_obj(tmp_path))) == POSTER


def test_a_texture_name_with_blanks_after_options(tmp_path: Path):
    write_mtl(tmp_path, "map_Kd -s 1 1 1 my red picture.png")
    save_texture(tmp_path / "my red picture.png")
    assert corners(read_mesh(write_obj(tmp_path))) == POSTER


def test_scale_and_offset_of_a_texture(tmp_path: Path):
    """Half of the scale and half an offset show the upper right quarter of the texture, which is green."""
    write_mtl(tmp_path, "map_Kd -s .49 .49 1 -o .505 .505 0 t.png")
    save_texture(tmp_path / "t.png")
    assert corners(read_mesh(write_obj(tmp_path))) == [[0, 255, 0]] * 4


@pytest.mark.parametrize("head", ["o poster", "mtllib a.mtl\nusemtl m"])
def test_obj_vertex_colours_beside_texture_coordinates(tmp_path: Path, head: str):
    (tmp_path / "a.mtl").write_text("newmtl m\nKd 0.8 0.8 0.8\n")
    mesh = read_mesh(write_obj(tmp_path, head=head, rgb=True))
    assert mesh.vertex_rgb is not None
    assert mesh.vertex_rgb.tolist() == POSTER
    assert mesh.notes == ()


def test_an_unknown_material_and_a_missing_library_are_said(tmp_path: Path):
    write_mtl(tmp_path)
    save_texture(tmp_path / "t.png")
    mesh = read_mesh(write_obj(tmp_path, head="mtllib a.mtl\nusemtl wood"))
    assert mesh.notes == ("the material 'wood' is in no material library", GREY)
    mesh = read_mesh(write_obj(tmp_path, head="mtllib b.mtl\nusemtl m"))
    assert mesh.notes[0] == "the material library 'b.mtl' is missing"
    assert GREY in mesh.notes
    mesh = read_mesh(write_obj(tmp_path, rgb=True, vt=False))
    assert mesh.notes == ("no texture coordinates for the texture t.png",)
    assert mesh.vertex_rgb is not None


def test_obj_of_two_materials_keeps_the_colours_of_each(tmp_path: Path):
    write_mtl(tmp_path)
    save_texture(tmp_path / "t.png")
    path = write_obj(tmp_path)
    with (tmp_path / "a.mtl").open("a") as stream:
        stream.write("newmtl plain\nKd 0 1 1\n")
    with path.open("a") as stream:
        stream.write("usemtl plain\nv -60 -40 20\nv 60 -40 20\nv 0 40 20\nf -3 -2 -1\n")
    mesh = read_mesh(path)
    assert corners(mesh) == POSTER
    behind = Mesh(mesh.vertices_m, mesh.faces[-1:], uv=mesh.uv, texture_rgb=mesh.texture_rgb)
    assert corners(behind)[0] in ([0, 255, 255], [0, 0, 0])
    assert [0, 255, 255] in corners(behind)


@pytest.mark.parametrize("face", ["f 1 2 9", "f 1 2 -9", "f 1 2 0", "f 1/1 2/2 3/99", "f 1 2 x", "v 1 2"])
def test_damaged_obj_files_are_refused(tmp_path: Path, face: str):
    path = write_obj(tmp_path, head="o poster")
    path.write_text(path.read_text() + face + "\n")
    with pytest.raises(PicoPoseError, match="not a readable mesh"):
        read_mesh(path)


@pytest.mark.parametrize(
    "names", [("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), tuple("rgb")]
)
@pytest.mark.parametrize(
    ("kind", "scale"), [("uchar", 1), ("double", 1), ("float", 1 / 255), ("ushort", 257), ("int", 1)]
)
def test_ply_colours_of_every_name_and_type(tmp_path: Path, names: tuple[str, ...], kind: str, scale: float):
    box = make_box()
    path = write_ply(tmp_path / "a.ply", Mesh(box.vertices_m, box.faces))
    assert box.vertex_rgb is not None
    head, body = path.read_text().split("end_header\n")
    rows = body.splitlines()
    for i, rgb in enumerate(box.vertex_rgb.tolist()):
        rows[i] += " " + " ".join(f"{value * scale:.9g}" for value in rgb)
    columns = "".join(f"property {kind} {name}\n" for name in names)
    head = head.replace("element face", columns + "element face")
    path.write_text(f"{head}end_header\n" + "\n".join(rows) + "\n")
    mesh = read_mesh(path)
    np.testing.assert_array_equal(mesh.vertex_rgb, box.vertex_rgb)
    assert mesh.notes == ()


def test_ply_of_several_textures(tmp_path: Path):
    """Two posters, one behind the other, the second with a texture that is turned by half."""
    poster = make_poster()
    assert poster.uv is not None
    assert poster.texture_rgb is not None
    rows = [" ".join(map(str, vertex)) for vertex in (poster.vertices_m * 1000).tolist()]
    rows += [" ".join(map(str, vertex)) for vertex in (poster.vertices_m * 1000 + [0, 0, 50]).tolist()]
    for number in (0, 1):
        for face in poster.faces:
            uv = " ".join(map(str, poster.uv[face].reshape(-1)))
            rows.append(f"3 {' '.join(map(str, face + 4 * number))} 6 {uv} {number}")
    header = "ply\nformat ascii 1.0\ncomment TextureFile t.png\ncomment TextureFile turned.png\nelement vertex 8\n"
    header += "".join(f"property float {axis}\n" for axis in "xyz") + "element face 4\n"
    header += "property list uchar int vertex_indices\nproperty list uchar float texcoord\nproperty int texnumber\n"
    (tmp_path / "a.ply").write_text(header + "end_header\n" + "\n".join(rows) + "\n")
    save_texture(tmp_path / "t.png")
    Image.fromarray(poster.texture_rgb[::-1, ::-1].copy()).save(tmp_path / "turned.png")
    mesh = read_mesh(tmp_path / "a.ply")
    assert corners(mesh) == POSTER
    behind = Mesh(mesh.vertices_m - [0, 0, 0.05], mesh.faces[2:], uv=mesh.uv, texture_rgb=mesh.texture_rgb)
    assert corners(behind) == POSTER[::-1]


@pytest.mark.parametrize("name", ["C:\\scans\\t.png", "scans\\t.png", ".\\t.png", "/other/machine/t.png", "T.PNG"])
def test_paths_of_other_machines_in_a_ply(tmp_path: Path, name: str):
    save_texture(tmp_path / "t.png")
    assert corners(read_mesh(write_ply(tmp_path / "a.ply", make_poster(), texture=name))) == POSTER


@pytest.mark.parametrize("kind", ["grey 16", "rgb 16 png", "rgb 16 tiff", "float"])
def test_deep_textures_are_scaled_to_8_bits(tmp_path: Path, kind: str):
    texture = make_poster().texture_rgb
    assert texture is not None
    name = "t.png" if "png" in kind else "t.tiff"
    deep = texture.astype(np.uint16) * 257
    if kind == "grey 16":
        Image.fromarray(deep[..., 0]).save(tmp_path / name)
    elif kind == "float":
        Image.fromarray(texture[..., 0].astype(np.float32) / 255).save(tmp_path / name)
    else:
        cv2.imwrite(str(tmp_path / name), deep[..., ::-1])
    mesh = read_mesh(write_ply(tmp_path / "a.ply", make_poster(), texture=name))
    wanted = POSTER if "rgb" in kind else [[rgb[0]] * 3 for rgb in POSTER]
    assert corners(mesh) == wanted


@pytest.mark.parametrize("name", ["t.png", "t.jpg", "t.tiff"])
def test_a_truncated_texture_is_refused(tmp_path: Path, name: str):
    save_texture(tmp_path / name)
    path = write_ply(tmp_path / "a.ply", make_poster(), texture=name)
    assert read_mesh(path).texture_rgb is not None
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(PicoPoseError, match="the texture cannot be read"):
        read_mesh(path)


def test_a_changed_byte_of_a_png_texture_is_noticed(tmp_path: Path):
    """Decoders compare the checksums of a PNG's header only."""
    save_texture(tmp_path / "a.png")
    path = write_ply(tmp_path / "a.ply", make_poster(), texture="a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[data.index(b"IDAT") + 30] ^= 4
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PicoPoseError, match="the texture cannot be read"):
        read_mesh(path)


def test_a_mesh_that_ends_up_grey_says_why(tmp_path: Path):
    assert read_mesh(write_ply(tmp_path / "a.ply", make_box(coloured=False))).notes == (GREY,)
    notes = read_mesh(write_ply(tmp_path / "b.ply", make_poster())).notes
    assert notes == ("texture coordinates, but no comment TextureFile that names a texture", GREY)


def test_names_that_the_system_cannot_use(tmp_path: Path):
    long = "x" * 5000
    with pytest.raises(PicoPoseError, match="the texture 'xxx") as caught:
        read_mesh(write_ply(tmp_path / "a.ply", make_poster(), texture=long + ".png"))
    assert len(str(caught.value)) < 400
    path = write_obj(tmp_path, head=f"mtllib {long}.mtl\nusemtl {long}")
    assert all(len(note) < 200 for note in read_mesh(path).notes)
    write_mtl(tmp_path, f"map_Kd {long}")
    for read in (read_mesh, mesh_sha256):
        with pytest.raises(PicoPoseError, match="the texture 'xxx"):
            read(write_obj(tmp_path))
    with pytest.raises(PicoPoseError, match="missing"):
        read_mesh(tmp_path / f"{long}.ply")


def test_a_mesh_that_is_a_folder(tmp_path: Path):
    for name in ("a.ply", "a.obj", "a.glb"):
        (tmp_path / name).mkdir()
        for read in (read_mesh, mesh_sha256):
            with pytest.raises(PicoPoseError, match="is a folder"):
                read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_mesh_that_may_not_be_read(tmp_path: Path):
    path = write_ply(tmp_path / "a.ply", make_box())
    path.chmod(0)
    with pytest.raises(PicoPoseError, match="Permission denied"):
        read_mesh(path)


def test_an_unknown_unit(tmp_path: Path):
    with pytest.raises(PicoPoseError, match="the unit 'inch' is not known"):
        read_mesh(write_ply(tmp_path / "a.ply", make_box()), "inch")


@pytest.mark.parametrize("textured", [True, False])
def test_the_quick_render_differs_at_edges_alone(textured: bool):
    mesh = make_poster() if textured else make_box()
    renderer = SoftwareRenderer(mesh, template_camera(), TEMPLATE_SIZE_HW)
    pose = make_T(cv2.Rodrigues(np.array([0.4, -0.5, 0.3]))[0], np.array([0.01, 0.0, 0.5]))
    view, quick = renderer.render(pose), renderer.render_quickly(pose)
    np.testing.assert_allclose(quick.depth_m, view.depth_m, atol=1e-6)
    np.testing.assert_array_equal(quick.alpha, np.where(view.depth_m > 0, 255, 0))
    difference = np.abs(quick.rgb.astype(int) - view.rgb).max(axis=2)
    inner = cv2.erode((view.depth_m > 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert inner.sum() > 2000
    assert np.quantile(difference[inner], 0.9) <= 8
    assert not quick.rgb[view.depth_m == 0].any()
