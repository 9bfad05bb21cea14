"""Every layout of BOP's downloads from its files to scores: render-templates, infer, check, score, shipped network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import PER_VIEW

import picopose_cli
from picopose_cli.base.options import CheckOptions, InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.bop.datasets import mesh_path, open_dataset, read_scene_cameras
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.images import read_image_rgb, read_mask_image
from picopose_cli.bop.known_datasets import known_splits
from picopose_cli.bop.results import read_results
from picopose_cli.commands import check, infer, render_templates, score
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.synthesis.bop_layouts import write_layout_dataset
from picopose_cli.templates.bank import read_bank, write_bank

OBJECTS, SEED = 2, 5
SETS = {"hot3d": ("test_targets_bop24.json", 2), "ipd": ("test_targets_multiview_bop25.json", 1)} | dict.fromkeys(
    ("xyzibd", "itoddmv", "hopev2", "handal"), ("test_targets_bop19.json", 1)
)
"""Target file and number of images, by data set."""
WITHOUT_REFINEMENT = ("hot3d", "ipd", "xyzibd", "itoddmv")
"""Data sets that are accurate enough without it: it takes most of the time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bop")


@pytest.fixture(scope="module")
def data(folder) -> dict[str, Path]:
    """The data sets, and banks of every sixth view: of the GLB models and of the PLY models that the others share."""
    roots = {
        name: write_layout_dataset(folder, name, objects=OBJECTS, images=1, seed=SEED, size_share=0.5) for name in SETS
    }
    for name in ("hot3d", "ipd"):
        report = render_templates.run(RenderTemplatesOptions(name, folder, renderer="software", workers=1))
        assert (report.exit_code, report.written) == (0, [1, 2])
        for path in (roots[name] / "templates").glob("*.h5"):
            bank = read_bank(path)
            write_bank(path, replace(bank, **{field: getattr(bank, field)[::6] for field in PER_VIEW}))
    return roots


def run(name: str, data: dict[str, Path], folder: Path, **options) -> tuple[Path, dict[str, float]]:
    """Estimate, check and score a data set; return the result file and its scores."""
    root, (targets, images) = data[name], SETS[name]
    templates = data["hot3d" if name == "hot3d" else "ipd"] / "templates"
    output = folder / f"mini_{name}-test{'-' + options['sensor'] if 'sensor' in options else ''}.csv"
    options = {
        "detections": str(root / "detections_gt.json"),
        "refine": 0 if name in WITHOUT_REFINEMENT else None,
        **options,
    }
    report = infer.run(
        InferOptions(name, folder, templates, output=output, targets=str(root / targets), device="cpu", **options)
    )
    assert report.exit_code == 0, report.problems
    assert report.images == images
    assert check.run(CheckOptions(output, folder, targets=str(root / targets))).exit_code == ("sensor" in options)
    kind = "bop24" if "bop19" not in targets else "bop19"
    scored = score.run(ScoreOptions((output,), folder, targets=kind, workers=1))
    assert scored.exit_code == 0
    return output, next(iter(scored.scores.values()))


@pytest.mark.parametrize("name", ["hot3d", "ipd", "xyzibd", "itoddmv", "hopev2", "handal"])
def test_a_data_set_as_it_is_downloaded(name, data, folder):
    output, scores = run(name, data, folder)
    found = read_results(output)
    dataset = open_dataset(name, folder)
    assert sorted(set(found.scene_id.tolist())) == dataset.scene_ids()
    kind = "bop24_mAP" if "bop24_mAP" in scores else "bop19_average_recall"
    assert scores[f"{kind}_mspd"] > 0.6
    assert scores[f"{kind}_mssd"] > 0.25  # small images and few templates


def test_another_sensor_than_the_scored_one(data, folder):
    output, scores = run("ipd", data, folder, sensor="cam1", detections="gt")
    assert scores["bop24_mAP_mspd"] > 0.6
    assert output.stem.endswith("-cam1")


@pytest.mark.parametrize("name", ["hot3d", "itoddmv"])
def test_masks_are_where_the_camera_model_projects_the_vertices(name, data):
    dataset = open_dataset(name, data[name].parent)
    for scene_id in dataset.scene_ids():
        camera = read_scene_cameras(dataset, scene_id)[0].model
        for truth in read_ground_truth(dataset, scene_id)[0]:
            if truth.visib_fract == 0:  # HOT3D's placeholder of what the camera does not see
                assert (truth.T_cam_from_obj[:3, :3] == -1).all()
                continue
            mesh = read_mesh(mesh_path(dataset, truth.obj_id), "m" if name == "hot3d" else "mm")
            xyz = mesh.vertices_m @ truth.T_cam_from_obj[:3, :3].T + truth.T_cam_from_obj[:3, 3]
            uv = camera.project(xyz) - camera.first_pixel_px
            visible = dataset.mask_visib_path(scene_id, 0, truth.gt_id)
            mask = cv2.imread(str(visible).replace("mask_visib", "mask"), cv2.IMREAD_UNCHANGED) > 0
            rows, cols = np.nonzero(mask)
            np.testing.assert_allclose([cols.min(), rows.min()], uv.min(axis=0), atol=1.5)
            np.testing.assert_allclose([cols.max(), rows.max()], uv.max(axis=0), atol=1.5)


def test_a_fisheye_image_from_python(data):
    dataset = open_dataset("hot3d", data["hot3d"].parent)
    scene_id = dataset.scene_ids()[0]
    estimator = picopose_cli.PoseEstimator(device="cpu", refine=0)
    truth = next(one for one in read_ground_truth(dataset, scene_id)[0] if one.visib_fract > 0.5)
    estimator.add_object(data["hot3d"] / f"templates/obj_{truth.obj_id:06d}.h5")
    image_rgb, camera = read_image_rgb(dataset.image_path(scene_id, 0)), read_scene_cameras(dataset, scene_id)[0].model
    mask = read_mask_image(dataset.mask_visib_path(scene_id, 0, truth.gt_id))
    (pose,) = estimator.estimate(image_rgb, camera, [(truth.obj_id, mask)])
    assert np.linalg.norm(pose.T_cam_from_obj[:3, 3] - truth.T_cam_from_obj[:3, 3]) < 0.05


def test_files_are_those_of_the_table(data):
    for name, root in data.items():
        for row in known_splits(name):
            scene = next((root / (row.split if row.parts is None else f"{row.parts}_bop_format")).iterdir())
            assert (scene / row.image_folder / f"000000{row.image_ext}").is_file()
            gt = json.loads((scene / f"scene_gt{row.suffix}.json").read_text())
            assert len(gt["0"]) >= 1
