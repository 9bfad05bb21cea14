"""The Python entry: the same poses as `picopose infer`, and plain errors."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import picopose_cli
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import InferOptions
from picopose_cli.bop.datasets import open_dataset, read_scene_cameras
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.images import read_image_rgb, read_mask
from picopose_cli.bop.results import read_results
from picopose_cli.commands import infer
from picopose_cli.templates.bank import bank_path, read_bank


@pytest.fixture(scope="module")
def dataset(toy_dir):
    return open_dataset("toy", toy_dir)


def make_estimator(toy_dir, **options) -> picopose_cli.PoseEstimator:
    estimator = picopose_cli.PoseEstimator(toy_dir / "tiny.safetensors", device="cpu", hypotheses=3, **options)
    templates, models = toy_dir / "toy/templates", toy_dir / "toy/models"
    estimator.add_object(bank_path(templates, 1), mesh=models / "obj_000001.ply")
    assert estimator.add_object(read_bank(bank_path(templates, 2)), mesh=models / "obj_000002.ply") == 2
    return estimator


@pytest.mark.parametrize(("rules", "refine"), [("paper", 1), ("default", 0), ("default", 1)])
def test_poses_equal_those_of_infer(toy_dir, dataset, tmp_path, rules, refine):
    """One image a group, as `--timing sequential` makes it: the same batches, so the same bits."""
    detections = toy_dir / "toy/detections.json"
    options = InferOptions(
        "toy",
        toy_dir,
        detections=str(detections),
        weights=toy_dir / "tiny.safetensors",
        output=tmp_path / "picopose_toy-test.csv",
        hypotheses=3,
        rules=rules,
        refine=None if rules == "paper" else refine,
        timing="sequential",
        device="cpu",
    )
    infer.run(options)
    expected = read_results(options.output)
    estimator = make_estimator(toy_dir, rules=rules, refine=refine)
    cameras = read_scene_cameras(dataset, 1)
    row = 0
    for (_, im_id), found in sorted(read_detections(detections).by_image.items()):
        image_rgb = read_image_rgb(dataset.image_path(1, im_id))
        masks = [(one.obj_id, read_mask(one.mask, image_rgb.shape[:2])) for one in found]
        for pose, detection in zip(estimator.estimate(image_rgb, cameras[im_id].K, masks), found, strict=True):
            assert (im_id, pose.obj_id) == (expected.im_id[row], expected.obj_id[row])
            assert pose.confidence * detection.score == pytest.approx(expected.score[row], rel=1e-6)
            np.testing.assert_allclose(pose.T_cam_from_obj, expected.T_cam_from_obj[row], rtol=1e-12, atol=1e-12)
            row += 1
    assert row == len(expected.im_id) == 6


def test_boxes_serve_as_detections_and_faults_are_named(toy_dir, dataset):
    estimator = make_estimator(toy_dir, refine=0)
    image_rgb, K = read_image_rgb(dataset.image_path(1, 0)), read_scene_cameras(dataset, 1)[0].K
    (detection, _) = json.loads((toy_dir / "toy/detections.json").read_text())[:2]
    (pose,) = estimator.estimate(image_rgb, K, [(1, detection["bbox"])])
    assert np.isfinite(pose.T_cam_from_obj).all()
    assert 0 <= pose.confidence <= 1
    assert estimator.estimate(image_rgb, K, []) == []
    for obj_id, area, text in (
        (5, detection["bbox"], "object 5 .* no usable templates"),
        (1, np.zeros(image_rgb.shape[:2], bool), "the mask is empty"),
        (1, np.zeros((3, 3), bool), "the mask is 3x3"),
        (1, (-50, -50, 10, 10), "covers any of the image"),
    ):
        with pytest.raises(PicoPoseError, match=text):
            estimator.estimate(image_rgb, K, [(obj_id, area)])


def test_the_name_is_public_and_lazy():
    code = "import sys, picopose_cli as p; print('torch' in sys.modules, p.PoseEstimator, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[0] == "False"
    assert done.stdout.split()[-1] == "True"
    with pytest.raises(AttributeError, match="Nothing"):
        _ = picopose_cli.Nothing
