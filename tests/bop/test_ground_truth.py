"""Annotated poses: mm to metres, visible fractions, and annotations that cannot be used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.bop_folder import MASK_BOX, edit_json, gt_entry, write_scene

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.ground_truth import read_ground_truth, read_visible_boxes
from picopose_cli.bop.targets import read_targets

NAN = float("nan")


def open_scene(tmp_path, **options):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {3: [(7, 0.25), (0, 1.0)], 12: []}, **options)
    return open_dataset("mine", tmp_path), scene


def test_poses_come_in_metres_with_ids_and_visible_fractions(tmp_path):
    dataset, scene = open_scene(tmp_path)
    turned = gt_entry(7, (-10.0, 20.0, 500.0)) | {"cam_R_m2c": [0, -1, 0, 1, 0, 0, 0, 0, 1]}
    edit_json(scene / "scene_gt.json", "3", [turned, gt_entry(0)])
    gts = read_ground_truth(dataset, 1)
    assert sorted(gts) == [3, 12]
    assert gts[12] == []
    first, second = gts[3]
    assert (first.scene_id, first.im_id, first.gt_id, first.obj_id, first.visib_fract) == (1, 3, 0, 7, 0.25)
    assert (second.gt_id, second.obj_id, second.visib_fract) == (1, 0, 1.0)
    expected = [[0, -1, 0, -0.01], [1, 0, 0, 0.02], [0, 0, 1, 0.5], [0, 0, 0, 1]]
    np.testing.assert_allclose(first.T_cam_from_obj, expected)


def test_without_info_file_everything_counts_as_visible(tmp_path):
    dataset, _ = open_scene(tmp_path, info=False)
    assert [gt.visib_fract for gt in read_ground_truth(dataset, 1)[3]] == [1.0, 1.0]
    assert read_visible_boxes(dataset, 1) == {}


def test_visible_boxes_without_the_broken_ones(tmp_path):
    dataset, scene = open_scene(tmp_path)
    boxes = [MASK_BOX, [-1, -1, -1, -1], [0, 0, NAN, 5], "box"]
    edit_json(scene / "scene_gt_info.json", "3", [{"bbox_visib": box} for box in boxes])
    assert read_visible_boxes(dataset, 1) == {(3, 0): MASK_BOX}


BROKEN = [
    (gt_entry(7, (NAN, 0, 1)), "cam_t_m2c"),
    (gt_entry(7, (1, 2)), "cam_t_m2c"),
    ({"obj_id": 7, "cam_R_m2c": [1] * 8, "cam_t_m2c": [0, 0, 1]}, "cam_R_m2c"),
    ({"obj_id": 7, "cam_R_m2c": [NAN] * 9, "cam_t_m2c": [0, 0, 1]}, "cam_R_m2c"),
    ({"obj_id": 7, "cam_R_m2c": [2, 0, 0, 0, 2, 0, 0, 0, 2], "cam_t_m2c": [0, 0, 1]}, "not a rotation"),
    ({"obj_id": 7, "cam_R_m2c": [-1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [0, 0, 1]}, "not a rotation"),
    ({"cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [0, 0, 1]}, "obj_id"),
    (gt_entry(7) | {"obj_id": 7.5}, "obj_id"),
    ("pose", "not an object"),
]


@pytest.mark.parametrize(("entry", "words"), BROKEN)
def test_broken_instance_is_an_error_or_recorded_but_never_used(tmp_path, entry, words):
    dataset, scene = open_scene(tmp_path)
    edit_json(scene / "scene_gt.json", "3", [entry, gt_entry(0)])
    with pytest.raises(PicoPoseError, match=f"scene_gt.json: image 3, instance 0: .*{words}"):
        read_ground_truth(dataset, 1)
    problems: list[str] = []
    (left,) = read_ground_truth(dataset, 1, problems=problems)[3]
    assert (left.obj_id, left.gt_id) == (0, 1)  # still the second mask
    assert len(problems) == 1
    assert words in problems[0]


@pytest.mark.parametrize("infos", [[{"visib_fract": NAN}] * 2, [{"visib_fract": 1.0}], "none", [{}, {}]])
def test_broken_visible_fraction(tmp_path, infos):
    dataset, scene = open_scene(tmp_path)
    edit_json(scene / "scene_gt_info.json", "3", infos)
    with pytest.raises(PicoPoseError, match="scene_gt_info"):
        read_ground_truth(dataset, 1)


def test_negative_visible_fraction_counts_as_not_visible(tmp_path):
    dataset, scene = open_scene(tmp_path)
    edit_json(scene / "scene_gt_info.json", "3", [{"visib_fract": -1}, {"visib_fract": 0.5}])
    assert [gt.visib_fract for gt in read_ground_truth(dataset, 1)[3]] == [-1, 0.5]
    assert [(target.obj_id, target.inst_count) for target in read_targets(dataset)] == [(0, 1)]


def test_placeholder_of_an_object_out_of_sight_is_an_instance(tmp_path):
    dataset, scene = open_scene(tmp_path)
    placeholder = {"obj_id": 7, "cam_R_m2c": [-1] * 9, "cam_t_m2c": [-1] * 3}
    edit_json(scene / "scene_gt.json", "3", [placeholder, gt_entry(0)])
    with pytest.raises(PicoPoseError, match="not a rotation"):  # visible by a quarter
        read_ground_truth(dataset, 1)
    edit_json(scene / "scene_gt_info.json", "3", [{"visib_fract": 0}, {"visib_fract": 0.5}])
    assert [gt.obj_id for gt in read_ground_truth(dataset, 1)[3]] == [7, 0]


def test_missing_or_broken_files(tmp_path):
    dataset, scene = open_scene(tmp_path)
    (scene / "scene_gt.json").write_text(json.dumps({"3": {"obj_id": 1}}))
    with pytest.raises(PicoPoseError, match="image 3: the instances are not a list"):
        read_ground_truth(dataset, 1)
    (scene / "scene_gt.json").write_text('{"3": [')
    with pytest.raises(PicoPoseError, match="not valid JSON"):
        read_ground_truth(dataset, 1)
    (scene / "scene_gt.json").unlink()
    with pytest.raises(PicoPoseError, match="there is no ground truth"):
        read_ground_truth(dataset, 1)


def test_real_annotations_that_are_slightly_off_orthonormal_are_fine(shared_dir):
    dataset = open_dataset("lmo", shared_dir / "real")
    gts = read_ground_truth(dataset, 2)[3]
    assert len(gts) == 8
    deviation = max(np.abs(gt.T_cam_from_obj[:3, :3] @ gt.T_cam_from_obj[:3, :3].T - np.eye(3)).max() for gt in gts)
    assert 1e-5 < deviation < 0.02
    assert gts[0].T_cam_from_obj[2, 3] == pytest.approx(1.11283112737)
