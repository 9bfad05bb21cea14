"""Depth images of a run: what can belong to the images, what cannot, and depth of another scale."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers.bop_folder import HEIGHT, WIDTH, edit_json, write_scene
from helpers.fisheyes import ARIA_RGB, cam_model

from picopose_cli.base.cameras import parse_camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import DepthSource, DepthUse, ImageResult, StageSeconds
from picopose_cli.base.types import Target
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.pose.depth_samples import sample_depth
from picopose_cli.runs.depth_inputs import DepthScaleCheck, read_depth, require_depth
from picopose_cli.runs.identity import tasks_sha256
from picopose_cli.runs.inputs import load_image, make_image_tasks

TARGETS = [Target(1, 0, 1, 1), Target(1, 2, 1, 1)]


@pytest.fixture
def dataset(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [1], 2: [1]})
    return open_dataset("mine", tmp_path)


def write_depth(dataset, im_id=0, size_hw=(HEIGHT, WIDTH), name="depth"):
    path = dataset.scene_dir(1) / f"{name}/{im_id:06d}.png"
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.full(size_hw, 5000, np.uint16))
    return path


def test_depth_is_read_with_the_scale_of_its_camera_and_a_missing_one_is_an_error_of_the_image(dataset):
    write_depth(dataset)
    edit_json(
        dataset.scene_dir(1) / "scene_camera.json", "0", {"cam_K": [500, 0, 9, 0, 500, 9, 0, 0, 1], "depth_scale": 0.1}
    )
    plain, tasks = (make_image_tasks(dataset, TARGETS, {}, depth=depth) for depth in (False, True))
    require_depth(dataset, plain)
    require_depth(dataset, tasks)
    with_depth, without = load_image(tasks[0]), load_image(tasks[1])
    np.testing.assert_allclose(with_depth.depth_m, 0.5)
    assert with_depth.depth_m.shape == (HEIGHT, WIDTH)
    assert "does not exist" in str(without.depth_m)
    assert load_image(plain[0]).depth_m is None
    assert tasks_sha256(plain) != tasks_sha256(tasks)
    rescaled = [replace(task, depth=replace(task.depth, scale=1.0)) for task in tasks]
    assert tasks_sha256(rescaled) != tasks_sha256(tasks)


def test_depth_that_cannot_be_of_the_images_is_refused(dataset):
    tasks = make_image_tasks(dataset, TARGETS, {}, depth=True)
    with pytest.raises(PicoPoseError, match=r"none of the 2 images has a depth image.*depth off"):
        require_depth(dataset, tasks)
    path = write_depth(dataset, size_hw=(HEIGHT // 2, WIDTH // 2))
    with pytest.raises(
        PicoPoseError, match=f"the depth image is {WIDTH // 2}x{HEIGHT // 2} px, its image {WIDTH}x{HEIGHT}"
    ):
        require_depth(dataset, tasks)
    assert "registered" in str(load_image(tasks[0]).depth_m)
    wrong = DepthSource(path, 1.0, "depth_scale is not a positive number")
    assert "depth_scale is not a positive number" in str(read_depth(wrong, (HEIGHT, WIDTH)))


def test_depth_of_another_sensor_is_refused(tmp_path):
    scene = tmp_path / "many/test/000001"
    write_scene(scene, {0: [1], 2: [1]})
    (scene / "rgb").rename(scene / "rgb_cam1")
    for path in scene.glob("scene_*.json"):
        path.rename(path.with_stem(f"{path.stem}_cam1"))
    dataset = open_dataset("many", tmp_path)
    write_depth(dataset)
    dataset = open_dataset("many", tmp_path)
    with pytest.raises(PicoPoseError, match="there is no depth_cam1/ of the sensor"):
        require_depth(dataset, make_image_tasks(dataset, TARGETS, {}, depth=True))
    write_depth(dataset, name="depth_cam1")
    dataset = open_dataset("many", tmp_path)
    require_depth(dataset, make_image_tasks(dataset, TARGETS, {}, depth=True))


def test_a_tiff_of_numbers_and_its_holes(tmp_path):
    numbers = np.full((6, 8), 800.0, np.float32)
    numbers[0, :3] = np.nan, np.inf, -1
    cv2.imwrite(str(tmp_path / "d.tif"), numbers)
    depth_m = read_depth(DepthSource(tmp_path / "d.tif", 1.0), (6, 8))
    assert (depth_m[0, :3] == 0).all()
    np.testing.assert_allclose(depth_m[1:], 0.8)


def test_depth_of_a_fisheye_is_along_its_axis():
    camera = parse_camera({"cam_model": cam_model(ARIA_RGB)}).model
    axis = np.array([0.6, -0.4, 1.0])
    forward = axis / np.linalg.norm(axis)
    right = np.cross([0, 1.0, 0], forward)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward], axis=1)
    K = np.array([[600.0, 0, 112], [0, 600, 112], [0, 0, 1]])
    depth_m = np.full((1408, 1408), 0.5, np.float32)  # a wall across the camera's axis
    samples = sample_depth(depth_m, np.ones_like(depth_m, bool), camera, np.eye(3), K, R)
    assert len(samples.pixel) > 1000
    in_camera = samples.xyz_m @ R.T
    np.testing.assert_allclose(in_camera[:, 2], 0.5, rtol=1e-9)
    row, col = np.divmod(samples.pixel, samples.side_px)
    uv = samples.xyz_m @ samples.K.T
    assert np.array_equal((uv[:, :2] / uv[:, 2:]).astype(int), np.stack([col, row], axis=1))


def results(dataset, ratios):
    task = make_image_tasks(dataset, TARGETS, {}, depth=True)[0]
    return [ImageResult(task, (), (), StageSeconds(), 1.0, DepthUse(ratios=(ratio,))) for ratio in ratios]


def test_depth_of_another_scale_stops_the_run(dataset):
    check = DepthScaleCheck()
    for one in results(dataset, [1.0, 1.1, 9.0, 0.97, 12.0, 1.02, 0.9, 1.0, 1.2]):
        check.add(one)
    check.finish()
    check, wrong = DepthScaleCheck(), results(dataset, [0.1, 0.11, 0.09, 0.1, 1.0, 0.1, 0.1, 0.1])
    for one in wrong[:-1]:
        check.add(one)
    with pytest.raises(PicoPoseError, match=r"measured distances are 0.1 times those expected.*depth_scale"):
        check.add(wrong[-1])
    few = DepthScaleCheck()
    for one in results(dataset, [10.0, 10.0, 9.0]):
        few.add(one)
    with pytest.raises(PicoPoseError, match="are 10 times those expected"):
        few.finish()
