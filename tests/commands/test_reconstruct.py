"""The command: folders that are understood, what is written, and that bad input is named."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.meshes import make_box
from helpers.reference_photos import Photo, sphere_directions, take_photos, write_photos, write_scene

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.guide_options import ReconstructOptions
from picopose_cli.commands import reconstruct as command
from picopose_cli.reconstruction.reading import find_photographs, load_views
from picopose_cli.rendering.meshes import read_mesh, read_shape

BOX_M = (0.06, 0.05, 0.08)


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return take_photos(make_box(BOX_M), sphere_directions(12))


def run(images: Path, **changes) -> command.ReconstructResult:
    return command.run(ReconstructOptions(images, **({"resolution": 16} | changes)))


def test_a_plain_folder_becomes_a_model(tmp_path: Path, photos, capsys):
    write_photos(tmp_path / "photos", photos)
    (tmp_path / "photos/masks/photo_02.png").unlink()
    models = tmp_path / "models"
    models.mkdir()
    symmetry = {"axis": [0, 0, 1], "offset": [0, 0, 0]}
    infos = {"7": {"diameter": 5}, "4": {"diameter": 1, "symmetries_continuous": [symmetry]}}
    (models / "models_info.json").write_text(json.dumps(infos))
    result = run(tmp_path / "photos", object_id=4, output=models / "obj_000004.ply")
    assert result.exit_code == 1
    assert list(result.problems) == ["photo_02.png"]
    assert sorted(path.name for path in models.iterdir()) == [
        "models_info.json", "obj_000004.ply", "obj_000004.png", "obj_000004.reconstruction.json",
        "obj_000004.reconstruction.png",
    ]  # fmt: skip
    mesh = read_mesh(models / "obj_000004.ply")
    assert mesh.texture_rgb is not None
    assert not mesh.notes
    np.testing.assert_allclose(np.ptp(mesh.vertices_m, axis=0), BOX_M, atol=0.008)
    assert len(read_shape(models / "obj_000004.ply").vertices_m) == len(result.made.surface.vertices)
    infos = json.loads((models / "models_info.json").read_text())
    assert infos["7"] == {"diameter": 5}
    assert infos["4"]["symmetries_continuous"] == [symmetry]
    assert infos["4"]["diameter"] == pytest.approx(1000 * np.linalg.norm(BOX_M), rel=0.1)
    report = json.loads((models / "obj_000004.reconstruction.json").read_text())
    assert report["not_usable"] == result.problems
    assert set(report["views"]) | set(report["left_out"]) == {f"photo_{i:02d}.png" for i in range(12) if i != 2}
    assert report["silhouette_iou"]["mean"] > 0.9
    assert "left out: photo_02.png: there is no mask photo_02.png" in capsys.readouterr().out
    assert run(tmp_path / "photos", object_id=4, output=models / "obj_000004.ply").exit_code == 1  # again


def test_a_cad_model_is_not_overwritten(tmp_path: Path, photos):
    write_photos(tmp_path / "photos", photos)
    (tmp_path / "obj_000001.ply").write_text("ply")
    with pytest.raises(PicoPoseError, match="exists and was not made by picopose reconstruct"):
        run(tmp_path / "photos", output=tmp_path / "obj_000001.ply")
    with pytest.raises(PicoPoseError, match=r"not the name of a \.ply file"):
        run(tmp_path / "photos", output=tmp_path / "obj_000001.obj")


def read(folder: Path, obj_id: int | None = None, masks: str = "auto"):
    found = find_photographs(folder, obj_id, masks)
    return found, *load_views(found, lambda _: None)


def test_masks_from_alpha(tmp_path: Path, photos):
    write_photos(tmp_path / "alpha", photos[:2], alpha=True)
    write_photos(tmp_path / "files", photos[:2])
    (_, of_alpha, _), (_, of_files, _) = read(tmp_path / "alpha"), read(tmp_path / "files", masks="files")
    for a, b in zip(of_alpha, of_files, strict=True):
        np.testing.assert_array_equal(a.silhouette, b.silhouette)
    _, views, problems = read(tmp_path / "files", masks="alpha")
    assert not views
    assert "has no alpha channel" in problems["photo_00.png"]
    with pytest.raises(PicoPoseError, match="there is no folder of masks"):
        read(tmp_path / "alpha", masks="files")


def test_an_onboarding_joins_both_sequences_of_the_object(tmp_path: Path, photos):
    write_scene(tmp_path / "obj_000003_up", photos[:5], 3)
    write_scene(tmp_path / "obj_000003_down", photos[5:], 3)
    write_scene(tmp_path / "obj_000009_up", photos[:1], 9)
    found, views, problems = read(tmp_path, 3)
    assert (found.obj_id, len(views), problems) == (3, 12, {})
    plain = tmp_path / "plain"
    write_photos(plain, photos)
    by_name = {view.name: view for view in views}
    of_plain = read(plain)[1]
    for i in range(12):
        scene = "obj_000003_up" if i < 5 else "obj_000003_down"
        view = by_name[f"{scene}/{i if i < 5 else i - 5:06d}"]
        np.testing.assert_allclose(view.T_cam_from_obj, of_plain[i].T_cam_from_obj, atol=1e-9)
        np.testing.assert_array_equal(view.rgb, of_plain[i].rgb)
    assert read(tmp_path / "obj_000009_up")[0].obj_id == 9
    with pytest.raises(PicoPoseError, match="sequences of objects 3, 9; choose one with --object-id"):
        read(tmp_path)
    with pytest.raises(PicoPoseError, match=r"no sequence of object 5 \(found: 3, 9\)"):
        read(tmp_path, 5)


def test_whole_outlines_carve_and_visible_parts_colour(tmp_path: Path, photos):
    """With mask/ beside mask_visib/, the first has the outlines."""
    write_scene(tmp_path / "scene", photos[:3], 1)
    (tmp_path / "scene/mask").mkdir()
    for i in range(3):
        name = f"{i:06d}_000000.png"
        mask = cv2.imread(str(tmp_path / "scene/mask_visib" / name), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(tmp_path / "scene/mask" / name), mask)
        mask[:, : mask.shape[1] // 2] = 0
        cv2.imwrite(str(tmp_path / "scene/mask_visib" / name), mask)
    for view in read(tmp_path / "scene")[1]:
        assert view.visible.sum() < 0.7 * view.silhouette.sum()


def test_files_that_cannot_be_used_are_named(tmp_path: Path, photos):
    folder = tmp_path / "photos"
    write_photos(folder, photos[:5])
    cv2.imwrite(str(folder / "masks/photo_00.png"), np.full((50, 60), 255, np.uint8))
    cv2.imwrite(str(folder / "masks/photo_01.png"), np.zeros((96, 96), np.uint8))
    (folder / "images/photo_02.png").write_bytes(b"")
    (folder / "images/photo_03.png").unlink()
    _, views, problems = read(folder)
    assert [view.name for view in views] == ["photo_04.png"]
    assert "the mask is 60x50 px, its image 96x96" in problems["photo_00.png"]
    assert "the mask is empty" in problems["photo_01.png"]
    assert "the image is empty" in problems["photo_02.png"]
    assert "does not exist" in problems["photo_03.png"]
    with pytest.raises(PicoPoseError, match=r"1 usable photographs.*4 more cannot be used.*photo_0"):
        run(folder, output=tmp_path / "out.ply")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda entry: entry.update(T_cam_from_obj=[1, 2, 3]), "T_cam_from_obj is not 16 finite numbers"),
        (lambda entry: entry.update(T_cam_from_obj=[[2.0 * (i == j) for j in range(4)] for i in range(4)]), "rigid"),
        (lambda entry: entry.update(K=[[0, 0, 1], [0, 1, 1], [0, 0, 1]]), "K is not a pinhole matrix"),
        (lambda entry: entry.pop("K"), "K is missing"),
        (lambda entry: entry.update(depth_scale=-1), "depth_scale is not a positive number"),
    ],
)
def test_damaged_cameras_are_named(tmp_path: Path, photos, damage, message: str):
    cameras = write_photos(tmp_path / "photos", photos[:2])
    damage(cameras["photo_01.png"])
    (tmp_path / "photos/cameras.json").write_text(json.dumps(cameras))
    with pytest.raises(PicoPoseError, match=f"image photo_01.png: .*{message}"):
        read(tmp_path / "photos")


def test_folders_that_are_not_understood(tmp_path: Path, photos):
    with pytest.raises(PicoPoseError, match="does not exist"):
        read(tmp_path / "nothing")
    with pytest.raises(PicoPoseError, match=r"has neither cameras.json nor scene_camera.json"):
        read(tmp_path)
    write_photos(tmp_path / "photos", photos[:1])
    (tmp_path / "photos/cameras.json").write_text("{")
    with pytest.raises(PicoPoseError, match="not valid JSON"):
        read(tmp_path / "photos")
    write_scene(tmp_path / "scene", photos[:2], 1)
    with pytest.raises(PicoPoseError, match="drop --masks"):
        read(tmp_path / "scene", masks="alpha")
    poses = json.loads((tmp_path / "scene/scene_gt.json").read_text())
    poses["1"][0]["obj_id"] = 2
    (tmp_path / "scene/scene_gt.json").write_text(json.dumps(poses))
    with pytest.raises(PicoPoseError, match="shows objects 1, 2; choose one with --object-id"):
        read(tmp_path / "scene")
    assert len(read(tmp_path / "scene", 2)[1]) == 1


def test_depth_is_used_where_there_is_any(tmp_path: Path, photos):
    write_scene(tmp_path / "scene", photos, 1, depth=True)
    made = run(tmp_path / "scene", output=tmp_path / "with/obj_000001.ply", resolution=32)
    assert json.loads((tmp_path / "with/obj_000001.reconstruction.json").read_text())["views_with_depth"] == 12
    np.testing.assert_allclose(np.ptp(made.made.surface.vertices, axis=0), BOX_M, atol=0.004)
    view = read(tmp_path / "scene")[1][0]
    assert view.depth_m is None
    write_photos(tmp_path / "plain", photos)
    with pytest.raises(PicoPoseError, match="there are no depth images"):
        run(tmp_path / "plain", output=tmp_path / "out.ply", depth="on")
    cv2.imwrite(str(tmp_path / "scene/depth/000003.png"), np.ones((5, 7), np.uint16))
    found = find_photographs(tmp_path / "scene", None, "auto")
    _, problems = load_views(found, lambda _: None, use_depth=True)
    assert "the depth map is 7x5 px, its image 96x96" in problems["scene/000003"]
