"""JSON files of unknown origin: what cannot be read is an error with the file's name, what is double is not lost."""

from __future__ import annotations

import gzip
import json

import pytest
from helpers.bop_folder import write_json, write_scene

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.bop import json_files
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.json_files import read_indexed, read_json


def write_text(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("{", "is not valid JSON"),
        ("\x00", "is not valid JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "has a number of thousands of digits"),
        ('{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice in one object"),
        ('[[{"a": {"b": 1, "b": 1}}]]', "key 'b' occurs twice in one object"),
    ],
)
def test_unreadable_files_are_named(tmp_path, text, words):
    path = write_text(tmp_path / "any.json", text)
    with pytest.raises(PicoPoseError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["9" * 5000, "x", "-1", "", "1.0", "\u0661"])
def test_keys_that_are_no_ids(tmp_path, key):
    with pytest.raises(PicoPoseError, match="is not an id"):
        read_indexed(write_json(tmp_path / "any.json", {key: 1}))


def test_ids_that_are_written_in_two_ways_are_not_lost(tmp_path):
    assert read_indexed(write_json(tmp_path / "any.json", {"000001": 1, "2": 2})) == {1: 1, 2: 2}
    with pytest.raises(PicoPoseError, match="id 1 occurs twice"):
        read_indexed(write_json(tmp_path / "any.json", {"1": 1, "000001": 1}))


@pytest.mark.parametrize("packed", [True, False])
def test_size_is_bounded_after_unpacking(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(json_files, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(json_files, "_BLOCK_BYTES", 1 << 16)
    path = tmp_path / "any.json.gz"
    for blanks, fits in ((1 << 19, True), (1 << 24, False)):
        data = b"[1]" + b" " * blanks
        path.write_bytes(gzip.compress(data) if packed else data)
        if fits:
            assert read_json(path) == [1]
            continue
        with pytest.raises(PicoPoseError, match="GiB when unpacked" if packed else "has more than"):
            read_json(path)


def test_an_image_that_is_listed_twice_is_an_error(tmp_path):
    write_scene(tmp_path / "mine/test/000001", {3: [1]})
    path = tmp_path / "mine/test/000001/scene_gt.json"
    instances = json.dumps(json.loads(path.read_text())["3"])
    path.write_text(f'{{"3": {instances}, "3": []}}')
    with pytest.raises(PicoPoseError, match=r"scene_gt\.json: key '3' occurs twice"):
        read_ground_truth(open_dataset("mine", tmp_path), 1)


def test_a_detection_with_a_key_twice_is_left_out_and_recorded(tmp_path):
    entry = '"scene_id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2, 3, 4], "time": 0, "score": 0.5'
    mask = '"segmentation": {"size": [4, 4], "size": [4, 5], "counts": [16]}'
    path = write_text(tmp_path / "d.json", f'[{{{entry}}}, {{{entry}, "score": 0.6}}, {{{entry}, {mask}}}]')
    found = read_detections(path)
    assert len(found.by_image[1, 2]) == 1
    assert found.problems == [
        f"{path}: entry 1: key 'score' occurs twice in one object",
        f"{path}: entry 2: key 'size' occurs twice in one object",
    ]
