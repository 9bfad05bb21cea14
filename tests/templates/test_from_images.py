"""Banks from ready-made template images: the released data path, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.meshes import make_box
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import invert_T, transform_points
from picopose_cli.base.options import RenderTemplatesOptions
from picopose_cli.commands.render_templates import run
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates.bank import bank_path, read_bank
from picopose_cli.templates.from_images import image_object_ids, images_sha256, read_image_bank
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera


def write_views(folder: Path, obj_id: int, rgba: np.ndarray, depth_mm: np.ndarray, poses_mm: np.ndarray) -> None:
    views = folder / f"{obj_id:06d}"
    views.mkdir(parents=True)
    (folder / "object_poses").mkdir(exist_ok=True)
    np.save(folder / "object_poses" / f"{obj_id:06d}.npy", poses_mm)
    for v in range(len(poses_mm)):
        Image.fromarray(rgba[v]).save(views / f"{v:06d}.png")
        Image.fromarray(depth_mm[v]).save(views / f"{v:06d}_depth.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two views of one object, rendered here."""
    poses = place_views(0.173)[[5, 100]]
    renderer = SoftwareRenderer(make_box(), template_camera(), TEMPLATE_SIZE_HW)
    views = [renderer.render(pose) for pose in poses]
    rgba = np.stack([np.concatenate([view.rgb, view.alpha[..., None]], axis=-1) for view in views])
    depth_mm = np.stack([np.rint(view.depth_m * 1000).astype(np.uint16) for view in views])
    poses[:, :3, 3] *= 1000
    write_views(tmp_path / "images", 3, rgba, depth_mm, poses)
    return tmp_path / "images"


def test_released_templates_give_the_released_inputs(shared_dir: Path, tmp_path: Path):
    with np.load(shared_dir / "golden" / "network.npz") as golden:
        for o in (0, 1):
            views = (golden[f"template_{name}_{o}"] for name in ("rgba", "depth_mm", "pose_mm"))
            write_views(tmp_path / "images", o + 1, *views)
        masks, affines, points = (golden[f"template_in_{name}"] for name in ("mask", "M", "pts"))
        T_released = golden["template_in_pose"].astype(np.float64)
    report = run(RenderTemplatesOptions(from_images=tmp_path / "images", templates=tmp_path / "banks"))
    assert (report.written, report.exit_code, report.renderer) == ([1, 2], 0, "images")
    for o in (0, 1):
        bank = read_bank(bank_path(tmp_path / "banks", o + 1))
        np.testing.assert_array_equal(bank.masks, masks[o] > 0)
        np.testing.assert_array_equal(bank.A_crop_from_image, affines[o])
        np.testing.assert_allclose(bank.T_tmpl_from_obj, T_released[o], atol=1e-6)
        expected = transform_points(invert_T(T_released[o]), points[o].reshape(8, -1, 3))
        np.testing.assert_allclose(bank.xyz_obj_m.reshape(8, -1, 3), expected, atol=8e-7)
        assert bank.provenance.renderer == "images"
        assert 0.1 < bank.diameter_m < 0.5


def test_a_bank_of_any_number_of_views(folder: Path):
    bank = read_image_bank(folder, 3)
    assert bank.crops_rgb.shape == (2, 224, 224, 3)
    assert image_object_ids(folder) == [3]
    assert 0.13 < bank.diameter_m < 0.18  # two views see almost all of the box of diagonal 0.173
    assert bank.provenance.source_sha256 == images_sha256(folder, 3)
    np.testing.assert_array_equal(bank.K, template_camera())


def replace_image(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path)


VIEW, DEPTH, POSES = "000003/000001.png", "000003/000001_depth.png", "object_poses/000003.npy"


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / VIEW).unlink(), r"000001\.png.*missing"),
        (lambda folder: (folder / DEPTH).unlink(), r"000001_depth\.png.*missing"),
        (lambda folder: (folder / POSES).unlink(), r"000003\.npy"),
        (lambda folder: (folder / POSES).write_bytes(b""), "poses cannot be read"),
        (lambda folder: (folder / POSES).write_bytes((folder / POSES).read_bytes()[:200]), "poses cannot be read"),
        (lambda folder: np.save(folder / POSES, np.array([{}]), allow_pickle=True), "poses cannot be read"),
        (lambda folder: np.save(folder / POSES, np.eye(4)), r"shape \(4, 4\)"),
        (lambda folder: np.save(folder / POSES, np.zeros((2, 4, 4))), "not a rigid transform"),
        (lambda folder: np.save(folder / POSES, np.full((2, 4, 4), np.nan)), "not a rigid transform"),
        (lambda folder: np.save(folder / POSES, np.load(folder / POSES)[:1]), "2 images but 1 poses"),
        (
            lambda folder: np.save(folder / POSES, np.load(folder / POSES)[[0, 1, 1]]),
            r"000002\.png.*missing",
        ),
        (lambda folder: (folder / VIEW).write_bytes((folder / VIEW).read_bytes()[:900]), "cannot be read"),
        (lambda folder: (folder / VIEW).write_bytes(b"text"), "cannot be read"),
        (lambda folder: replace_image(folder / VIEW, np.zeros((480, 640, 3), np.uint8)), "3 channels.*RGB and alpha"),
        (lambda folder: replace_image(folder / VIEW, np.zeros((240, 320, 4), np.uint8)), "320x240"),
        (lambda folder: replace_image(folder / VIEW, np.zeros((480, 640, 4), np.uint8)), "shows nothing"),
        (lambda folder: replace_image(folder / DEPTH, np.zeros((480, 640), np.uint16)), "has no depth"),
        (lambda folder: replace_image(folder / DEPTH, np.zeros((480, 640, 3), np.uint8)), "16-bit depth"),
    ],
)
def test_what_is_missing_or_damaged_is_named(folder: Path, spoil, text: str):
    spoil(folder)
    with pytest.raises(PicoPoseError, match=text) as caught:
        read_image_bank(folder, 3)
    assert "\n" not in str(caught.value)


def test_folders_without_templates_are_refused(tmp_path: Path):
    with pytest.raises(PicoPoseError, match="does not exist"):
        image_object_ids(tmp_path / "none")
    with pytest.raises(PicoPoseError, match="no template images"):
        image_object_ids(tmp_path)


def test_one_broken_object_does_not_stop_the_others(folder: Path, tmp_path: Path):
    (folder / "000009").mkdir()
    report = run(RenderTemplatesOptions(from_images=folder, templates=tmp_path / "banks"))
    assert (report.written, list(report.failed), report.exit_code) == ([3], [9], 1)
    again = run(RenderTemplatesOptions(from_images=folder, templates=tmp_path / "banks", object_ids=(3,)))
    assert (again.written, again.kept, again.exit_code) == ([], [3], 0)
    replace_image(folder / DEPTH, np.full((480, 640), 500, np.uint16))
    changed = run(RenderTemplatesOptions(from_images=folder, templates=tmp_path / "banks", object_ids=(3,)))
    assert changed.written == [3]
