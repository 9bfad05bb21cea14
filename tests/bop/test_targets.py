"""Targets: from a file, made from the ground truth, and which file serves which split."""

from __future__ import annotations

import pytest
from helpers.bop_folder import write_json, write_scene

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import ImageTarget, Target
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.targets import (
    choose_targets,
    find_targets,
    kind_of,
    read_image_targets,
    read_target_file,
    read_targets,
)


def target(scene_id, im_id, obj_id, inst_count=1):
    return {"scene_id": scene_id, "im_id": im_id, "obj_id": obj_id, "inst_count": inst_count}


@pytest.fixture
def dataset(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {0: [1, 2, 2, (2, 0.05)], 4: [(0, 0.1)]})
    write_scene(tmp_path / "mine/test/000002", {3: [(1, 0.099)]})
    return open_dataset("mine", tmp_path)


def test_made_from_ground_truth_counts_what_is_visible_by_a_tenth(dataset):
    expected = [Target(1, 0, 1, 1), Target(1, 0, 2, 2), Target(1, 4, 0, 1)]
    assert read_targets(dataset) == expected


def test_file_of_the_split_comes_first_and_keeps_its_order_scene_by_scene(dataset):
    entries = [target(2, 3, 1), target(1, 0, 2, 2), target(2, 1, 1), target(1, 0, 0)]
    write_json(dataset.root / "test_targets_bop19.json", entries)
    assert read_targets(dataset) == [
        Target(2, 3, 1, 1), Target(2, 1, 1, 1), Target(1, 0, 2, 2), Target(1, 0, 0, 1)
    ]  # fmt: skip


def test_last_of_repeated_entries_counts_and_zero_adds_nothing(tmp_path):
    entries = [target(1, 0, 1, 2), target(1, 0, 2), target(1, 0, 1, 3), target(1, 0, 3, 0), target(1, 0, 2, 0)]
    assert read_target_file(write_json(tmp_path / "targets.json", entries), "mine") == [Target(1, 0, 1, 3)]


def test_given_file_of_either_kind_overrides(dataset, tmp_path):
    write_json(dataset.root / "test_targets_bop19.json", [target(1, 0, 1)])
    mine = write_json(tmp_path / "mine.json", [target(1, 4, 0)])
    chosen = choose_targets(dataset, str(mine))
    assert (chosen.targets, chosen.source) == ([Target(1, 4, 0, 1)], f"{mine} (BOP19, localisation)")
    assert (chosen.path, chosen.kind, kind_of(str(mine))) == (mine, "bop19", "bop19")
    images = write_json(tmp_path / "images.json", [{"scene_id": 1, "im_id": 4}])
    chosen = choose_targets(dataset, str(images))
    assert (chosen.targets, chosen.source) == ([ImageTarget(1, 4, 100)], f"{images} (BOP24, detection)")
    assert (chosen.kind, kind_of(str(images))) == ("bop24", "bop24")
    with pytest.raises(PicoPoseError, match=r"missing.json: the target file does not exist.*bop19, bop24 or a file"):
        choose_targets(dataset, str(tmp_path / "missing.json"))


def test_kind_of_targets_may_be_named(dataset):
    write_json(dataset.root / "test_targets_bop19.json", [target(1, 0, 1)])
    assert choose_targets(dataset, "bop19").targets == [Target(1, 0, 1, 1)]
    made = choose_targets(dataset, "bop24")
    assert (made.targets, made.path) == (read_image_targets(dataset), None)
    assert made.source == f"made from the ground truth in {dataset.split_dir} (BOP24, detection)"
    images = write_json(dataset.root / "test_targets_bop24.json", [{"scene_id": 1, "im_id": 4}])
    chosen = choose_targets(dataset, "bop24")
    assert (chosen.targets, chosen.path) == ([ImageTarget(1, 4, 100)], images)
    assert (kind_of("bop19"), kind_of("bop24")) == ("bop19", "bop24")


def test_own_file_of_bop19_comes_before_that_of_bop24_and_the_ground_truth_last(dataset):
    made = choose_targets(dataset)
    assert (made.targets, made.path) == (read_targets(dataset), None)
    assert made.source == f"made from the ground truth in {dataset.split_dir} (BOP19, localisation)"
    images = write_json(dataset.root / "test_targets_bop24.json", [{"scene_id": 1, "im_id": 4}])
    chosen = choose_targets(dataset)
    assert (chosen.targets, chosen.source) == ([ImageTarget(1, 4, 100)], f"{images} (BOP24, detection)")
    objects = write_json(dataset.root / "test_targets_bop19.json", [target(1, 0, 1)])
    chosen = choose_targets(dataset)
    assert (chosen.targets, chosen.source) == ([Target(1, 0, 1, 1)], f"{objects} (BOP19, localisation)")


def test_typed_split_uses_the_file_of_its_split(tmp_path):
    write_scene(tmp_path / "tless/test_primesense/000001", {0: [1]})
    path = write_json(tmp_path / "tless/test_targets_bop19.json", [target(1, 0, 1)])
    assert find_targets(open_dataset("tless", tmp_path)) == path


def test_test_targets_serve_val_only_when_they_can_mean_it(tmp_path):
    """A folder with only `val` may come with test_targets of its own; BOP's are about the test images."""
    write_scene(tmp_path / "hope/val/000001", {0: [1, 1]})
    path = write_json(tmp_path / "hope/test_targets_bop19.json", [target(1, 0, 1)])
    val = open_dataset("hope", tmp_path)
    assert find_targets(val) == path
    write_json(path, [target(1, 0, 1), target(7, 0, 1)])  # a scene that is not here
    assert find_targets(val) is None
    assert read_targets(val) == [Target(1, 0, 1, 2)]
    write_json(path, [target(1, 0, 1, 3)])  # more instances than there are
    assert find_targets(val) is None
    write_json(path, [target(1, 0, 1)])
    write_scene(tmp_path / "hope/test/000001", {0: [1]}, gt=False)
    assert find_targets(val) is None  # they belong to the test split
    own = write_json(tmp_path / "hope/val_targets_bop19.json", [target(1, 0, 1)])
    assert find_targets(val) == own


def test_private_ground_truth_without_target_file(tmp_path):
    write_scene(tmp_path / "itodd/test/000001", {0: [1]}, image_folder="gray", ext=".tif", gt=False)
    dataset = open_dataset("itodd", tmp_path)
    with pytest.raises(PicoPoseError, match=r"no test_targets_bop19\.json.*--targets"):
        read_targets(dataset)
    with pytest.raises(PicoPoseError, match=r"no test_targets_bop24\.json"):
        read_image_targets(dataset)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"scene_id": 1}, "is an object, must be a list"),
        ([target(1, 0, 1), 5], "entry 1 is not an object"),
        ([{"scene_id": 1, "im_id": 0, "obj_id": 1}], "entry 0: inst_count is not a whole number"),
        ([target(1, "0", 1)], "entry 0: im_id"),
        ([target(1, float("nan"), 1)], "entry 0: im_id"),
        ([target(1, -1, 1)], "entry 0: im_id"),
        ([target(1, 0, 1.5)], "entry 0: obj_id"),
        ([target(1, 0, 1, 0)], "there are no targets"),
        ([target(1, 0, 1, -1)], "entry 0: inst_count"),
        ([target(1, 0, 1), {"scene_id": 1, "im_id": 0}], "entry 1: obj_id is not a whole number"),
        ([{"scene_id": 1, "im_id": 0}, {"scene_id": 1}], "entry 1: im_id is not a whole number"),
        ([{"scene_id": 1, "im_id": 0}, 5], "entry 1 is not an object"),
        ([], "there are no targets"),
    ],
)
def test_broken_target_file_names_the_entry(tmp_path, entries, words):
    path = write_json(tmp_path / "targets.json", entries)
    with pytest.raises(PicoPoseError, match=words) as caught:
        read_target_file(path, "mine")
    assert str(path) in str(caught.value)


def test_no_targets_at_all(dataset):
    write_json(dataset.root / "test_targets_bop19.json", [])
    with pytest.raises(PicoPoseError, match="there are no targets"):
        read_targets(dataset)


def test_image_targets(dataset):
    assert read_image_targets(dataset) == [ImageTarget(1, 0, 100), ImageTarget(1, 4, 100), ImageTarget(2, 3, 100)]
    entries = [{"scene_id": 2, "im_id": 3}, {"scene_id": 1, "im_id": 0}, {"scene_id": 1, "im_id": 0}]
    path = write_json(dataset.root / "test_targets_bop24.json", entries)
    assert read_image_targets(dataset) == [ImageTarget(2, 3, 100), ImageTarget(1, 0, 100)]
    write_json(path, [{"scene_id": 1}])
    with pytest.raises(PicoPoseError, match="entry 0: im_id"):
        read_image_targets(dataset)


def test_more_estimates_count_where_bop_says_so(tmp_path):
    path = write_json(tmp_path / "images.json", [{"scene_id": 1, "im_id": 0}])
    assert read_target_file(path, "xyzibd") == [ImageTarget(1, 0, 200)]
    assert read_target_file(path, "unknown") == [ImageTarget(1, 0, 100)]


@pytest.mark.parametrize(("name", "count"), [("lmo", 8), ("lm", 1), ("hope", 30), ("visp_cube", 49), ("bba", 1)])
def test_real_targets(shared_dir, name, count):
    dataset = open_dataset(name, shared_dir / "real")
    assert find_targets(dataset) == dataset.root / "test_targets_bop19.json"
    assert len(read_targets(dataset)) == count


def test_recorded_scoring_targets(shared_dir):
    dataset = open_dataset("ycbv", shared_dir / "scoring")
    assert sum(item.inst_count for item in read_targets(dataset)) == 59
    assert len(read_targets(dataset)) == 53
    assert len(read_image_targets(dataset)) == 12


def test_images_of_the_scored_sensor_are_taken_of_multiview_targets(tmp_path):
    write_scene(tmp_path / "ipd/test/000002", {0: [1], 4: [1]}, image_folder="rgb_photoneo", suffix="_photoneo")
    views = [["photoneo", 0], ["cam1", 0], ["cam2", 0]]
    entries = [{"scene_id": 2, "im_id": views}, {"scene_id": 2, "im_id": [["photoneo", 4], ["photoneo", 0]]}]
    path = write_json(tmp_path / "ipd/test_targets_multiview_bop25.json", entries)
    chosen = choose_targets(open_dataset("ipd", tmp_path), str(path))
    assert [(target.scene_id, target.im_id) for target in chosen.targets] == [(2, 0), (2, 4)]
    assert "each image of photoneo is estimated by itself" in chosen.source
    assert read_target_file(write_json(path, [{"scene_id": 2, "im_id": [3, 1]}]), "mine")[1].im_id == 1
    with pytest.raises(PicoPoseError, match=r"no view of the sensor photoneo \(found: cam1\)"):
        read_target_file(write_json(path, [{"scene_id": 2, "im_id": [["cam1", 0]]}]), "ipd")
    with pytest.raises(PicoPoseError, match="entry 1 has no list of views"):
        read_target_file(write_json(path, [entries[0], {"scene_id": 2}]), "ipd")
