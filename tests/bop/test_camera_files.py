"""Cameras of single images, in the files that people have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.bop.camera_files import read_K

NUMBERS = [300.0, 0, 160, 0, 310, 120, 0, 0, 1]
IMAGE = Path("photos/000007.png")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps({"fx": 300, "fy": 310, "cx": 160, "cy": 120, "width": 320})),
        ("b.json", json.dumps({"cam_K": NUMBERS})),
        ("c.json", json.dumps({"6": {"cam_K": [1, 0, 0, 0, 1, 0, 0, 0, 1]}, "7": {"cam_K": NUMBERS}})),
        ("d.txt", "300 0 160\n0 310 120\n0 0 1\n"),
        ("e.txt", "300, 310, 160, 120"),
    ],
)
def test_each_form_gives_the_same_camera(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_K(str(tmp_path / name), IMAGE).ravel().tolist() == NUMBERS
    assert read_K("300,310,160,120", IMAGE).ravel().tolist() == NUMBERS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not valid JSON"),
        (b'{"fx": 1}', "has no camera of image '000007'"),
        (b'{"fx": 1, "fy": 1, "cx": "a", "cy": 2}', "needs fx, fy, cx, cy"),
        (b'{"cam_K": [1, 0, 0, 0, 1, 0, 0, 1, 0]}', "not a pinhole"),
        (b'{"cam_model": 3}', "cam_model"),
        (b"", "is empty"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, words):
    (tmp_path / "camera.json").write_bytes(content)
    with pytest.raises(PicoPoseError, match=words) as caught:
        read_K(str(tmp_path / "camera.json"), IMAGE)
    assert str(tmp_path / "camera.json") in str(caught.value)


@pytest.mark.parametrize("text", ["a b c", "1 2 3", "nan 1 2 3", ""])
def test_texts_that_are_no_camera(tmp_path, text):
    (tmp_path / "camera.txt").write_text(text)
    with pytest.raises(PicoPoseError, match=r"camera\.txt"):
        read_K(str(tmp_path / "camera.txt"), IMAGE)
