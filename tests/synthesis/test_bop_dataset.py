"""The generated BOP data set: read back by the project's own readers, checked against its renderer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from picopose_cli.base.types import Mesh
from picopose_cli.bop.datasets import object_ids, open_dataset, read_object_infos, read_scene_cameras
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.rle import decode_rle
from picopose_cli.bop.targets import read_image_targets, read_targets
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.software import SoftwareRenderer, render_depth
from picopose_cli.synthesis.bop_dataset import (
    DETECTIONS,
    box_of_mask,
    write_procedural_dataset,
)
from picopose_cli.synthesis.bop_models import (
    diameter_of_points,
    symmetric_object,
    untextured_object,
    write_textured_ply,
    wrong_albedo_object,
)
from picopose_cli.synthesis.conditions import Conditions
from picopose_cli.synthesis.objects import make_distinct_mesh, make_procedural_object
from picopose_cli.synthesis.seeds import DATASET_STREAM
from picopose_cli.synthesis.symmetric_objects import make_symmetric_mesh
from picopose_cli.templates.views import place_views, template_camera

HEIGHT, WIDTH = 240, 320
CONDITIONS = Conditions(size_hw=(HEIGHT, WIDTH), max_objects=3)
ARGUMENTS = {"objects": 3, "images": 4, "seed": 5, "conditions": CONDITIONS}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_procedural_dataset(tmp_path_factory.mktemp("data"), "toy", **ARGUMENTS)


@pytest.fixture(scope="module")
def dataset(root):
    return open_dataset("toy", root.parent)


def depth_of(dataset, im_id: int) -> np.ndarray:
    path = dataset.root / f"test/000000/depth/{im_id:06d}.png"
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) / 10_000


def mask_of(dataset, kind: str, im_id: int, gt_id: int) -> np.ndarray:
    path = dataset.root / f"test/000000/{kind}/{im_id:06d}_{gt_id:06d}.png"
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED) > 0


def test_it_is_a_bop_data_set(dataset):
    assert dataset.split == "test"
    assert object_ids(dataset) == [1, 2, 3]
    targets = read_targets(dataset)
    assert {target.obj_id for target in targets} == {1, 2, 3}
    assert {target.inst_count for target in targets} == {1}
    truth = read_ground_truth(dataset, 0)
    assert sorted(truth) == [0, 1, 2, 3]
    assert max(len(truths) for truths in truth.values()) == 3


def test_depth_and_masks_are_those_of_the_poses(dataset):
    cameras, truth = read_scene_cameras(dataset, 0), read_ground_truth(dataset, 0)
    for im_id, truths in truth.items():
        scene_depth = depth_of(dataset, im_id)
        depths = []
        for instance in truths:
            mesh = read_mesh(dataset.root / f"models/obj_{instance.obj_id:06d}.ply")
            depths.append(render_depth(mesh, cameras[im_id].K, instance.T_cam_from_obj, (0, 0, WIDTH, HEIGHT)))
        nearest = np.where(np.stack(depths) > 0, np.stack(depths), np.inf).min(axis=0)
        assert (np.isfinite(nearest) != (scene_depth > 0)).sum() <= 2
        both = np.isfinite(nearest) & (scene_depth > 0)
        assert np.abs(nearest - scene_depth)[both].max() < 1e-4
        for gt_id, depth in enumerate(depths):
            assert (mask_of(dataset, "mask", im_id, gt_id) != (depth > 0)).sum() <= 2
            visible = (depth > 0) & (depth <= nearest + 1e-7)
            assert (mask_of(dataset, "mask_visib", im_id, gt_id) != visible).sum() <= 4


def test_info_counts_what_the_masks_show(root, dataset):
    infos = json.loads((root / "test/000000/scene_gt_info.json").read_text())
    targets = {(target.im_id, target.obj_id) for target in read_targets(dataset)}
    for im_id, truths in read_ground_truth(dataset, 0).items():
        for gt_id, truth in enumerate(truths):
            info = infos[str(im_id)][gt_id]
            visible = mask_of(dataset, "mask_visib", im_id, gt_id)
            full = mask_of(dataset, "mask", im_id, gt_id)
            assert info["px_count_visib"] == visible.sum()
            assert info["px_count_all"] >= full.sum()
            assert info["visib_fract"] == pytest.approx(visible.sum() / max(info["px_count_all"], 1))
            assert info["bbox_visib"] == box_of_mask(visible)
            seen = info["visib_fract"] >= 0.1 and info["px_count_visib"] >= 400
            assert ((im_id, truth.obj_id) in targets) == seen


def test_models_info_says_how_large_the_models_are(dataset):
    for obj_id, info in read_object_infos(dataset).items():
        mesh = read_mesh(dataset.root / f"models/obj_{obj_id:06d}.ply")
        assert 0.5 * mesh_diameter_m(mesh) < info.diameter_m <= mesh_diameter_m(mesh) + 1e-9
        assert len(info.symmetries_discrete) == len(info.symmetries_continuous) == 0


def test_symmetric_objects_and_what_is_said_of_them(tmp_path):
    root = write_procedural_dataset(tmp_path, "toy", **ARGUMENTS | {"images": 1}, make_object=symmetric_object)
    dataset = open_dataset("toy", root.parent)
    infos = read_object_infos(dataset)
    assert sorted(infos) == [1, 2, 3]
    for obj_id, info in infos.items():
        mesh, symmetries = make_symmetric_mesh([DATASET_STREAM, ARGUMENTS["seed"], 0, obj_id], (0.06, 0.2), 512)
        back = read_mesh(dataset.root / f"models/obj_{obj_id:06d}.ply")
        assert np.allclose(back.vertices_m, mesh.vertices_m, atol=1e-8)
        assert np.array_equal(back.texture_rgb, mesh.texture_rgb)
        assert np.allclose(info.symmetries_discrete, symmetries.discrete, atol=1e-12)
        assert np.array_equal(info.symmetries_continuous, symmetries.continuous)
        assert len(info.symmetries_discrete) + len(info.symmetries_continuous) > 0


def test_detections_are_the_visible_masks_exact_and_rough(root, dataset):
    truth, exact = read_ground_truth(dataset, 0), read_detections(root / DETECTIONS["gt"])
    rough = read_detections(root / DETECTIONS["rough"])
    assert not exact.problems
    assert not rough.problems
    overlaps = []
    for (_, im_id), detections in exact.by_image.items():
        gt_ids = {instance.obj_id: instance.gt_id for instance in truth[im_id]}
        for one, other in zip(detections, rough.by_image[0, im_id], strict=True):
            mask, frayed = decode_rle(one.mask), decode_rle(other.mask)
            assert np.array_equal(mask, mask_of(dataset, "mask_visib", im_id, gt_ids[one.obj_id]))
            assert list(one.box_xywh) == box_of_mask(mask)
            overlaps.append((mask & frayed).sum() / (mask | frayed).sum())
    assert 0.6 < np.mean(overlaps) < 0.99
    assert len(overlaps) == len(read_targets(dataset))


def test_noisy_detections_lie_on_the_objects_and_beside_them(root, dataset):
    noisy = read_detections(root / DETECTIONS["noisy"])
    assert not noisy.problems
    images = [(target.scene_id, target.im_id) for target in read_image_targets(dataset)]
    assert sorted(noisy.by_image) == images == [(0, im_id) for im_id in range(4)]
    truth, beside, of_its_object = read_ground_truth(dataset, 0), 0, 0
    for (_, im_id), detections in noisy.by_image.items():
        assert [one.score for one in detections] == sorted((one.score for one in detections), reverse=True)
        seen = {one.obj_id: mask_of(dataset, "mask_visib", im_id, one.gt_id) for one in truth[im_id]}
        for one in detections:
            mask = decode_rle(one.mask)
            assert list(one.box_xywh) == box_of_mask(mask)
            beside += not (mask & np.any(list(seen.values()), axis=0)).any()
            of_its_object += bool((mask & seen.get(one.obj_id, False)).sum() > 0.5 * mask.sum())
    assert beside >= 4
    assert of_its_object >= 4


def test_noisy_detections_change_nothing_else(root, tmp_path, monkeypatch):
    monkeypatch.setattr("picopose_cli.synthesis.bop_dataset.noisy_detections", lambda *_: [])
    without = write_procedural_dataset(tmp_path, "toy", **ARGUMENTS)
    different = [
        path.name
        for path in without.rglob("*")
        if path.is_file() and path.read_bytes() != (root / path.relative_to(without)).read_bytes()
    ]
    assert different == [DETECTIONS["noisy"]]


def test_the_image_shows_the_objects_where_they_are(root, dataset):
    """Colours differ between an object's pixels and those around it more often than not; the picture is no void."""
    for im_id in read_ground_truth(dataset, 0):
        image = cv2.imread(str(root / f"test/000000/rgb/{im_id:06d}.png"))
        assert image.shape == (HEIGHT, WIDTH, 3)
        inside = depth_of(dataset, im_id) > 0
        assert image[inside].std() > 4
        assert inside.mean() > 0.004


def test_the_same_arguments_give_the_same_files(root, tmp_path):
    again = write_procedural_dataset(tmp_path, "toy", **ARGUMENTS)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((root / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_wrong_albedo_and_damage_change_colours_alone(root, dataset, tmp_path):
    spoiled = replace(CONDITIONS, blurred_share=1.0, dark_share=1.0)
    arguments = ARGUMENTS | {"make_object": wrong_albedo_object, "conditions": spoiled}
    other = open_dataset("other", write_procedural_dataset(tmp_path, "other", **arguments).parent)
    for obj_id in object_ids(dataset):
        name = f"obj_{obj_id:06d}.ply"
        cad, shown, true = (
            read_mesh(folder / name) for folder in (other.root / "models", other.root / "shown", root / "models")
        )
        assert np.array_equal(shown.vertices_m, true.vertices_m)
        assert np.array_equal(shown.texture_rgb, true.texture_rgb)
        assert np.array_equal(cad.vertices_m[cad.faces], true.vertices_m[true.faces])
        assert cad.texture_rgb is None or np.abs(cad.texture_rgb.astype(int) - true.texture_rgb).mean() > 10
    for path in root.rglob("test*/**/*"):
        twin = other.root / path.relative_to(root)
        if path.is_file():
            assert (path.read_bytes() == twin.read_bytes()) == (path.parent.name != "rgb")
    for file in DETECTIONS.values():
        assert (root / file).read_bytes() == (other.root / file).read_bytes()


def test_parts_are_coloured_in_images_and_grey_in_their_models(tmp_path):
    arguments = ARGUMENTS | {"images": 1, "make_object": untextured_object}
    dataset = open_dataset("parts", write_procedural_dataset(tmp_path, "parts", **arguments).parent)
    expected = np.zeros((HEIGHT, WIDTH))
    for truth in read_ground_truth(dataset, 0)[0]:
        name = f"obj_{truth.obj_id:06d}.ply"
        cad, shown = (read_mesh(dataset.root / folder / name) for folder in ("models", "shown"))
        assert cad.vertex_rgb is None
        assert cad.texture_rgb is None
        assert len(np.unique(shown.vertex_rgb, axis=0)) in (1, 2)
        assert np.array_equal(cad.vertices_m, shown.vertices_m)
        K = read_scene_cameras(dataset, 0)[0].K
        depth_m = render_depth(cad, K, truth.T_cam_from_obj, (0, 0, WIDTH, HEIGHT))
        expected = np.where((depth_m > 0) & ((expected == 0) | (depth_m < expected)), depth_m, expected)
    assert np.abs(depth_of(dataset, 0) - expected).max() < 1e-3


def test_a_written_mesh_reads_back_and_looks_the_same(tmp_path):
    meshes = [make_distinct_mesh(4, (0.1, 0.1), 64), make_procedural_object(3, "").mesh]
    meshes.append(
        Mesh(meshes[0].vertices_m, meshes[0].faces, vertex_rgb=np.full_like(meshes[0].vertices_m, 7, np.uint8))
    )
    meshes.append(Mesh(meshes[0].vertices_m, meshes[0].faces))
    for number, mesh in enumerate(meshes):
        path = tmp_path / f"{number}.ply"
        write_textured_ply(path, mesh)
        back = read_mesh(path)
        assert np.allclose(back.vertices_m, mesh.vertices_m, atol=1e-8)
        assert np.array_equal(back.faces, mesh.faces)
        assert (back.vertex_rgb is None, back.uv is None) == (mesh.vertex_rgb is None, mesh.uv is None)
        pose = place_views(mesh_diameter_m(mesh))[30]
        one, two = (SoftwareRenderer(each, template_camera(), (480, 640)).render(pose) for each in (mesh, back))
        assert (np.abs(one.rgb.astype(int) - two.rgb) > 2).mean() < 1e-4


def test_diameter_of_points():
    assert diameter_of_points(np.array([[0.0, 0, 0], [3, 4, 0], [1, 1, 1]])) == 5


def test_box_of_an_empty_mask():
    assert box_of_mask(np.zeros((3, 3), bool)) == [-1, -1, -1, -1]
