"""`picopose report`: one page for a browser, without a network, with every estimate on its image."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import find_browser, open_browser
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import PoseEstimate
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.ground_truth import read_ground_truth
from picopose_cli.bop.results import write_results
from picopose_cli.pictures.report_gallery import LONGEST_SIDES_PX, SMALLEST_SIDE_PX, longest_side_px


def truth(data_dir: Path, moved: dict[int, float], name: str = "toy") -> list[PoseEstimate]:
    """The true poses with scores that fall, each object's moved along x in its own frame."""
    found = []
    for im_id, instances in read_ground_truth(open_dataset(name, data_dir), 1).items():
        for one in instances:
            shift = make_T(np.eye(3), np.array([moved.get(one.obj_id, 0.0), 0, 0]))
            T = one.T_cam_from_obj @ shift
            found.append(PoseEstimate(1, im_id, one.obj_id, 0.9 - 0.1 * len(found), T, 0.1))
    return found


@pytest.fixture
def data_dir(toy_dir, tmp_path) -> Path:
    shutil.copytree(toy_dir / "toy", tmp_path / "bop/toy", ignore=shutil.ignore_patterns("templates"))
    return tmp_path / "bop"


def report(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, ["report", *map(str, arguments)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output + (str(done.exception) if code else "")


def content(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)[1])


def test_scores_errors_and_outlines(data_dir, tmp_path):
    page = tmp_path / "page.html"
    extra = [replace(one, score=one.score - 1) for one in truth(data_dir, {1: 0.1})]  # rows that do not count
    write_results(tmp_path / "b_toy-test.csv", [*extra, *truth(data_dir, {2: 0.02})])
    printed = report(tmp_path / "b_toy-test.csv", "--data-dir", data_dir, "--output", page)
    assert "6 estimates on 3 images" in printed
    found = content(page)
    (file,) = found["files"]
    assert (file["estimates"], file["right"], found["has_truth"]) == (6, 3, True)
    assert 0 < file["metrics"]["AR"] < 1
    assert [one["id"] for one in file["objects"]] == [1, 2]
    assert file["objects"][0]["values"] == [1.0, 1.0, 1.0]
    assert len(found["images"]) == 3
    errors = [one[4] for one in found["estimates"]]
    assert errors[::2] == [0.0] * 3
    np.testing.assert_allclose(errors[1::2], 0.02 / open_diameter(data_dir, 2), rtol=1e-3)
    for _, image, _, _, _, outline, index in found["estimates"]:
        points = np.array(re.findall(r"\d+", outline), int).reshape(-1, 2)
        size_wh = found["images"][image]["w"], found["images"][image]["h"]
        assert len(points) > 3
        assert (points.min(axis=0) >= 0).all()
        assert (points.max(axis=0) <= size_wh).all()
        assert found["truth"][index]


def open_diameter(data_dir: Path, obj_id: int) -> float:
    infos = json.loads((data_dir / "toy/models/models_info.json").read_text())
    return infos[str(obj_id)]["diameter"] / 1000


def test_two_results_are_compared_with_and_without_ground_truth(data_dir, tmp_path):
    paths, page = [tmp_path / "a_toy-test.csv", tmp_path / "b_toy-test.csv"], tmp_path / "page.html"
    for path, moved in zip(paths, ({}, {2: 0.03}), strict=True):
        write_results(path, truth(data_dir, moved))
    for has_truth in (True, False):
        if not has_truth:
            for path in (data_dir / "toy/test/000001").glob("scene_gt*.json"):
                path.unlink()
        printed = report(*paths, "--data-dir", data_dir, "--output", page)
        assert ("not scored" in printed) != has_truth
        found = content(page)
        assert found["has_truth"] == has_truth
        assert len(found["pairs"]) == 6
        differences = [pair[2] for pair in found["pairs"]]
        np.testing.assert_allclose(differences, [0.03 / open_diameter(data_dir, 2)] * 3 + [0] * 3, rtol=1e-3, atol=1e-5)
        for a, b, _ in found["pairs"]:
            first, second = found["estimates"][a], found["estimates"][b]
            assert (first[0], second[0]) == (0, 1)
            assert first[1:3] == second[1:3]


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(data_dir, tmp_path):
    results, page = tmp_path / "a_toy-test.csv", tmp_path / "page.html"
    write_results(results, truth(data_dir, {}))
    (data_dir / "toy/test/000001/rgb/000000.png").write_bytes(b"")
    (data_dir / "toy/models/obj_000002.ply").write_text("no mesh")
    text = results.read_text().splitlines()
    results.write_text("\n".join([*text, text[1].replace(text[1].split(",")[5].split()[0], "nan")]) + "\n")
    printed = report(results, "--data-dir", data_dir, "--output", page)
    assert "not scored" in printed
    problems = " ".join(content(page)["problems"])
    for words in ("image 0:", "object 2 is not drawn", "1 rows have a number that is not finite"):
        assert words in problems
    assert sum(bool(one[5]) for one in content(page)["estimates"]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["nowhere_toy-test.csv"], "does not exist"),
        (["--dataset", "nothere"], "no data set 'nothere'"),
        (["--output", "/proc/nothing/page.html"], "cannot be written"),
        (["--targets", "nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_input_is_one_error(data_dir, tmp_path, changes, words):
    results = tmp_path / "a_toy-test.csv"
    write_results(results, truth(data_dir, {}))
    files = [] if changes[0].endswith(".csv") else [results]
    arguments = [*files, "--data-dir", data_dir, "--output", tmp_path / "page.html", *changes]
    assert words in report(*arguments, code=0 if "--targets" in changes else 1)


def test_result_files_of_two_data_sets_are_refused(data_dir, tmp_path):
    shutil.copytree(data_dir / "toy", data_dir / "other")
    for name in ("toy", "other"):
        write_results(tmp_path / f"a_{name}-test.csv", truth(data_dir, {}, name))
    paths = sorted(tmp_path.glob("*.csv"))
    assert "several data sets" in report(*paths, "--data-dir", data_dir, "--output", tmp_path / "p.html", code=1)


def test_images_get_smaller_the_more_there_are():
    sides = [longest_side_px(count) for count, _ in LONGEST_SIDES_PX]
    assert sides == sorted(sides, reverse=True) == [side for _, side in LONGEST_SIDES_PX]
    assert longest_side_px(5000) == SMALLEST_SIDE_PX < min(sides)


@pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here")
def test_the_page_works_in_a_browser(data_dir, tmp_path):
    paths, page = [tmp_path / "a_toy-test.csv", tmp_path / "b<b onload=x>_toy-test.csv"], tmp_path / "page.html"
    for path, moved in zip(paths, ({}, {2: 0.03}), strict=True):
        write_results(path, truth(data_dir, moved))
    report(*paths, "--data-dir", data_dir, "--output", page)
    with open_browser(find_browser()) as browser:
        for width, height in ((1280, 900), (390, 844)):
            browser.open(page.as_uri(), width, height)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out
            assert browser.evaluate("document.querySelector('h1').textContent").endswith("b<b onload=x>_toy-test")
            assert browser.evaluate("document.querySelectorAll('#gallery .card').length") == 12
            assert browser.evaluate("document.querySelectorAll('#differences .pair').length") == 6
        browser.evaluate("document.querySelectorAll('#gallery select')[1].value = '2'")
        browser.evaluate("document.querySelectorAll('#gallery select')[1].dispatchEvent(new Event('change'))")
        assert browser.evaluate("document.querySelectorAll('#gallery .card').length") == 6
        browser.evaluate("document.querySelector('#gallery .card').focus()")
        browser.press("Enter")
        caption = "document.getElementById('caption').textContent"
        assert browser.evaluate("document.getElementById('viewer').open") is True
        assert "object 2" in browser.evaluate(caption)
        assert browser.evaluate(caption).endswith("1 of 6")
        browser.press("ArrowRight")
        assert browser.evaluate(caption).endswith("2 of 6")
        before = browser.evaluate("document.getElementById('stage').getAttribute('viewBox')")
        browser.press("+")
        assert browser.evaluate("document.getElementById('stage').getAttribute('viewBox')") != before
        assert browser.evaluate("document.querySelectorAll('#stage path.truth').length") == 1
        browser.press("Escape")
        assert browser.evaluate("document.getElementById('viewer').open") is False
        assert browser.errors == []
        assert {url.partition(":")[0] for url in browser.requests} <= {"file", "blob"}
