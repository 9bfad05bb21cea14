"""Data-set folders: the table of BOP, layouts found by looking, cameras, object descriptions, bad input."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from helpers.bop_folder import K, edit_json, write_json, write_models, write_scene
from helpers.fisheyes import ARIA_RGB, cam_model

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.bop.datasets import (
    mesh_path,
    object_ids,
    open_dataset,
    read_object_infos,
    read_scene_cameras,
)
from picopose_cli.bop.known_datasets import KNOWN_SPLITS, known_image_size_hw, known_splits, toolkit_split

# name: split folder, width, height, image folder, extension, annotation file, number of objects
BOP_TABLE = {
    "lm": ("test", 640, 480, "rgb", ".png", "scene_gt", 15),
    "lmo": ("test", 640, 480, "rgb", ".png", "scene_gt", 8),
    "tless": ("test_primesense", 720, 540, "rgb", ".png", "scene_gt", 30),
    "tudl": ("test", 640, 480, "rgb", ".png", "scene_gt", 3),
    "icbin": ("test", 640, 480, "rgb", ".png", "scene_gt", 2),
    "itodd": ("test", 1280, 960, "gray", ".tif", "scene_gt", 28),
    "hb": ("test_primesense", 640, 480, "rgb", ".png", "scene_gt", 33),
    "ycbv": ("test", 640, 480, "rgb", ".png", "scene_gt", 21),
    "hope": ("test", 1920, 1080, "rgb", ".png", "scene_gt", 28),
    "hopev2": ("test", 1920, 1080, "rgb", ".png", "scene_gt", 28),
    "handal": ("test", 1920, 1440, "rgb", ".jpg", "scene_gt", 40),
    "hot3d": ("test", 1408, 1408, "rgb", ".jpg", "scene_gt_rgb", 33),
    "ipd": ("test", 2064, 1544, "rgb_photoneo", ".png", "scene_gt_photoneo", 10),
    "xyzibd": ("test", 1440, 1080, "gray_xyz", ".png", "scene_gt_xyz", 15),
    "itoddmv": ("test", 1280, 960, "gray_3dlong", ".tif", "scene_gt_3dlong", 28),
}
PRIVATE = {"itodd", "hb", "hope", "hopev2", "itoddmv", "handal", "hot3d", "ipd", "xyzibd"}


def test_the_table_names_every_data_set():
    assert {row.name for row in KNOWN_SPLITS} == set(BOP_TABLE)


@pytest.mark.parametrize("name", sorted(BOP_TABLE))
def test_each_row_of_the_table_opens(tmp_path, name):
    split, width, height, folder, ext, annotation, objects = BOP_TABLE[name]
    root = tmp_path / name
    suffix = annotation.removeprefix("scene_gt")
    write_scene(root / split / "000003", {7: [1]}, image_folder=folder, ext=ext, suffix=suffix, gt=name not in PRIVATE)
    write_scene(root / "train_pbr" / "000001", {0: [1]}, ext=".jpg")
    models = "models_cad" if name == "tless" else "models"
    write_models(root / models, [1, 2])
    write_models(root / "models_eval", [1, 2])
    dataset = open_dataset(name, tmp_path)
    assert (dataset.split, dataset.layout.image_folder) == (split, folder)
    assert dataset.known_size_hw(3) == (height, width)
    assert dataset.image_path(3, 7) == root / split / "000003" / folder / f"000007{ext}"
    assert dataset.image_path(3, 7).is_file()
    assert dataset.annotation_path(3, "scene_gt").name == f"{annotation}.json"
    assert dataset.models_dir == root / models
    assert dataset.eval_models_dir == root / "models_eval"
    assert dataset.has_public_gt == (name not in PRIVATE)
    assert dataset.vsd_delta_m == (0.005 if name == "itodd" else 0.015)
    assert len(known_splits(name)[0].object_ids) == objects
    assert dataset.result_split == "test"
    assert read_scene_cameras(dataset, 3)[7].K is not None


@pytest.mark.parametrize(
    ("name", "split", "suffix", "size_hw"),
    [
        ("hb", "test_primesense", "", (480, 640)),
        ("hb", "val_kinect", "", (1080, 1920)),
        ("hb", "val_mine", "", None),
        ("tless", "test_canon", "", (1920, 2560)),
        ("tless", "test_kinect", "", (540, 720)),
        ("tless", "train_primesense", "", (400, 400)),
        ("tless", "train_canon", "", (1900, 1900)),
        ("tless", "train_pbr", "", (540, 720)),
        ("ipd", "test", "_cam2", (2160, 3840)),
        ("xyzibd", "val", "_realsense", (720, 1280)),
        ("xyzibd", "train_pbr", "", (1080, 1440)),
        ("itoddmv", "test", "_cam0", (2838, 4224)),
        ("itoddmv", "test", "_mine", None),
        ("ycbv", "train_pbr", "", (480, 640)),
        ("mine", "test", "", None),
    ],
)
def test_size_of_the_image_is_that_of_its_sensor(name, split, suffix, size_hw):
    assert known_image_size_hw(name, split, suffix) == size_hw


def test_ids_of_xyzibd():
    assert known_splits("xyzibd")[0].object_ids == (1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17)


def test_other_splits_of_private_sets_are_public(tmp_path):
    for split in ("test_primesense", "val_primesense"):
        write_scene(tmp_path / "hb" / split / "000003", {0: [1]}, gt=split.startswith("val"))
    assert not open_dataset("hb", tmp_path).has_public_gt
    val = open_dataset("hb", tmp_path, split="val")
    assert val.split == "val_primesense"
    assert val.has_public_gt


def test_second_sensor_of_hot3d(tmp_path):
    scene = tmp_path / "hot3d" / "test_quest3" / "000001"
    write_scene(scene, {0: [1]}, image_folder="gray1", ext=".jpg", suffix="_gray1")
    write_scene(scene, {0: [1]}, image_folder="gray2", ext=".jpg", suffix="_gray2")
    dataset = open_dataset("hot3d", tmp_path, split="test_quest3")
    assert dataset.known_size_hw(1) == (1024, 1280)
    assert dataset.annotation_path(1, "scene_gt").name == "scene_gt_gray1.json"
    assert dataset.result_split == "test-quest3"


def test_download_of_hot3d_is_one_split_in_parts_with_glb_models(tmp_path):
    """The folders as they are downloaded: no `test`, and models in folders of their own names."""
    root = tmp_path / "hot3d"
    for part in ("bop_format", "scenewise"):
        write_scene(root / f"test_aria_{part}/003365", {0: [1]}, ext=".jpg", suffix="_rgb")
        write_scene(root / f"test_aria_{part}/003365", {0: [1]}, image_folder="gray1", ext=".jpg", suffix="_gray1")
        write_scene(root / f"test_quest3_{part}/001288", {5: [1]}, image_folder="gray1", ext=".jpg", suffix="_gray1")
        for split in (None, "test"):
            dataset = open_dataset("hot3d", tmp_path, split=split)
            assert (dataset.split, dataset.result_split, dataset.scene_ids()) == ("test", "test", [1288, 3365])
        assert dataset.image_path(3365, 0) == root / f"test_aria_{part}/003365/rgb/000000.jpg"
        assert dataset.image_path(1288, 5) == root / f"test_quest3_{part}/001288/gray1/000005.jpg"
        assert [dataset.known_size_hw(scene_id) for scene_id in (1288, 3365)] == [(1024, 1280), (1408, 1408)]
        shutil.rmtree(root)
    for folder in ("object_models", "object_models_eval"):
        write_models(root / folder, [1], ext=".glb")
    only_meshes = open_dataset("hot3d", tmp_path, need_images=False)
    assert mesh_path(only_meshes, 1) == root / "object_models/obj_000001.glb"
    assert mesh_path(only_meshes, 1, evaluation=True) == root / "object_models_eval/obj_000001.glb"


def test_grey_images_of_an_aria_scene_are_not_taken_for_its_colour_images(tmp_path):
    write_scene(tmp_path / "hot3d/test/003365", {0: [1]}, image_folder="gray1", ext=".jpg", suffix="_gray1")
    with pytest.raises(PicoPoseError, match=r"BOP scores \(rgb/ and scene_camera_rgb.json\), only gray1"):
        open_dataset("hot3d", tmp_path)


def test_another_sensor_can_be_asked_for_and_is_named(tmp_path):
    scene = tmp_path / "ipd/test/000000"
    for sensor in ("photoneo", "cam1"):
        write_scene(scene, {0: [0]}, image_folder=f"rgb_{sensor}", suffix=f"_{sensor}", masks=True)
    for dataset in (open_dataset("ipd", tmp_path, sensor="cam1"), open_dataset("ipd", tmp_path, split="test_cam1")):
        assert dataset.image_path(0, 0).parent.name == "rgb_cam1"
        assert dataset.annotation_path(0, "scene_gt").name == "scene_gt_cam1.json"
        assert dataset.mask_visib_path(0, 0, 0).parent.name == "mask_visib_cam1"
        assert dataset.known_size_hw(0) == (2160, 3840)
        assert (dataset.split, dataset.result_split) == ("test", "test-cam1")
    assert open_dataset("ipd", tmp_path, sensor="photoneo").result_split == "test"
    with pytest.raises(PicoPoseError, match=r"no images of the sensor 'cam9' \(found: cam1, photoneo\)"):
        open_dataset("ipd", tmp_path, sensor="cam9")
    shutil.rmtree(scene / "rgb_cam1")
    (scene / "scene_camera_cam1.json").unlink()
    with pytest.raises(PicoPoseError, match=r"no images of the sensor 'cam1' \(found: photoneo\)"):
        open_dataset("ipd", tmp_path, split="test_cam1")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("test_aria/clip-003365.tar", ["clips", "hot3d_clips_to_bop_scenewise.py --split test_aria"]),
        ("train_pbr_web/shard-000000.tar", ["webdataset", "scene folders"]),
        ("test/000001_000000.camera.json", ["imagewise", "scene folders"]),
    ],
)
def test_copies_in_other_layouts_are_named_with_what_to_do(tmp_path, file, words):
    write_json(tmp_path / "hot3d" / file, {})
    with pytest.raises(PicoPoseError) as caught:
        open_dataset("hot3d", tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_cameras_of_several_kinds_in_a_scene_are_refused(tmp_path):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1], 1: [1]})
    edit_json(scene / "scene_camera.json", "1", {"cam_model": cam_model(ARIA_RGB)})
    with pytest.raises(PicoPoseError, match=r"several kinds \(image 0 Pinhole, image 1 Fisheye624\)"):
        read_scene_cameras(open_dataset("mine", tmp_path), 1)


@pytest.mark.parametrize(
    ("split", "folder", "ext", "suffix", "models"),
    [
        ("test", "rgb", ".png", "", "models"),
        ("test_kinect", "gray", ".tif", "", "models_cad"),
        ("val", "rgb_left", ".jpg", "_left", "models_reconst"),
        ("train", "gray1", ".jpg", "_gray1", "models_fine"),
        ("test", "rgb", ".png", "_rgb", "models_eval"),
    ],
)
def test_unknown_data_set_is_understood_by_looking(tmp_path, split, folder, ext, suffix, models):
    root = tmp_path / "mine"
    write_scene(root / split / "000000", {5: [1]}, image_folder=folder, ext=ext, suffix=suffix)
    write_models(root / models, [4])
    dataset = open_dataset("mine", tmp_path)
    assert dataset.split == split
    assert dataset.layout.suffix == suffix
    assert dataset.image_path(0, 5).is_file()
    assert dataset.image_path(0, 5).suffix == ext
    assert dataset.models_dir.name == models
    assert dataset.has_public_gt
    assert dataset.known_size_hw(0) is None
    assert object_ids(dataset) == [4]


def test_folder_wins_over_the_table(tmp_path):
    """A known name with another split, image type, extension and models folder than BOP's."""
    root = tmp_path / "tless"
    write_scene(root / "val" / "000001", {2: [1]}, image_folder="gray", ext=".jpg")
    write_models(root / "models", [3])
    dataset = open_dataset("tless", tmp_path)
    assert (dataset.split, dataset.layout.image_folder, dataset.layout.image_ext) == ("val", "gray", ".jpg")
    assert dataset.models_dir.name == "models"


def test_one_image_may_have_another_extension(tmp_path):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1], 1: [1]})
    (scene / "rgb/000001.png").rename(scene / "rgb/000001.jpg")
    dataset = open_dataset("mine", tmp_path)
    assert {dataset.image_path(1, im_id).is_file() for im_id in (0, 1)} == {True}
    assert not dataset.image_path(1, 9).exists()


@pytest.mark.parametrize("name", ["000001.PNG", "000001.webp", "000001.JPEG", "1.png", "0001.tif", "00000001.jpg"])
def test_image_names_of_other_programs_are_found(tmp_path, name):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1], 1: [1]})
    dataset = open_dataset("mine", tmp_path)
    assert dataset.image_path(1, 1) == scene / "rgb/000001.png"
    (scene / "rgb/000001.png").rename(scene / "rgb" / name)
    assert dataset.image_path(1, 1) == scene / "rgb" / name
    assert dataset.image_path(1, 7) == scene / "rgb/000007.png"


def test_all_images_in_webp(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [1]}, ext=".webp")
    assert open_dataset("mine", tmp_path).layout.image_ext == ".webp"


def test_overrides(tmp_path):
    root = tmp_path / "lmo"
    write_scene(root / "test" / "000002", {3: [1]})
    write_scene(root / "train_pbr" / "000000", {0: [1]}, ext=".jpg")
    write_models(root / "models", [1])
    write_models(root / "models_mine", [1, 0])
    dataset = open_dataset("lmo", tmp_path, split="train", models="models_mine")
    assert (dataset.split, dataset.models_dir.name) == ("train_pbr", "models_mine")
    assert dataset.eval_models_dir == dataset.models_dir
    assert object_ids(dataset) == [0, 1]  # 0 is an object like any other
    assert dataset.result_split == "train-pbr"


def test_data_sets_without_images_serve_scoring_or_rendering(tmp_path):
    scene = tmp_path / "ycbv/test/000048"
    write_json(scene / "scene_camera.json", {"1": {"cam_K": K}})
    write_models(tmp_path / "ycbv/models_eval", [1])
    dataset = open_dataset("ycbv", tmp_path)
    assert dataset.models_dir.name == "models_eval"
    assert read_scene_cameras(dataset, 48)[1].depth_scale == 1.0
    write_models(tmp_path / "bare/models", [1])
    assert object_ids(open_dataset("bare", tmp_path, need_images=False)) == [1]


def test_multi_sensor_scene_keeps_annotations_and_masks_together(tmp_path):
    scene = tmp_path / "ipd/test/000000"
    write_scene(scene, {0: [1]}, image_folder="rgb_cam1", suffix="_cam1", masks=True)
    write_scene(scene, {0: [0]}, image_folder="rgb_photoneo", suffix="_photoneo", masks=True)
    dataset = open_dataset("ipd", tmp_path)
    assert dataset.layout.image_folder == "rgb_photoneo"
    assert dataset.mask_visib_path(0, 0, 0) == scene / "mask_visib_photoneo/000000_000000.png"
    (scene / "depth_photoneo").mkdir()
    assert open_dataset("ipd", tmp_path).depth_path(0, 0) == scene / "depth_photoneo/000000.png"


@pytest.mark.parametrize(("name", "sensor"), [("ipd", "_cam1"), ("xyzibd", "_realsense"), ("itoddmv", "_cam0")])
def test_another_sensor_than_the_scored_one_is_not_taken(tmp_path, name, sensor):
    """Poses of another sensor would be in another frame than the ground truth that BOP compares them with."""
    split = tmp_path / name / "test"
    row = known_splits(name)[0]
    write_scene(split / "000000", {0: [1]}, image_folder=f"rgb{sensor}", suffix=sensor)
    with pytest.raises(PicoPoseError, match=rf"the sensor that BOP scores \({row.image_folder}/.* only rgb{sensor}"):
        open_dataset(name, tmp_path)
    write_models(tmp_path / name / "models", [1])
    assert object_ids(open_dataset(name, tmp_path, need_images=False)) == [1]
    write_scene(split / "000001", {0: [1]}, image_folder=row.image_folder, ext=row.image_ext, suffix=row.suffix)
    dataset = open_dataset(name, tmp_path)  # what is missing in one scene is reported with its images
    assert dataset.image_path(1, 0).is_file()
    assert not dataset.image_path(0, 0).is_file()
    with pytest.raises(PicoPoseError, match="does not exist"):
        read_scene_cameras(dataset, 0)


@pytest.mark.parametrize("name", ["xyzibd", "itoddmv"])
def test_training_images_of_sets_with_several_sensors_have_classic_names(tmp_path, name):
    write_scene(tmp_path / name / "train_pbr/000000", {0: [1]}, ext=".jpg")
    dataset = open_dataset(name, tmp_path, split="train_pbr")
    assert dataset.image_path(0, 0).is_file()
    assert read_scene_cameras(dataset, 0)[0].K is not None


def test_scenes_of_one_split_may_have_different_sensors(tmp_path):
    split = tmp_path / "mine/test"
    write_scene(split / "000001", {0: [1]}, masks=True)
    write_scene(split / "000002", {0: [2]}, image_folder="gray_left", ext=".tif", suffix="_left", masks=True)
    (split / "000002/depth_left").mkdir()
    (split / "000003").mkdir()
    dataset = open_dataset("mine", tmp_path)
    assert dataset.layout.image_folder == dataset.layout_of(3).image_folder == "rgb"
    for scene_id, folder in ((1, "rgb"), (2, "gray_left")):
        assert dataset.image_path(scene_id, 0).is_file()
        assert dataset.image_path(scene_id, 0).parent.name == folder
        assert dataset.mask_visib_path(scene_id, 0, 0).is_file()
        assert read_scene_cameras(dataset, scene_id)[0].K is not None
        assert dataset.annotation_path(scene_id, "scene_gt").is_file()
    assert dataset.depth_path(2, 0) == split / "000002/depth_left/000000.png"


def test_both_devices_of_hot3d_in_one_split(tmp_path):
    split = tmp_path / "hot3d/test"
    for folder in ("gray1", "gray2", "rgb"):
        write_scene(split / "003365", {0: [1]}, image_folder=folder, ext=".jpg", suffix=f"_{folder}")
        if folder != "rgb":
            write_scene(split / "001288", {0: [1]}, image_folder=folder, ext=".jpg", suffix=f"_{folder}")
    dataset = open_dataset("hot3d", tmp_path, split="test")
    assert dataset.image_path(3365, 0).parent.name == "rgb"
    assert dataset.image_path(1288, 0).parent.name == "gray1"
    assert dataset.annotation_path(1288, "scene_gt").name == "scene_gt_gray1.json"


@pytest.mark.parametrize("kind", ["PinholePlane", "CameraModelType.PinholePlane"])
def test_camera_model_of_a_plane_is_a_pinhole(tmp_path, kind):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1]})
    model = {"projection_model_type": kind, "projection_params": [300.0, 310.0, 32.0, 24.0], "image_width": 64}
    edit_json(scene / "scene_camera.json", "0", {"cam_model": model})
    np.testing.assert_array_equal(read_scene_cameras(open_dataset("mine", tmp_path), 1)[0].K.ravel(), K)


def test_name_that_result_files_cannot_spell_is_found_again(tmp_path):
    write_scene(tmp_path / "visp_cube/test/000000", {0: [1]})
    assert open_dataset("vispcube", tmp_path).name == "visp_cube"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "ycbv"}, ["'ycbv'", "lmo", "check the name"]),
        ({"name": "lmo", "split": "val"}, ["'val'", "test", "--split"]),
        ({"name": "lmo", "models": "models_cad"}, ["'models_cad'", "models", "--models"]),
        ({"name": "../lmo"}, ["is not the name of a data set"]),
        ({"name": ""}, ["is not the name of a data set"]),
    ],
)
def test_missing_parts_are_named_with_what_is_there(tmp_path, arguments, words):
    write_scene(tmp_path / "lmo/test/000002", {3: [1]})
    write_models(tmp_path / "lmo/models", [1])
    with pytest.raises(PicoPoseError) as caught:
        open_dataset(**arguments, data_dir=tmp_path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_missing_or_wrong_data_folder(tmp_path):
    with pytest.raises(PicoPoseError, match="--data-dir or BOP_PATH"):
        open_dataset("lmo", tmp_path / "nowhere")
    write_scene(tmp_path / "lmo/test/000002", {3: [1]})
    with pytest.raises(PicoPoseError, match="pass the folder above"):
        open_dataset("lmo", tmp_path / "lmo")


def test_data_set_without_scenes(tmp_path):
    (tmp_path / "mine/test/images").mkdir(parents=True)
    with pytest.raises(PicoPoseError, match="no split with scenes"):
        open_dataset("mine", tmp_path)


def test_ambiguous_splits_are_not_guessed(tmp_path):
    for split in ("test_a", "test_b"):
        write_scene(tmp_path / "mine" / split / "000001", {0: [1]})
    with pytest.raises(PicoPoseError, match="test_a, test_b; choose one with --split"):
        open_dataset("mine", tmp_path)
    assert open_dataset("mine", tmp_path, split="test_b").split == "test_b"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({}, "missing"),
        ({"cam_K": None}, "missing"),
        ({"cam_K": K[:8]}, "nine finite numbers"),
        ({"cam_K": [*K, 1.0]}, "nine finite numbers"),
        ({"cam_K": [float("nan"), *K[1:]]}, "nine finite numbers"),
        ({"cam_K": ["300", *K[1:]]}, "nine finite numbers"),
        ({"cam_K": [True, *K[1:]]}, "nine finite numbers"),
        ({"cam_K": [10**400, *K[1:]]}, "nine finite numbers"),
        ({"cam_K": "eye"}, "nine finite numbers"),
        ({"cam_K": K, "cam_model": {"projection_model_type": "PinholePlane"}}, "both cam_K and cam_model"),
        ({"cam_model": {"projection_model_type": "CameraModelType.FISHEYE624"}}, "are not 15 or 16"),
        ({"cam_model": {"projection_model_type": "PinholePlane", "projection_params": [1, 2, 3]}}, "fx, fy, cx, cy"),
        ({"cam_model": {"projection_model_type": "PinholePlane", "projection_params": [0, 1, 2, 3]}}, "not positive"),
        ({"cam_model": 5}, "no projection_model_type"),
        ({"cam_K": [-300.0, *K[1:]]}, "pinhole"),
        ({"cam_K": [*K[:8], 0.0]}, "pinhole"),
        ([1, 2], "not an object"),
        (None, "not an object"),
    ],
)
def test_broken_camera_is_recorded_and_the_others_stay(tmp_path, entry, problem):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1], 1: [1]})
    edit_json(scene / "scene_camera.json", "0", entry)
    cameras = read_scene_cameras(open_dataset("mine", tmp_path), 1)
    assert cameras[0].K is None
    assert problem in cameras[0].problem
    np.testing.assert_array_equal(cameras[1].K.ravel(), K)
    assert cameras[1].depth_scale == 0.1
    assert cameras[1].problem is None


def test_nested_camera_matrix_is_read_row_by_row(tmp_path):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1]})
    edit_json(scene / "scene_camera.json", "0", {"cam_K": [K[:3], K[3:6], K[6:]]})
    np.testing.assert_array_equal(read_scene_cameras(open_dataset("mine", tmp_path), 1)[0].K.ravel(), K)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b'{"0": {"cam_K": [1', "not valid JSON"),
        (b"[1, 2]", "is a list, must be an object"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"zero": {}}', "'zero' is not an id"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\x1f\x8b\x08 cut", "gzip"),
    ],
)
def test_broken_camera_file_names_the_file(tmp_path, content, words):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1]})
    dataset = open_dataset("mine", tmp_path)
    (scene / "scene_camera.json").write_bytes(content)
    with pytest.raises(PicoPoseError, match=words) as caught:
        read_scene_cameras(dataset, 1)
    assert str(scene / "scene_camera.json") in str(caught.value)
    (scene / "scene_camera.json").unlink()
    with pytest.raises(PicoPoseError, match="does not exist"):
        read_scene_cameras(dataset, 1)


def test_object_infos_are_in_metres(tmp_path):
    folder = tmp_path / "mine/models"
    write_models(folder, [0, 2])
    turned = [-1, 0, 0, 5, 0, -1, 0, 10, 0, 0, 1, 0, 0, 0, 0, 1]
    axis = {"axis": [0, 0, 1], "offset": [0, 0, 20]}
    entry = {"diameter": 250.0, "symmetries_discrete": [turned], "symmetries_continuous": [axis]}
    edit_json(folder / "models_info.json", "2", entry)
    infos = read_object_infos(open_dataset("mine", tmp_path, need_images=False))
    assert infos[0].diameter_m == pytest.approx(0.1)
    assert infos[0].symmetries_discrete.shape == (0, 4, 4)
    assert infos[2].diameter_m == pytest.approx(0.25)
    expected = np.array(turned, float).reshape(4, 4)
    expected[:3, 3] = [0.005, 0.01, 0]
    np.testing.assert_allclose(infos[2].symmetries_discrete, [expected])
    np.testing.assert_allclose(infos[2].symmetries_continuous[0][1], [0, 0, 0.02])


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({}, "diameter"),
        ({"diameter": 0}, "diameter"),
        ({"diameter": float("nan")}, "diameter"),
        ({"diameter": "12"}, "diameter"),
        ({"diameter": 1, "symmetries_discrete": [[1, 2]]}, "symmetries_discrete"),
        ({"diameter": 1, "symmetries_discrete": 3}, "symmetries_discrete"),
        ({"diameter": 1, "symmetries_continuous": [{"axis": [0, 0, 0], "offset": [0, 0, 0]}]}, "symmetries_continuous"),
        ({"diameter": 1, "symmetries_continuous": ["z"]}, "symmetries_continuous"),
        (5, "the entry"),
    ],
)
def test_broken_object_info_names_file_and_object(tmp_path, entry, words):
    write_models(tmp_path / "mine/models", [7])
    edit_json(tmp_path / "mine/models/models_info.json", "7", entry)
    with pytest.raises(PicoPoseError, match=f"models_info.json: object 7: {words}"):
        read_object_infos(open_dataset("mine", tmp_path, need_images=False))


def test_missing_meshes_are_errors_when_asked_for(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [1]})
    dataset = open_dataset("mine", tmp_path)  # without models: not everyone reads meshes
    with pytest.raises(PicoPoseError, match="--models"):
        object_ids(dataset)
    with pytest.raises(PicoPoseError, match="does not exist"):
        read_object_infos(dataset)
    write_models(tmp_path / "mine/models", [1, 12])
    with pytest.raises(PicoPoseError, match=r"no mesh of object 5 \(found: 1, 12\)"):
        mesh_path(open_dataset("mine", tmp_path), 5)


def test_evaluation_meshes(tmp_path):
    write_models(tmp_path / "mine/models", [1])
    write_models(tmp_path / "mine/models_eval", [1])
    edit_json(tmp_path / "mine/models_eval/models_info.json", "1", {"diameter": 77.0})
    dataset = open_dataset("mine", tmp_path, need_images=False)
    assert mesh_path(dataset, 1).parent.name == "models"
    assert mesh_path(dataset, 1, evaluation=True).parent.name == "models_eval"
    assert read_object_infos(dataset)[1].diameter_m == pytest.approx(0.077)


def test_split_names_of_the_toolkit():
    assert toolkit_split("test_primesense") == ("test", "primesense")
    assert toolkit_split("test") == ("test", None)


REAL_SETS = {
    "lmo": ("test", ".png", [2], 8),
    "lm": ("test", ".png", [6], 1),
    "hope": ("val", ".jpg", [0, 1, 2, 3], 2),
    "visp_cube": ("test", ".png", [0], 1),
    "bba": ("test", ".png", [0], 1),
}


@pytest.mark.parametrize("name", sorted(REAL_SETS))
def test_real_folders_open(shared_dir, name):
    split, ext, scenes, objects = REAL_SETS[name]
    dataset = open_dataset(name, shared_dir / "real")
    assert (dataset.split, dataset.layout.image_ext, dataset.scene_ids()) == (split, ext, scenes)
    assert len(object_ids(dataset)) == objects == len(read_object_infos(dataset))
    assert dataset.has_public_gt
    for scene_id in scenes:
        for im_id, camera in read_scene_cameras(dataset, scene_id).items():
            assert camera.K is not None
            assert dataset.image_path(scene_id, im_id).is_file()


def test_absurd_numbers_of_symmetries_are_refused(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [1]})
    axis = {"axis": [0, 0, 1], "offset": [0, 0, 0]}
    path = tmp_path / "mine/models/models_info.json"
    write_json(path, {"1": {"diameter": 100, "symmetries_continuous": [axis] * 3}})
    dataset = open_dataset("mine", tmp_path)
    assert len(read_object_infos(dataset)[1].symmetries_continuous) == 3
    write_json(path, {"1": {"diameter": 100, "symmetries_continuous": [axis] * 1000}})
    with pytest.raises(PicoPoseError, match=r"models_info\.json: object 1 has 315000 symmetry transformations, more"):
        read_object_infos(dataset)
