"""Detections: every kind of JSON entry, the usual places, the ground truth's masks, and which are estimated."""

from __future__ import annotations

import gzip
import json
import re

import cv2
import numpy as np
import pytest
from helpers.bop_folder import HEIGHT, MASK_BOX, WIDTH, box_mask, edit_json, gt_entry, write_json, write_scene

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Detection, ImageTarget, Target
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.detections import (
    OFFICIAL_UUIDS,
    find_detections,
    read_detections,
    select_detections,
)
from picopose_cli.bop.ground_truth_masks import ground_truth_detections
from picopose_cli.bop.images import read_mask
from picopose_cli.bop.rle import encode_rle
from picopose_cli.bop.targets import read_targets
from picopose_cli.templates.crops import square_box

NAN = float("nan")


def entry(**changes):
    """One entry of a CNOS file; a change to None removes the field."""
    mask = encode_rle(box_mask(), compressed=False)
    whole = {
        "scene_id": 1,
        "image_id": 0,
        "category_id": 5,
        "bbox": [10.5, 5.25, 20, 12],
        "score": 0.75,
        "time": 0.22,
        "segmentation": {"counts": list(mask.counts), "size": list(mask.size)},
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def segmentation(counts, size=(HEIGHT, WIDTH)):
    return {"counts": counts, "size": list(size)}


COMPRESSED = encode_rle(box_mask()).counts.decode()


@pytest.mark.parametrize("mask", [entry()["segmentation"], segmentation(COMPRESSED)], ids=["plain", "compressed"])
@pytest.mark.parametrize("name", ["detections.json", "detections.json.gz", "gzipped_without_saying.json"])
def test_both_kinds_of_masks_and_gzip(tmp_path, mask, name):
    path = tmp_path / name
    text = json.dumps([entry(segmentation=mask)]).encode()
    path.write_bytes(gzip.compress(text) if "gz" in name else text)
    found = read_detections(path)
    assert found.problems == []
    (detection,) = found.by_image[1, 0]
    assert (detection.obj_id, detection.score, detection.time_s) == (5, 0.75, 0.22)
    assert detection.box_xywh == (10.5, 5.25, 20.0, 12.0)
    np.testing.assert_array_equal(read_mask(detection.mask, (HEIGHT, WIDTH)), box_mask())


@pytest.mark.parametrize("mask", [None, {}])
def test_without_a_mask_the_box_remains(tmp_path, mask):
    path = write_json(
        tmp_path / "d.json", [{**entry(segmentation=None), **({} if mask is None else {"segmentation": mask})}]
    )
    (detection,) = read_detections(path).by_image[1, 0]
    assert detection.mask is None


def test_missing_time_is_unknown_and_whole_floats_are_ids(tmp_path):
    path = write_json(tmp_path / "d.json", [entry(time=None, scene_id=3.0, category_id=0, score=1)])
    (detection,) = read_detections(path).by_image[3, 0]
    assert detection.time_s < 0
    assert detection.obj_id == 0


BROKEN = [
    (entry(score=None), "score is missing"),
    (entry(score=NAN), "score is nan"),
    (entry(score="0.5"), "score is '0.5'"),
    (entry(score=10**400), "score is"),
    (entry(scene_id=None), "scene_id is missing"),
    (entry(image_id="seven"), "image_id is 'seven'"),
    (entry(image_id="-7"), "image_id is '-7'"),
    (entry(image_id="7" * 5000), "image_id is '777"),
    (entry(image_id=-1), "image_id is -1"),
    (entry(category_id=1.5), "category_id is 1.5"),
    (entry(category_id=True), "category_id is True"),
    (entry(bbox=None, segmentation=None), "has neither bbox nor segmentation"),
    (entry(bbox=[], segmentation={}), "has neither bbox nor segmentation"),
    (entry(bbox=[1, 2, 3]), "bbox is not four"),
    (entry(bbox=[1, 2, NAN, 4]), "bbox is not four"),
    (entry(bbox="1 2 3 4"), "bbox is not four"),
    (entry(time="fast"), "time is 'fast'"),
    (entry(time=NAN), "time is nan"),
    (entry(segmentation=[[1, 2, 3, 4]]), "segmentation is not"),
    (entry(segmentation=[[1, 2, 3, 4, 5, NAN]]), "segmentation is not a list of polygons"),
    (entry(segmentation=[[1, 2, 3, 4, 5, 1e300]]), "segmentation is not a list of polygons"),
    (entry(segmentation=[1, 2, 3, 4, 5, 6]), "segmentation is not a list of polygons"),
    (entry(segmentation="mask"), "segmentation is neither"),
    (entry(segmentation={"size": [4, 4]}), "segmentation is neither"),
    (entry(segmentation={"counts": [16]}), "segmentation.size"),
    (entry(segmentation=segmentation([16], (4, "4"))), "segmentation.size"),
    (entry(segmentation=segmentation([16], (4, 4, 4))), "segmentation.size"),
    (entry(segmentation=segmentation([8.5, 7.5], (4, 4))), "segmentation.counts"),
    (entry(segmentation=segmentation([[8], [8]], (4, 4))), "segmentation.counts"),
    (entry(segmentation=segmentation({"a": 1}, (4, 4))), "segmentation.counts"),
    (entry(segmentation=segmentation("é", (4, 4))), "segmentation.counts"),
    (["a", "list"], "is not an object"),
    (None, "is not an object"),
]


@pytest.mark.parametrize(("broken", "words"), BROKEN)
def test_broken_entry_is_recorded_with_its_index_and_the_rest_stays(tmp_path, broken, words):
    path = write_json(tmp_path / "d.json", [entry(), broken, entry(image_id=4)])
    found = read_detections(path)
    assert sorted(found.by_image) == [(1, 0), (1, 4)]
    (problem,) = found.problems
    assert f"{path}: entry 1: " in problem
    assert words in problem


@pytest.mark.parametrize("box", [None, [], "none", ""])
def test_beside_a_mask_the_box_may_be_missing(tmp_path, box):
    """The official writer leaves it empty where it knows none."""
    path = write_json(tmp_path / "d.json", [{**entry(), "bbox": box}, entry(image_id=1, bbox=None)])
    found = read_detections(path)
    assert found.problems == []
    for image in ((1, 0), (1, 1)):
        (detection,) = found.by_image[image]
        assert np.isnan(detection.box_xywh).all()
        assert square_box(read_mask(detection.mask, (HEIGHT, WIDTH)), detection.box_xywh) == square_box(box_mask())


def test_null_is_an_unknown_time(tmp_path):
    path = write_json(tmp_path / "d.json", [{**entry(), "time": None}])
    (detection,) = read_detections(path).by_image[1, 0]
    assert detection.time_s < 0


def test_ids_may_be_text(tmp_path):
    path = write_json(tmp_path / "d.json", [entry(scene_id="000048", image_id="7", category_id="0")])
    (detection,) = read_detections(path).by_image[48, 7]
    assert detection.obj_id == 0


def test_polygons_are_masks(tmp_path):
    x, y, w, h = MASK_BOX
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    path = write_json(tmp_path / "d.json", [entry(segmentation=[ring]), entry(image_id=1, segmentation=[])])
    found = read_detections(path)
    np.testing.assert_array_equal(read_mask(found.by_image[1, 0][0].mask, (HEIGHT, WIDTH)), box_mask())
    assert found.by_image[1, 1][0].mask is None


# -- COCO's annotations


def coco(images, **changes):
    annotation = {key: value for key, value in entry(**changes).items() if key not in ("scene_id", "time", "score")}
    return {"images": images, "annotations": [{"id": 1, "iscrowd": 0, **annotation}], "categories": []}


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([{"id": 0, "file_name": "000048/rgb/000005.png"}], (48, 5)),
        ([{"id": 0, "file_name": "test/000048/gray_cam1/000005.tif"}], (48, 5)),
        ([{"id": 0, "file_name": "rgb/000005.png"}], (2, 5)),
        ([{"id": 0, "file_name": "photo.png", "scene_id": 9}], (9, 0)),
        ([{"id": 3, "file_name": "000048/rgb/000005.png"}], (2, 0)),
        ([], (2, 0)),
    ],
)
def test_coco_annotations(tmp_path, images, expected):
    """The ids come from the image's file name, the scene else from the folder of the file."""
    found = read_detections(write_json(tmp_path / "000002/scene_gt_coco.json", coco(images)))
    assert found.problems == []
    assert list(found.by_image) == [expected]
    (detection,) = found.by_image[expected]
    assert (detection.obj_id, detection.score) == (5, 1.0)
    np.testing.assert_array_equal(read_mask(detection.mask, (HEIGHT, WIDTH)), box_mask())


def test_coco_annotations_that_name_scene_and_score(tmp_path):
    content = {"annotations": [entry(), entry(scene_id=None), "x"], "images": [{"id": 0, "scene_id": 7}, None]}
    found = read_detections(write_json(tmp_path / "d.json", content))
    assert [found.by_image[image][0].score for image in ((1, 0), (7, 0))] == [0.75, 0.75]
    assert "entry 2: is not an object" in found.problems[0]
    unknown = read_detections(write_json(tmp_path / "d.json", coco([])))
    assert "scene_id is missing" in unknown.problems[0]


# -- a folder of masks


def write_masks(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), box_mask().astype(np.uint8) * 255)
    return folder


def test_folder_of_masks_whose_names_say_what_they_show(tmp_path):
    names = ("000001_000000_000005_0.png", "000001_000000_000005_1.png", "1_0_2_a.PNG", "000001_000004_000000_0.png")
    folder = write_masks(tmp_path / "masks", *names, "mask.png")
    (folder / "notes.txt").touch()
    found = read_detections(folder)
    assert {image: [one.obj_id for one in listed] for image, listed in found.by_image.items()} == {
        (1, 0): [5, 5, 2],
        (1, 4): [0],
    }
    assert {(one.score, one.time_s < 0) for listed in found.by_image.values() for one in listed} == {(1.0, True)}
    np.testing.assert_array_equal(read_mask(found.by_image[1, 4][0].mask, (HEIGHT, WIDTH)), box_mask())
    (problem,) = found.problems
    assert "mask.png: the name is not" in problem


def test_folder_of_masks_with_a_table(tmp_path):
    folder = write_masks(tmp_path / "masks", "a.png", "b.png")
    rows = [
        "mask,scene_id,im_id,obj_id,score,time", "b.png,000001,0,5,-0.25,0.5", "a.png,1,0,5,,", "c.png,1,0,5,1,1",
        "a.png,one,0,5,1,1", "a.png,1,0,5,high,1", "a.png,1",
    ]  # fmt: skip
    (folder / "detections.csv").write_text("\n".join(rows))
    found = read_detections(folder)
    listed = [(one.mask.name, one.obj_id, one.score, one.time_s) for one in found.by_image[1, 0]]
    assert listed == [("b.png", 5, -0.25, 0.5), ("a.png", 5, 1.0, -1.0)]
    for problem, words in zip(
        found.problems, ("line 4: there is no mask 'c.png'", "'one'", "'high'", "im_id is ''"), strict=True
    ):
        assert words in problem


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no masks named {scene}_{image}"),
        ({"mask.png": ""}, "has 1 PNG files, none with a name"),
        ({"a.csv": "", "b.csv": ""}, "several CSV files: a.csv, b.csv"),
        ({"a.csv": "file,scene_id"}, "has no column mask, im_id, obj_id"),
        ({"a.csv": "mask,scene_id,im_id,obj_id\n"}, "has no rows"),
    ],
)
def test_folder_without_usable_masks(tmp_path, files, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(PicoPoseError, match=re.escape(words)):
        read_detections(tmp_path)


def test_mask_that_does_not_decode_is_found_when_it_is_read(tmp_path):
    path = write_json(tmp_path / "d.json", [entry(segmentation=segmentation([7, 7]))])
    found = read_detections(path)
    assert found.problems == []
    with pytest.raises(PicoPoseError, match="the runs cover 14 px"):
        read_mask(found.by_image[1, 0][0].mask, (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", 'neither a list of detections nor {"annotations"'),
        (b"7", "neither a list of detections"),
        (b'[{"scene_id": 1', "not valid JSON"),
        (b"", "empty"),
        (gzip.compress(b"[]" * 500, mtime=0)[:-9], "not a complete gzip file"),
        (b"scene_id,im_id", "not valid JSON"),
        (b"[" + b"1" * 10_000 + b"]", "thousands of digits"),
    ],
)
def test_file_that_is_no_list_of_detections(tmp_path, content, words):
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(PicoPoseError, match=words):
        read_detections(path)
    with pytest.raises(PicoPoseError, match="does not exist"):
        read_detections(tmp_path / "missing.json")


# -- the usual places


@pytest.fixture
def lmo(tmp_path):
    write_scene(tmp_path / "lmo/test/000002", {3: [1]})
    return open_dataset("lmo", tmp_path)


@pytest.mark.parametrize(
    "folder",
    [
        "bop23_default_detections_for_task4/cnos-fastsam",
        "default_detections/core19_model_based_unseen/cnos-fastsam",
        "detections",
        "lmo",
        "lmo/detections",
        "",
    ],
)
@pytest.mark.parametrize("ext", [".json", ".json.gz"])
def test_official_file_is_found_in_the_usual_places(lmo, tmp_path, folder, ext):
    path = tmp_path / folder / f"cnos-fastsam_lmo-test_{OFFICIAL_UUIDS['lmo']}{ext}"
    write_json(path, [])
    write_json(path.with_name("cnos-fastsam_ycbv-test_f4f2127c-6f59-447c-95b3-28e1e591f1a1.json"), [])
    write_json(path.with_name("cnos-fastsam_lmo-test_other.json.md5"), [])
    assert find_detections(lmo, tmp_path) == path


def test_official_file_is_preferred_and_others_must_be_unique(lmo, tmp_path):
    folder = tmp_path / "detections"
    write_json(folder / "cnos-fastsam_lmo-testing_other.json", [])
    mine = write_json(folder / "cnos-fastsam_lmo-test.json", [])
    assert find_detections(lmo, tmp_path) == mine
    second = write_json(folder / "cnos-fastsam_lmo-test_again.json", [])
    with pytest.raises(PicoPoseError, match="choose one with --detections") as caught:
        find_detections(lmo, tmp_path)
    assert str(mine) in str(caught.value)
    assert str(second) in str(caught.value)
    official = write_json(folder / f"cnos-fastsam_lmo-test_{OFFICIAL_UUIDS['lmo']}.json", [])
    assert find_detections(lmo, tmp_path) == official


def test_the_only_file_of_detections_in_the_data_set_is_taken(lmo, tmp_path):
    mine = write_json(lmo.root / "detections_rough.json", [])
    write_json(lmo.root / "targets.json", [])
    assert find_detections(lmo, tmp_path) == mine
    others = [write_json(lmo.root / name, []) for name in ("detections.json.gz", "detections_gt.json")]
    with pytest.raises(PicoPoseError, match="choose one with --detections, for example") as caught:
        find_detections(lmo, tmp_path)
    assert all(str(path) in str(caught.value) for path in (mine, *others))
    official = write_json(lmo.root / "cnos-fastsam_lmo-test_any.json", [])
    assert find_detections(lmo, tmp_path) == official


@pytest.mark.parametrize(("dataset", "name"), [("hope", "hopev2"), ("hope", "hope"), ("handal", "handal")])
def test_default_detections_of_h3_by_models_come_before_those_by_images(tmp_path, dataset, name):
    write_scene(tmp_path / dataset / "test/000001", {0: [1]})
    folder = tmp_path / "default_detections"
    free = write_json(folder / f"h3_bop24_model_free_unseen/cnos/cnos-fastsam_{name}-test_a.json", [])
    assert find_detections(open_dataset(dataset, tmp_path), tmp_path) == free
    based = folder / f"h3_bop24_model_based_unseen/cnos-fastsam-with-mask/cnos-fastsam-with-mask_{name}-test_b.json"
    write_json(based, [])
    assert find_detections(open_dataset(dataset, tmp_path), tmp_path) == based


def test_a_file_of_any_name_that_begins_like_detections_is_found(lmo, tmp_path):
    write_json(lmo.root / "targets.json", [{"scene_id": 1, "im_id": 0, "obj_id": 5, "inst_count": 1}])
    (lmo.root / "broken.json.gz").write_bytes(b"no gzip")
    mine = write_json(lmo.root / "yolo.json", [entry()])
    assert find_detections(lmo, tmp_path) == mine
    packed = lmo.root / "yolo2.json.gz"
    packed.write_bytes(gzip.compress(mine.read_bytes()))
    with pytest.raises(PicoPoseError, match=r"yolo\.json, \S+yolo2\.json\.gz"):
        find_detections(lmo, tmp_path)


def test_no_file_says_where_it_looked_and_what_to_pass(lmo, tmp_path):
    with pytest.raises(PicoPoseError) as caught:
        find_detections(lmo, tmp_path)
    for words in ("cnos-fastsam_lmo-test_", "bop23_default_detections_for_task4", str(lmo.root), "--detections gt"):
        assert words in str(caught.value)


def test_detections_of_another_split_are_not_taken(tmp_path):
    write_scene(tmp_path / "hb/val_primesense/000001", {0: [1]})
    write_json(tmp_path / "detections/cnos-fastsam_hb-test_db836947-020a-45bd-8ec5-c95560b68011.json", [])
    with pytest.raises(PicoPoseError, match="cnos-fastsam_hb-val_"):
        find_detections(open_dataset("hb", tmp_path), tmp_path)


def test_official_uuids_are_those_of_the_seven_core_sets():
    assert sorted(OFFICIAL_UUIDS) == ["hb", "icbin", "itodd", "lmo", "tless", "tudl", "ycbv"]
    assert OFFICIAL_UUIDS["tless"] == "8ca61cb0-4472-4f11-bce7-1362a12d396f"


# -- the ground truth as detections


def test_ground_truth_masks_of_the_targets_most_visible_first(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [(1, 0.4), (2, 1.0), (1, 0.9)], 1: [1]}, masks=True)
    dataset = open_dataset("mine", tmp_path)
    found = ground_truth_detections(dataset, [Target(1, 0, 1, 1)])
    assert found.problems == []
    assert list(found.by_image) == [(1, 0)]
    detections = found.by_image[1, 0]
    assert [detection.mask for detection in detections] == [dataset.mask_visib_path(1, 0, gt_id) for gt_id in (2, 0)]
    assert {(item.obj_id, item.score, item.time_s, item.box_xywh) for item in detections} == {(1, 1.0, 0.0, MASK_BOX)}


def test_ground_truth_masks_of_whole_images_are_those_visible_by_a_tenth(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [(1, 0.1), (2, 1.0), (3, 0.09), (1, 0.9)], 1: [1]}, masks=True)
    found = ground_truth_detections(open_dataset("mine", tmp_path), [ImageTarget(1, 0, 100)])
    assert list(found.by_image) == [(1, 0)]
    assert [detection.obj_id for detection in found.by_image[1, 0]] == [2, 1, 1]


def test_ground_truth_box_comes_from_the_mask_where_the_info_is_missing(tmp_path):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1, 1, 1]}, info=False, masks=True)
    (scene / "mask_visib/000000_000001.png").unlink()
    (scene / "mask_visib/000000_000002.png").write_bytes(b"cut")
    found = ground_truth_detections(open_dataset("mine", tmp_path), [Target(1, 0, 1, 3)])
    assert [detection.box_xywh for detection in found.by_image[1, 0]] == [MASK_BOX]
    assert len(found.problems) == 2
    assert "does not exist" in found.problems[0]
    assert "object 1" in found.problems[1]


def test_broken_annotation_is_recorded(tmp_path):
    scene = tmp_path / "mine/test/000001"
    write_scene(scene, {0: [1, 1]}, masks=True)
    edit_json(scene / "scene_gt.json", "0", [gt_entry(1, (NAN, 0, 1)), gt_entry(1)])
    found = ground_truth_detections(open_dataset("mine", tmp_path), [Target(1, 0, 1, 2)])
    assert len(found.by_image[1, 0]) == 1
    assert "instance 0" in found.problems[0]


def test_private_ground_truth_has_no_masks(tmp_path):
    write_scene(tmp_path / "hope/test/000001", {0: [1]}, gt=False)
    with pytest.raises(PicoPoseError, match="not public"):
        ground_truth_detections(open_dataset("hope", tmp_path), [Target(1, 0, 1, 1)])


@pytest.mark.parametrize("name", ["lmo", "lm", "hope", "visp_cube", "bba"])
def test_real_masks_and_the_detections_made_from_them_agree(shared_dir, name):
    dataset = open_dataset(name, shared_dir / "real")
    targets = read_targets(dataset)
    from_masks = ground_truth_detections(dataset, targets)
    from_file = read_detections(dataset.root / "detections_from_gt_cnos_format.json")
    assert from_masks.problems == from_file.problems == []
    image = (targets[0].scene_id, targets[0].im_id)
    size = read_mask(from_file.by_image[image][0].mask, from_file.by_image[image][0].mask.size).shape
    for obj_id in {target.obj_id for target in targets if (target.scene_id, target.im_id) == image}:
        sides = []
        for found in (from_masks, from_file):
            chosen = [detection for detection in found.by_image[image] if detection.obj_id == obj_id]
            sides.append(sorted((item.box_xywh, int(read_mask(item.mask, size).sum())) for item in chosen))
        assert sides[0] == sides[1]


# -- which detections are estimated


def detection(obj_id, score, x=0.0):
    return Detection(obj_id, score, (x, 0.0, 5.0, 5.0), None, 0.1)


def chosen(targets, detections, extra=0):
    return [(item.obj_id, item.score, item.box_xywh[0]) for item in select_detections(targets, detections, extra)]


def test_the_best_inst_count_of_each_target():
    detections = [detection(1, 0.2), detection(2, 0.9), detection(1, 0.6), detection(1, 0.4), detection(3, 1.0)]
    targets = [Target(1, 0, 1, 2), Target(1, 0, 2, 3)]
    assert chosen(targets, detections) == [(1, 0.6, 0.0), (1, 0.4, 0.0), (2, 0.9, 0.0)]
    assert chosen(targets, detections, 1) == [(1, 0.6, 0.0), (1, 0.4, 0.0), (1, 0.2, 0.0), (2, 0.9, 0.0)]
    assert chosen([ImageTarget(1, 0, 2)], detections, 1) == chosen([ImageTarget(1, 0, 2)], detections)


def test_without_its_own_a_target_borrows_the_best_of_the_others_relabelled():
    detections = [detection(2, 0.3, 1), detection(3, 0.8, 2), detection(3, 0.5, 3)]
    targets = [Target(1, 0, 2, 2), Target(1, 0, 7, 2)]
    assert chosen(targets, detections) == [(2, 0.3, 1), (7, 0.8, 2), (7, 0.5, 3)]
    assert chosen(targets, detections, 1) == [(2, 0.3, 1), (7, 0.8, 2), (7, 0.5, 3), (7, 0.3, 1)]


def test_equal_scores_keep_their_order():
    detections = [detection(1, 0.5, x) for x in range(5)]
    assert chosen([Target(1, 0, 1, 3)], detections) == [(1, 0.5, 0), (1, 0.5, 1), (1, 0.5, 2)]


def test_nothing_to_choose_from():
    assert select_detections([Target(1, 0, 1, 3)], []) == []
    assert select_detections([], [detection(1, 1.0)]) == []
