"""`picopose estimate`: single images without a BOP folder give the poses of `infer`, and bad input is named."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from picopose_cli import PoseEstimator, cli
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import read_results
from picopose_cli.commands import estimate as estimate_command
from picopose_cli.commands import infer, render_templates
from picopose_cli.pose import object_cache
from picopose_cli.rendering.meshes import read_mesh

CAMERA = "300,300,160,120"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all tests: the banks of two meshes are rendered once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def estimate(toy_dir, cache, tmp_path, monkeypatch):
    """Runs the command, without refinement, on the first object of an image of the generated data set."""
    monkeypatch.setattr(estimate_command, "PoseEstimator", partial(PoseEstimator, refine=0))

    def run(*changes: str, image: Path | None = None, code: int = 0) -> str:
        scene = toy_dir / "toy/test/000001"
        arguments = ["estimate", str(image or scene / "rgb/000000.png"), "--output", str(tmp_path / "poses")]
        arguments += ["--weights", str(toy_dir / "tiny.safetensors"), "--cache", str(cache), "--device", "cpu"]
        given = {
            "--mesh": str(toy_dir / "toy/models/obj_000001.ply"),
            "--mask": str(scene / "mask_visib/000000_000000.png"),
            "--camera": CAMERA,
        }
        given |= dict(zip(changes[::2], changes[1::2], strict=True))
        arguments += [text for option, value in given.items() if value for text in (option, value)]
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == code, done.output + str(done.exception)
        return done.output + (str(done.exception) if code else "")

    return run


def test_pose_picture_and_units(estimate, toy_dir, cache, tmp_path):
    printed = estimate()
    content = json.loads((tmp_path / "poses/000000.json").read_text())
    (pose,) = content["poses"]
    T = np.array(pose["T_cam_from_obj"])
    np.testing.assert_allclose(T[:3, 3], pose["translation_mm"])
    w, *xyz = pose["quaternion_wxyz"]
    np.testing.assert_allclose(Rotation.from_quat([*xyz, w]).as_matrix(), T[:3, :3], atol=1e-9)
    assert 0 <= pose["confidence"] <= 1
    assert f"confidence {pose['confidence']:.2f}" in printed
    image = read_image_rgb(toy_dir / "toy/test/000001/rgb/000000.png")
    picture = read_image_rgb(tmp_path / "poses/000000_overlay.png")
    assert picture.shape == image.shape
    assert 20 < (picture != image).any(axis=2).sum() < image.shape[0] * image.shape[1] / 4
    estimator = PoseEstimator(toy_dir / "tiny.safetensors", device="cpu", refine=0)
    obj_id = estimator.add_mesh(toy_dir / "toy/models/obj_000001.ply", cache_dir=cache)
    mask = cv2.imread(str(toy_dir / "toy/test/000001/mask_visib/000000_000000.png"), cv2.IMREAD_GRAYSCALE) > 0
    K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
    (same,) = estimator.estimate(image, K, [(obj_id, mask)])
    np.testing.assert_allclose(same.T_cam_from_obj[:3, 3] * 1000, T[:3, 3], rtol=1e-12)


def test_a_photograph_gives_the_pose_of_infer(shared_dir, toy_dir, tmp_path, estimate):
    weights, root = toy_dir / "tiny.safetensors", shared_dir / "real/visp_cube"
    (detection,) = json.loads((root / "detections_from_gt_cnos_format.json").read_text())[:1]
    scene = root / "test" / f"{detection['scene_id']:06d}"
    (tmp_path / "one.json").write_text(json.dumps([detection]))
    target = {"scene_id": detection["scene_id"], "im_id": detection["image_id"], "inst_count": 1}
    (tmp_path / "targets.json").write_text(json.dumps([target | {"obj_id": detection["category_id"]}]))
    templates = tmp_path / "templates"
    render_templates.run(RenderTemplatesOptions(str(root), templates=templates, renderer="software", workers=1))
    output = tmp_path / "a_cube-test.csv"
    infer.run(
        InferOptions(
            str(root), templates=templates, detections=str(tmp_path / "one.json"), weights=weights, output=output,
            targets=str(tmp_path / "targets.json"), device="cpu", refine=0,
        )
    )  # fmt: skip
    mask = next((scene / "mask_visib").glob(f"{detection['image_id']:06d}_*.png"))
    mesh = root / f"models/obj_{detection['category_id']:06d}.ply"
    image = scene / f"rgb/{detection['image_id']:06d}.png"
    camera = str(scene / "scene_camera.json")
    estimate("--mesh", str(mesh), "--mask", str(mask), "--camera", camera, image=image)
    (pose,) = json.loads((tmp_path / f"poses/{image.stem}.json").read_text())["poses"]
    expected = read_results(output)
    T_mm = np.array(pose["T_cam_from_obj"])
    np.testing.assert_allclose(T_mm[:3, :3], expected.T_cam_from_obj[0, :3, :3], atol=1e-9)
    np.testing.assert_allclose(T_mm[:3, 3], expected.T_cam_from_obj[0, :3, 3] * 1000, rtol=1e-9)
    assert pose["confidence"] == pytest.approx(expected.score[0], rel=1e-6)


def test_a_folder_of_images_and_a_second_run_from_the_cache(estimate, toy_dir, tmp_path, monkeypatch):
    scene, images, masks = toy_dir / "toy/test/000001", tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for im_id in range(3):
        shutil.copy(scene / f"rgb/{im_id:06d}.png", images / f"photo{im_id}.png")
        shutil.copy(scene / f"mask_visib/{im_id:06d}_000000.png", masks / f"photo{im_id}.png")
    (masks / "photo1.png").unlink()
    estimate()
    monkeypatch.setattr(object_cache, "render_bank", lambda *_, **__: pytest.fail("templates were rendered again"))
    printed = estimate("--mask", str(masks), "--camera", "300,300,40,30", image=images, code=1)
    assert "warning: the principal point of photo0.png is far from the middle of its 320x240 px" in printed
    assert "photo1.png: failed: " in printed
    assert "there is no mask photo1.png" in printed
    assert "2 of 3 images" in printed
    names = sorted(path.name for path in (tmp_path / "poses").iterdir())
    assert [name for name in names if name.startswith("photo")] == [
        f"photo{im_id}{kind}" for im_id in (0, 2) for kind in (".json", "_overlay.png")
    ]


def test_several_objects_with_masks_and_boxes(estimate, toy_dir, tmp_path):
    shutil.copytree(toy_dir / "toy/models", tmp_path / "meshes")
    shutil.copy(toy_dir / "toy/test/000001/mask_visib/000000_000000.png", tmp_path / "box.png")
    entries = [
        {"mesh": "meshes/obj_000001.ply", "mask": "box.png", "name": "box"},
        {"mesh": "meshes/obj_000002.ply", "box": [150, 80, 80, 80]},
        {"mesh": "meshes/obj_000001.ply", "box": [100, 80, 80, 80]},
    ]
    objects = tmp_path / "objects.json"
    several = ("--mesh", "", "--mask", "", "--objects", str(objects))
    objects.write_text(json.dumps(entries))
    estimate(*several)
    poses = json.loads((tmp_path / "poses/000000.json").read_text())["poses"]
    assert [pose["object"] for pose in poses] == ["box", "obj_000002", "obj_000001"]
    for entry, words in (
        ({"mesh": "meshes/obj_000001.ply"}, "entry 0 needs a mask or a box"),
        ({"mesh": "m.ply", "mask": "box.png"}, "the mesh does not exist"),
        ({"mesh": 5, "mask": "box.png"}, "entry 0 has no text in mesh"),
        ({"mesh": "m.ply", "maks": "box.png"}, "unknown key 'maks'"),
        ({"mesh": "m.ply", "box": [1, 2, 3]}, "needs a mask or a box"),
        ([], "entry 0 is not an object"),
    ):
        objects.write_text(json.dumps([entry]))
        assert words in estimate(*several, code=1)
    objects.write_text("[]")
    assert "there are no objects" in estimate(*several, code=1)


def test_poses_are_finished_on_the_depth_beside_the_image(estimate, toy_dir, tmp_path):
    scene = toy_dir / "toy/test/000001"
    estimate("--depth", str(scene / "depth"), "--camera", str(scene / "scene_camera.json"))  # which has the scale
    (pose,) = json.loads((tmp_path / "poses/000000.json").read_text())["poses"]
    assert pose["modality"] == "RGB-D"
    printed = estimate("--depth", str(scene / "depth/000000.png"), "--depth-scale", "1")  # ten times as far
    assert re.search(r"by RGB alone: the measured distance is \S+ of the expected one", printed)
    (tmp_path / "depth").mkdir()
    assert "there is no depth image 000000.png" in estimate("--depth", str(tmp_path / "depth"), code=1)
    cv2.imwrite(str(tmp_path / "depth/000000.png"), np.full((24, 32), 500, np.uint16))
    assert "the depth image is 32x24 px, its image 320x240" in estimate("--depth", str(tmp_path / "depth"), code=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--depth", "nowhere"), "the depth does not exist"),
        (("--depth-scale", "2"), "pass --depth FILE"),
        (("--camera", "nowhere.json"), "neither four numbers nor a file"),
        (("--camera", "1,2,3"), "has 3 numbers"),
        (("--camera", "-1,2,3,4"), "is no camera|not a pinhole"),
        (("--mesh", "nowhere.ply"), "the mesh does not exist"),
        (("--mask", "nowhere.png"), "the mask does not exist"),
        (("--mask", ""), "0 of --mask and --box"),
        (("--box", "1,2,3,4"), "2 of --mask and --box"),
        (("--mask", "", "--box", "1,2,3"), "needs 4"),
        (("--mask", "", "--box", "a,b"), "--box"),
        (("--mask", "", "--box", "-90,-90,10,10"), "covers any of the image"),
        (("--mesh-unit", "m"), "not 5 to 5000 mm"),
        (("--mesh-unit", "inch"), "--mesh-unit"),
        (("--weights", "nowhere.ckpt"), "nowhere.ckpt"),
        (("--objects", "o.json"), "drop --mesh"),
    ],
)
def test_bad_options_are_one_error(estimate, changes, words):
    assert re.search(words, estimate(*changes, code=1))


def test_bad_files_are_one_error(estimate, toy_dir, tmp_path):
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.full((10, 10), 255, np.uint8))
    assert "the mask is 10x10 px, its image 320x240" in estimate("--mask", str(small), code=1)
    cv2.imwrite(str(small), np.zeros((240, 320), np.uint8))
    assert "the mask is empty" in estimate("--mask", str(small), code=1)
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert "is not an image" in estimate(image=tmp_path / "broken.png", code=1)
    assert "the image does not exist" in estimate(image=tmp_path / "nowhere.png", code=1)
    (tmp_path / "empty").mkdir()
    assert "there are no images" in estimate(image=tmp_path / "empty", code=1)
    mesh = read_mesh(toy_dir / "toy/models/obj_000001.ply")
    lines = [f"v {x / 1000} {y / 1000} {z / 1000}" for x, y, z in mesh.vertices_m]  # micrometres, read as mm
    (tmp_path / "tiny.obj").write_text("\n".join([*lines, "f 1 2 3", "f 2 3 4", "f 1 3 4", "f 1 2 4"]))
    assert "not 5 to 5000 mm; pass the file's own unit" in estimate("--mesh", str(tmp_path / "tiny.obj"), code=1)
    shutil.copy(toy_dir / "toy/test/000001/rgb/000000.png", tmp_path / "empty/a.png")
    assert "choose another --output" in estimate("--output", str(tmp_path / "empty"), image=tmp_path / "empty", code=1)
    shutil.copy(toy_dir / "toy/test/000001/rgb/000000.png", tmp_path / "empty/a.jpg")
    assert "a.jpg and a.png would have the same output" in estimate(image=tmp_path / "empty", code=1)
