"""Banks: what is stored is what the released network sees, comes back unchanged, and damage is named."""

from __future__ import annotations

import errno
import fcntl
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.meshes import make_box, write_ply

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import invert_T, project_points, transform_points
from picopose_cli.base.grid import cell_corner_pixels, lift_cell_corners
from picopose_cli.base.types import Provenance, RenderedView, TemplateBank
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates.bank import BANK_VERSION, bank_path, read_bank, read_provenance, write_bank
from picopose_cli.templates.build import join_templates, make_template, render_bank
from picopose_cli.templates.crops import normalise_bgr, resize_nearest
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

SOURCE = Provenance("obj_000001.ply", "ab" * 32, "mm", "software", "test", "picopose=0")
K = template_camera()
STORED_PER_VIEW = ("crops_rgb", "masks", "depth_corner_m", "depth_centre_m", "A_crop_from_image", "T_tmpl_from_obj")


@pytest.fixture(scope="module")
def bank() -> TemplateBank:
    """A bank of three views of a box."""
    poses = place_views(0.15)[[3, 80, 140]]
    renderer = SoftwareRenderer(make_box((0.1, 0.06, 0.08)), K, TEMPLATE_SIZE_HW)
    templates = [make_template(renderer.render(pose)) for pose in poses]
    return join_templates(1, templates, K, poses, 0.15, SOURCE)


@pytest.fixture
def path(tmp_path: Path, bank: TemplateBank) -> Path:
    path = bank_path(tmp_path, 1)
    write_bank(path, bank)
    return path


@pytest.mark.parametrize("o", [0, 1])
def test_templates_are_what_the_released_network_saw(shared_dir: Path, o: int):
    with np.load(shared_dir / "golden" / "network.npz") as golden:
        rgba, depth_mm = golden[f"template_rgba_{o}"], golden[f"template_depth_mm_{o}"]
        poses = golden[f"template_pose_mm_{o}"]
        masks, affines, points = (golden[f"template_in_{name}"][o] for name in ("mask", "M", "pts"))
        T_released, first_input = golden["template_in_pose"][o], golden["template_in_rgb_first"]
    poses[:, :3, 3] /= 1000
    for v, pose in enumerate(poses):
        depth_m = (depth_mm[v] / 1000).astype(np.float32)
        template = make_template(RenderedView(rgba[v, ..., :3], rgba[v, ..., 3], depth_m))
        np.testing.assert_array_equal(template.mask, masks[v] > 0)
        np.testing.assert_array_equal(template.A_crop_from_image, affines[v])
        expected = transform_points(invert_T(T_released[v].astype(np.float64)), points[v].reshape(-1, 3))
        xyz = lift_cell_corners(template.depth_corner_m, K, template.A_crop_from_image, pose)
        np.testing.assert_allclose(xyz.reshape(-1, 3), expected, atol=2e-7)
        if (o, v) == (0, 0):
            inputs = normalise_bgr(template.crop_rgb[None])[0]
            assert np.abs(inputs - first_input).max() < 0.5 / 255 / 0.26 + 1e-4  # rounded to u8


def test_centre_depth_is_the_depth_at_the_cells_centres(bank: TemplateBank):
    """Lifted at the exact cell centre it lies on the box's surface, but for the half pixel to the nearest sample."""
    for v in range(3):
        rows, cols = np.nonzero(bank.depth_centre_m[v])
        crop_px = (np.stack([cols, rows], axis=1) + 0.5) * 3.5
        uv = (crop_px - bank.A_crop_from_image[v, :2, 2]) / bank.A_crop_from_image[v, 0, 0]
        rays = np.concatenate([uv, np.ones((len(uv), 1))], axis=1) @ np.linalg.inv(K).T
        xyz = transform_points(
            invert_T(bank.T_tmpl_from_obj[v]), rays * bank.depth_centre_m[v][rows, cols][:, None].astype(float)
        )
        beyond = np.abs(xyz) / (np.array([0.1, 0.06, 0.08]) / 2)
        assert np.median(np.abs(beyond.max(axis=1) - 1)) < 0.005
        assert len(rows) > 500


def test_released_points_project_to_their_top_left_pixel(bank: TemplateBank):
    v = 1
    uv = project_points(K, transform_points(bank.T_tmpl_from_obj[v], bank.xyz_obj_m[v].reshape(-1, 3))[2000:2010])
    crop = uv * bank.A_crop_from_image[v, 0, 0] + bank.A_crop_from_image[v, :2, 2]
    cells = np.stack([np.arange(2000, 2010) % 64, np.arange(2000, 2010) // 64], axis=1)
    offset = crop - cells * 3.5
    assert (offset > -1.5).all()  # at or left of the cell's corner by less than a pixel
    assert (offset < 0.01).all()


def test_cells_without_depth_hold_the_cameras_centre(bank: TemplateBank):
    corner = bank.xyz_obj_m[:, 0, 0]
    np.testing.assert_allclose(corner, invert_T(bank.T_tmpl_from_obj)[:, :3, 3], atol=1e-6)


def test_a_bank_comes_back(bank: TemplateBank, path: Path):
    again = read_bank(path)
    for name in (*STORED_PER_VIEW, "K", "xyz_obj_m"):
        np.testing.assert_array_equal(getattr(again, name), getattr(bank, name))
        assert getattr(again, name).dtype == getattr(bank, name).dtype
    assert (again.obj_id, again.diameter_m, again.provenance) == (1, 0.15, SOURCE)
    assert read_provenance(path) == SOURCE
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with h5py.File(path) as file:
        assert all(file[name].chunks == (1, *file[name].shape[1:]) for name in STORED_PER_VIEW)


def test_points_and_depths_are_whole_micrometres(bank: TemplateBank):
    for lengths_m in (bank.xyz_obj_m, bank.depth_centre_m):
        assert lengths_m.dtype == np.float32
        steps = lengths_m.astype(np.float64) * 1e6
        assert np.abs(steps - np.rint(steps)).max() < 0.05  # float32 holds 0.4 m to 0.03 micrometres


def test_corner_pixels_are_those_of_the_nearest_resize():
    for side in range(2, 481, 2):
        ramp = np.tile(np.arange(side, dtype=np.int32), (side, 1)).astype(np.float32)
        rows, cols = cell_corner_pixels((5, 5 + side, 9, 9 + side))
        np.testing.assert_array_equal(cols[0] - 9, resize_nearest(ramp, 64)[0])
        np.testing.assert_array_equal(rows[:, 0] - 5, resize_nearest(ramp.T, 64)[:, 0])


def test_a_rendered_bank_says_where_it_is_from(tmp_path: Path):
    mesh = write_ply(tmp_path / "obj_000007.ply", make_box())
    bank = render_bank(7, mesh, mesh_unit="mm", kind="software", threads=2)
    assert bank.obj_id == 7
    assert bank.crops_rgb.shape == (162, 224, 224, 3)
    assert bank.masks.any(axis=(1, 2)).all()
    np.testing.assert_allclose(bank.diameter_m, 0.1 * np.sqrt(3), rtol=1e-6)
    assert (bank.provenance.source, bank.provenance.mesh_unit) == ("obj_000007.ply", "mm")
    assert bank.provenance.renderer == "software"
    assert len(bank.provenance.source_sha256) == 64
    assert "numpy=" in bank.provenance.versions
    alone = render_bank(7, mesh, mesh_unit="mm", kind="software")
    np.testing.assert_array_equal(alone.crops_rgb, bank.crops_rgb)
    np.testing.assert_array_equal(alone.xyz_obj_m, bank.xyz_obj_m)


def damage(path: Path, name: str, value: np.ndarray | None) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if value is not None:
            file[name] = value


def change_attribute(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def change_number(path: Path, name: str, place: tuple, value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][place] = value


def make_group(path: Path, name: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_group(name)


def claim_views(path: Path, views: int) -> None:
    """Declare many views without storing them, as a few changed bytes of a header do."""
    with h5py.File(path, "r+") as file:
        for name in STORED_PER_VIEW:
            shape, dtype = file[name].shape, file[name].dtype
            del file[name]
            file.create_dataset(name, (views, *shape[1:]), dtype, chunks=(1, *shape[1:]))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        *((lambda path, name=name: make_group(path, name), f"{name} is missing or not an array")
          for name in (*STORED_PER_VIEW, "K")),
        *((lambda path, value=value: change_attribute(path, "obj_id", value), "its object id is missing")
          for value in (np.inf, np.nan, -1, 1.5, "1", [1, 2])),
        (lambda path: change_attribute(path, "obj_id", 2), "it holds the templates of object 2"),
        *((lambda path, value=value: change_attribute(path, "diameter_m", value), "its diameter is not")
          for value in (np.inf, np.nan, -1.0, 0.0, 1e30, "wide", [0.1, 0.1])),
        *((lambda path, value=value: change_attribute(path, "centre_m", value), "its centre is not")
          for value in (1.0, [1.0, 2.0], [np.nan] * 3, [1e30, 0.0, 0.0], "here")),
        *((lambda path, value=value: change_attribute(path, "mesh_unit", value), "its mesh.unit")
          for value in ("inch", "", 3)),
        (lambda path: change_attribute(path, "format", 3), "not a template bank"),
        (lambda path: change_attribute(path, "format_version", [2, 2]), "this version reads"),
        (lambda path: change_attribute(path, "format_version", "x" * 5000), "this version reads"),
        (lambda path: claim_views(path, 20_000), "it has 20000 views, more than 1000"),
        *((lambda path, place=place, value=value: change_number(path, "K", place, value), "K is not a camera")
          for place, value in (((0, 0), 1e30), ((0, 0), -570.0), ((1, 1), 0.0), ((0, 2), 1e30), ((2, 2), 2.0))),
        *((lambda path, place=place, value=value: change_number(path, "A_crop_from_image", (1, *place), value),
           "A_crop_from_image is not")
          for place, value in (
              ((0, 0), 1e30), ((0, 0), 0.0), ((0, 0), -1.4), ((0, 2), 1e30), ((2, 0), 1.0), ((0, 1), 1.0))),
        *((lambda path, place=place, value=value: change_number(path, "T_tmpl_from_obj", (1, *place), value), text)
          for place, value, text in (
              ((0, 0), 1e30, "not a rigid transform"), ((3, 3), 2.0, "not a rigid transform"),
              ((2, 3), -0.3, "not in front of its camera"), ((0, 3), 1e30, "not in front of its camera"))),
        (lambda path: change_number(path, "masks", (0, 5, 5), 7), "masks holds other values"),
        (lambda path: change_number(path, "masks", (slice(None),), 0), "its masks are empty"),
        (lambda path: change_number(path, "depth_centre_m", (0, 5, 5), -1), "depth_centre_m holds depths"),
        (lambda path: change_number(path, "depth_corner_m", (0, 5, 5), 1e30), "depth_corner_m holds depths"),
        (lambda path: change_number(path, "depth_centre_m", (slice(None),), 0), "depth_centre_m is empty"),
    ],
)  # fmt: skip
def test_what_no_renderer_writes_is_refused(path: Path, spoil, text: str):
    spoil(path)
    with pytest.raises(PicoPoseError, match=text) as caught:
        read_bank(path)
    assert "render" in str(caught.value.fix)
    assert len(str(caught.value)) < 300 + len(str(path))


def test_a_bank_of_another_object_under_this_name_is_refused(path: Path):
    other = bank_path(path.parent, 2)
    path.rename(other)
    for read in (read_bank, read_provenance):
        with pytest.raises(PicoPoseError, match="it holds the templates of object 1"):
            read(other)
    free = other.rename(path.parent / "cup.h5")
    assert read_bank(free).obj_id == 1


def test_texts_of_the_hdf5_library_stay_inside(path: Path):
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(PicoPoseError) as caught:
        read_bank(path)
    assert caught.value.what == "not a readable template bank (damaged, truncated or another format)"


def test_a_bank_needs_no_lock(path: Path):
    """Another process's lock stands for a file system without locks: h5py refuses both unless told not to lock."""
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            h5py.File(path, "r", locking=True).close()
        except OSError:
            pass
        else:
            pytest.skip("this HDF5 library never locks")
        assert read_bank(path).obj_id == 1
        assert read_provenance(path) == SOURCE


def test_notes_and_a_centre_are_stored_only_where_there_are_any(tmp_path: Path, bank: TemplateBank):
    write_bank(bank_path(tmp_path, 1), bank)
    with h5py.File(bank_path(tmp_path, 1)) as file:
        assert not {"notes", "centre_m"} & set(file.attrs)
    doubtful = replace(bank, provenance=replace(SOURCE, notes="grey"), centre_m=np.array([0.01, 0.0, -0.02]))
    write_bank(bank_path(tmp_path, 1), doubtful)
    again = read_bank(bank_path(tmp_path, 1))
    assert again.provenance.notes == "grey"
    np.testing.assert_array_equal(again.centre_m, doubtful.centre_m)


def test_a_mesh_off_its_origin_has_the_templates_of_the_centred_one(tmp_path: Path):
    """A shift by 0.6 diameters once cut 70 of 162 views at the image's border."""
    box = make_box((0.1, 0.06, 0.08))
    shift = 0.6 * np.linalg.norm([0.1, 0.06, 0.08]) * np.array([0.6, 0.0, 0.8])
    moved = replace(box, vertices_m=box.vertices_m + shift)
    paths = [write_ply(tmp_path / name / "obj_000001.ply", mesh) for name, mesh in (("a", box), ("b", moved))]
    centred, off = (render_bank(1, path, mesh_unit="mm", kind="software") for path in paths)
    assert not centred.centre_m.any()
    np.testing.assert_allclose(off.centre_m, shift, atol=1e-8)
    assert np.abs(off.crops_rgb.astype(int) - centred.crops_rgb).mean() < 0.02
    assert (off.masks == centred.masks).mean() > 0.9999
    seen = (off.depth_centre_m > 0) & (centred.depth_centre_m > 0)
    distance = np.abs(off.xyz_obj_m - shift - centred.xyz_obj_m)[
        (off.depth_corner_m > 0) & (centred.depth_corner_m > 0)
    ]
    assert seen.mean() > 0.3
    assert np.quantile(distance, 0.999) < 1e-5
    write_bank(bank_path(tmp_path, 1), off)
    np.testing.assert_array_equal(read_bank(bank_path(tmp_path, 1)).centre_m, off.centre_m)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda path: path.unlink(), "missing.*render-templates"),
        (lambda path: path.write_bytes(b"nothing of the kind"), "not a readable template bank"),
        (lambda path: path.write_bytes(b""), "not a readable template bank"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "not a readable template bank"),
        (lambda path: damage(path, "K", None), "K is missing or not an array"),
        (lambda path: damage(path, "K", np.eye(4)), r"K is float64 \(4, 4\), needs float64 \(3, 3\)"),
        (lambda path: damage(path, "K", np.eye(3, dtype=np.float32)), "K is float32"),
        (lambda path: damage(path, "K", np.full((3, 3), np.nan)), "K holds NaN"),
        (lambda path: damage(path, "T_tmpl_from_obj", np.ones((3, 4, 4))), "not a rigid transform"),
        (lambda path: damage(path, "masks", np.zeros((2, 224, 224), np.uint8)), r"masks is uint8 \(2, 224, 224\)"),
        (lambda path: damage(path, "crops_rgb", np.zeros((0, 224, 224, 3), np.uint8)), "crops_rgb"),
    ],
)
def test_damage_is_named(path: Path, spoil, text: str):
    spoil(path)
    with pytest.raises(PicoPoseError, match=text) as caught:
        read_bank(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "render" in str(caught.value.fix or "")


def test_another_format_version_or_file_is_refused(path: Path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = BANK_VERSION + 1
    for read in (read_bank, read_provenance):
        with pytest.raises(PicoPoseError, match=f"format {BANK_VERSION + 1}, this version reads {BANK_VERSION}"):
            read(path)
    with h5py.File(path, "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(PicoPoseError, match="HDF5 file, but not a template bank"):
        read_bank(path)


def test_a_changed_byte_anywhere_is_noticed_or_changes_nothing(path: Path):
    """The structure has checksums too: without, some of these once made the HDF5 library loop forever."""
    rng, whole, sound, noticed = np.random.default_rng(0), path.read_bytes(), read_bank(path), 0
    for place in (*rng.integers(0, 4000, 200), *rng.integers(0, len(whole), 200)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        try:
            found = read_bank(path)
        except PicoPoseError:
            noticed += 1
            continue
        assert found.provenance == sound.provenance
        for name in (*STORED_PER_VIEW, "K", "diameter_m", "obj_id", "centre_m"):
            np.testing.assert_array_equal(getattr(found, name), getattr(sound, name))
    assert noticed > 250


@pytest.mark.parametrize("name", [*STORED_PER_VIEW, "K"])
def test_a_flipped_byte_is_noticed(path: Path, name: str):
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    whole, position = path.read_bytes(), chunk.byte_offset + chunk.size // 2
    path.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
    with pytest.raises(PicoPoseError, match="not a readable template bank"):
        read_bank(path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, bank: TemplateBank, monkeypatch):
    path = bank_path(tmp_path, 1)
    write_bank(path, bank)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PicoPoseError, match="No space left on device"):
        write_bank(path, replace(bank, diameter_m=9.0))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_too_little_to_crop_is_refused():
    view = RenderedView(np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.uint8), np.zeros((480, 640)))
    with pytest.raises(PicoPoseError, match="mask is empty"):
        make_template(view)
