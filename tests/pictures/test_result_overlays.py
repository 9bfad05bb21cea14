"""The estimates of a result file on their images: green where the pose is correct, red elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import write_results
from picopose_cli.pictures.overlays import CORRECT_RGB, WRONG_RGB
from picopose_cli.pictures.result_overlays import draw_result_overlays


def colours(picture_rgb: np.ndarray) -> tuple[int, int]:
    """Pixels of a picture, without the legend, that have exactly the colour of right and of wrong."""
    image = picture_rgb[:-24]
    return int((image == CORRECT_RGB).all(axis=2).sum()), int((image == WRONG_RGB).all(axis=2).sum())


def draw(toy_dir: Path, folder: Path, moved: dict[int, np.ndarray]) -> tuple[list[bool], list[tuple[int, int]]]:
    """Draw the true poses, each object's moved in its own frame; return what is right, and each picture's colours."""
    dataset = open_dataset("toy", toy_dir)
    estimates = [
        PoseEstimate(1, im_id, one.obj_id, 1.0, one.T_cam_from_obj @ moved.get(one.obj_id, np.eye(4)), 0.1)
        for im_id, instances in read_ground_truth(dataset, 1).items()
        for one in instances
    ]
    write_results(folder / "a_toy-test.csv", estimates)
    judged = draw_result_overlays(dataset, folder / "a_toy-test.csv", folder / "overlays")
    pictures = sorted((folder / "overlays").iterdir())
    right = [judged.is_correct(row) for row in range(len(judged.error))]
    return right, [colours(read_image_rgb(path)) for path in pictures]


def shifted(x_m: float) -> np.ndarray:
    return make_T(np.eye(3), np.array([x_m, 0, 0]))


def test_right_poses_are_green_and_wrong_ones_red(toy_dir, tmp_path):
    right, pictures = draw(toy_dir, tmp_path, {1: shifted(0.001)})
    assert right == [True] * 6
    assert len(pictures) == 3
    assert all(green > 50 and red == 0 for green, red in pictures)
    right, pictures = draw(toy_dir, tmp_path, {1: shifted(0.03)})
    assert sorted(right) == [False] * 3 + [True] * 3
    assert all(green > 20 and red > 20 for green, red in pictures)


def test_a_symmetric_pose_is_right(toy_dir, tmp_path):
    shutil.copytree(toy_dir, tmp_path / "bop")
    path = tmp_path / "bop/toy/models/models_info.json"
    infos = json.loads(path.read_text())
    turned = make_T(np.diag([-1.0, -1.0, 1.0]), np.zeros(3))
    for symmetries, expected in (([], False), ([turned.ravel().tolist()], True)):
        for info in infos.values():
            info.pop("symmetries_continuous", None)
            info["symmetries_discrete"] = symmetries
        path.write_text(json.dumps(infos))
        right, _ = draw(tmp_path / "bop", tmp_path, {1: turned, 2: turned})
        assert set(right) == {expected}
