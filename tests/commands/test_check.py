"""`picopose check`: each kind of planted defect is found with its row, and clean files stay clean."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from helpers.bop_folder import write_json, write_scene

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.options import CheckOptions
from picopose_cli.base.types import PoseEstimate, Target
from picopose_cli.bop.check import check_results
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.results import HEADER, write_results
from picopose_cli.bop.targets import read_targets
from picopose_cli.commands import check as command

R_TEXT = "1 0 0 0 1 0 0 0 1"
TARGETS = [Target(1, im_id, obj_id, 1 + obj_id % 2) for im_id in range(12) for obj_id in (1, 2)]


def row(im, obj, *, scene=1, score=0.5, R=R_TEXT, t="10 20 500", time=0.25):
    return f"{scene},{im},{obj},{score},{R},{t},{time}"


def write_rows(path, *rows, header=HEADER):
    path.write_text("\n".join(([] if header is None else [header]) + list(rows)) + "\n")
    return path


def kinds(findings):
    return {(finding.kind, finding.row, finding.severity) for finding in findings}


# One file with a defect of every kind: (row text, kind, severity); the row's number is its place plus 2.
PLANTED = [
    (row(0, 1), None, None),
    (row(0, 1, score=0.4), "duplicate", "warning"),
    (row(0, 2), None, None),
    (row(0, 2, t="11 20 500"), "too many rows", "warning"),
    ("1,1,1,0.5," + R_TEXT, "unreadable row", "error"),
    (row(1, 1) + ",", "unreadable row", "error"),
    ("", "blank line", "error"),
    (row("1.0", 1), "unreadable row", "error"),
    (row(1, 1, R="1 0 0 0 1 0 0 0"), "unreadable row", "error"),
    (row(1, 1, t="1 2 3 4"), "unreadable row", "error"),
    (row(1, 1, score="best"), "unreadable row", "error"),
    (row(1, 1), None, None),
    (row(1, 1, t="12 20 500", time=0.2521), "differing times", "error"),
    (row(1, 2, time=0.2505), None, None),
    (row(2, 1, score="nan"), "NaN", "warning"),
    (row(2, 2, R="1 0 0 0 nan 0 0 0 1"), "NaN", "warning"),
    (row(3, 1, t="inf 0 500"), "NaN", "warning"),
    (row(3, 2, time="nan"), "NaN", "warning"),
    (row(4, 1, R="1 0 0 0 1.05 0 0 0 1"), "not a rotation", "warning"),
    (row(4, 2, R="-1 0 0 0 1 0 0 0 1"), "not a rotation", "warning"),
    (row(5, 1, t="0.01 0.02 0.5"), "t in metres", "warning"),
    (row(5, 2, t="10 20 -500"), "behind camera", "warning"),
    (row(77, 1), "unknown image", "warning"),
    (row(6, 1, scene=9), "unknown image", "warning"),
    (row(6, 9), "unknown object", "warning"),
    (row(7, 1, time=-1), "negative time", "warning"),
    (row(8, 1), None, None),
    (row(-1, 1), "negative id", "warning"),
    (row(9, 1, R="2 0 0 0 2 0 0 0 2"), "not a rotation", "warning"),
    (row(9, 2, R=" ".join(["1e200"] * 9)), "not a rotation", "warning"),
    (HEADER, "unreadable row", "error"),
    (row(10, 1, scene="9" * 40), "unreadable row", "error"),
]


def test_each_planted_defect_is_found_with_its_row(tmp_path):
    path = write_rows(tmp_path / "my_method_ycbv-test.csv", *(text for text, _, _ in PLANTED))
    findings = check_results(path, None, TARGETS)
    expected = {
        (kind, number, severity) for number, (_, kind, severity) in enumerate(PLANTED, start=2) if kind is not None
    }
    expected |= {("name", None, "error"), ("unknown image", 29, "warning")}  # the negative id is no target either
    with_row = {item for item in kinds(findings) if item[0] != "missing target"}
    assert with_row == expected
    given = {(image, obj) for image in (0, 1, 2, 3, 4, 5, 9) for obj in (1, 2)} | {(7, 1), (8, 1)}
    missing = {(target.im_id, target.obj_id) for target in TARGETS} - given
    texts = {finding.text for finding in findings if finding.kind == "missing target"}
    assert texts == {f"target without a row: object {obj} of scene 1, image {im}" for im, obj in missing}


def test_more_rows_than_count_are_harmless_unless_they_tie(tmp_path):
    """The toolkit counts the best inst_count rows of a target, whatever their order."""

    def surplus(*scores):
        rows = [row(0, 1, score=score, t=f"{place} 20 500") for place, score in enumerate(scores)]
        return kinds(check_results(write_rows(tmp_path / "m_ycbv-test.csv", *rows), None, [Target(1, 0, 1, 2)]))

    assert surplus(0.2, 0.9, 0.5, 0.1) == set()
    assert surplus(0.9, 0.5, 0.2, 0.2) == set()
    assert surplus(0.2, 0.5, 0.9, 0.5) == {("too many rows", 5, "warning")}


def test_report_groups_exits_and_names_rows(tmp_path, capsys):
    path = write_rows(tmp_path / "my_method_ycbv-test.csv", *(text for text, _, _ in PLANTED))
    targets = [{"scene_id": t.scene_id, "im_id": t.im_id, "obj_id": t.obj_id, "inst_count": 1} for t in TARGETS]
    report = command.run(CheckOptions(path, targets=write_json(tmp_path / "targets.json", targets)))
    assert report.exit_code == 2
    lines = capsys.readouterr().out.splitlines()
    assert "targets.json (BOP19, localisation)" in lines[0]
    assert lines[-1].endswith("rejected by the toolkit")
    severities = [line.split(":")[0] for line in lines[1:-1]]
    assert severities == sorted(severities)  # errors come first
    assert "error: row 6: 5 fields, need 7" in lines
    assert "error: unreadable row: 5 more (rows 10, 11, 12, 32, 33)" in lines
    assert all("\n" not in line and len(line) < 300 for line in lines)


@pytest.mark.parametrize(
    ("content", "kind", "row_number"),
    [
        ("", "empty file", None),
        ("\n", "empty file", None),
        (HEADER, "empty file", None),
        (HEADER + "\n", "empty file", None),
        (HEADER + "\n\n", "blank line", 2),
        (f"{HEADER}\n{row(0, 1)}\n\n", "blank line", 3),
        (f"scene,image,object,score,R,t,time\n{row(0, 1)}\n", "header", 1),
        (f"scene_id, im_id, obj_id, score, R, t, time\n{row(0, 1)}\n", "header", 1),
        (f"\ufffd\ufffd{row(0, 1)}\n", "unreadable row", 1),
    ],
)
def test_files_that_the_toolkit_rejects(tmp_path, content, kind, row_number):
    path = tmp_path / "m_ycbv-test.csv"
    path.write_text(content, encoding="utf-8")
    assert (kind, row_number, "error") in kinds(check_results(path))
    assert command.run(CheckOptions(path)).exit_code == 2


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "m_ycbv-test.csv"
    path.write_bytes(f"{HEADER}\n{row(0, 1)}\n1,2,\xff".encode("latin-1"))
    assert ("unreadable row", 3, "error") in kinds(check_results(path))


def test_missing_header_is_read_by_the_toolkit_but_worth_a_word(tmp_path):
    path = write_rows(tmp_path / "m_ycbv-test.csv", row(0, 1), header=None)
    assert kinds(check_results(path)) == {("header", 1, "warning")}
    assert command.run(CheckOptions(path)).exit_code == 1


@pytest.mark.parametrize("name", ["results.csv", "a_b_ycbv-test.csv", "v1.0_ycbv-test.csv", "m_ycbv.csv"])
def test_bad_names(tmp_path, name):
    path = write_rows(tmp_path / name, row(0, 1))
    assert kinds(check_results(path)) == {("name", None, "error")}


def test_name_without_csv(tmp_path):
    assert kinds(check_results(write_rows(tmp_path / "m_ycbv-test.txt", row(0, 1)))) == {("name", None, "warning")}


def test_missing_file_is_an_error_of_its_own(tmp_path):
    with pytest.raises(PicoPoseError, match="does not exist"):
        command.run(CheckOptions(tmp_path / "m_ycbv-test.csv"))


@pytest.fixture
def data(tmp_path):
    """A data set of 12 images whose targets are TARGETS, and a complete clean result file for it."""
    root = tmp_path / "data"
    write_scene(root / "mine/test/000001", {im_id: [1, 1, 2] for im_id in range(12)})
    estimates = [
        PoseEstimate(1, target.im_id, target.obj_id, 0.5, make_T(*pose(instance)), 0.5)
        for target in TARGETS
        for instance in range(target.inst_count)
    ]
    path = tmp_path / "m_mine-test.csv"
    write_results(path, estimates)
    return root, path


def pose(instance):
    return np.eye(3), np.array([0.01 * instance, 0.02, 0.5])


def test_clean_file_of_a_data_set(data, capsys):
    root, path = data
    report = command.run(CheckOptions(path, data_dir=root))
    assert report.findings == ()
    assert report.exit_code == 0
    out = capsys.readouterr().out
    assert str(root / "mine/test") in out
    assert out.strip().endswith("no faults")


def test_order_of_rows_does_not_matter(data):
    root, path = data
    header, *rows = path.read_text().splitlines()
    write_rows(path, *reversed(rows), header=header)
    assert command.run(CheckOptions(path, data_dir=root)).exit_code == 0


def test_target_file_is_enough_without_images(tmp_path, data):
    root, path = data
    targets = [asdict(target) for target in read_targets(open_dataset("mine", root))]
    write_json(tmp_path / "bare/mine/test_targets_bop19.json", targets)
    assert command.run(CheckOptions(path, data_dir=tmp_path / "bare")).exit_code == 0
    header, *rows = path.read_text().splitlines()
    write_rows(path, *rows[3:], header=header)
    report = command.run(CheckOptions(path, data_dir=tmp_path / "bare"))
    assert {finding.kind for finding in report.findings} == {"missing target"}


@pytest.fixture
def detected(tmp_path):
    """A BOP24 file of three images, and a clean result file with 1, 3 and 100 estimates of them."""
    images = [{"scene_id": 1, "im_id": im_id} for im_id in range(3)]
    targets = write_json(tmp_path / "test_targets_bop24.json", images)
    counts = enumerate((1, 3, 100))
    rows = [row(im_id, 1 + place % 4, t=f"{place} 20 500") for im_id, count in counts for place in range(count)]
    return write_rows(tmp_path / "d_mine-test.csv", *rows), targets


def test_detection_task_wants_a_row_an_image_and_no_more_than_count(detected, capsys):
    path, targets = detected
    assert command.run(CheckOptions(path, targets=targets)).findings == ()
    assert "test_targets_bop24.json (BOP24, detection)" in capsys.readouterr().out
    header, _, *rows = path.read_text().splitlines()
    write_rows(path, *rows, row(2, 9), row(2, 1, t="5 5 500"), row(3, 1), header=header)
    report = command.run(CheckOptions(path, targets=targets))
    assert kinds(report.findings) == {
        ("missing target", None, "warning"), ("too many rows", 105, "warning"), ("unknown image", 107, "warning")
    }  # fmt: skip
    texts = {finding.text for finding in report.findings}
    assert "target without a row: scene 1, image 0" in texts
    assert "scene 1, image 2 has more rows than the 100 that are counted" in texts
    path = path.rename(path.with_name("d_xyzibd-test.csv"))  # where 200 count
    report = command.run(CheckOptions(path, targets=targets))
    assert {finding.kind for finding in report.findings} == {"missing target", "unknown image"}


def test_detection_task_of_the_data_set(detected, data):
    path, targets = detected
    root, of_objects = data
    own = targets.rename(root / "mine/test_targets_bop24.json")
    report = command.run(CheckOptions(path, data_dir=root))
    assert report.compared_with == f"the targets {own} (BOP24, detection)"
    assert report.findings == ()
    write_json(root / "mine/test_targets_bop19.json", [asdict(target) for target in TARGETS])
    assert command.run(CheckOptions(of_objects, data_dir=root)).findings == ()  # BOP19 comes first
    assert command.run(CheckOptions(path, data_dir=root, targets=own)).findings == ()


def test_data_set_of_the_options_against_that_of_the_name(data, tmp_path):
    root, path = data
    other = path.rename(tmp_path / "m_other-test.csv")
    report = command.run(CheckOptions(other, data_dir=root, dataset="mine"))
    assert kinds(report.findings) == {("name", None, "warning")}
    with pytest.raises(PicoPoseError, match="no data set 'absent'"):
        command.run(CheckOptions(other, data_dir=root, dataset="absent"))
    with pytest.raises(PicoPoseError, match="there is no split 'val'"):
        command.run(CheckOptions(other, data_dir=root, dataset="mine", split="val"))


def test_split_of_the_name(data, tmp_path):
    root, path = data
    dataset = open_dataset("mine", root)
    other = path.rename(tmp_path / "m_mine-val.csv")
    assert kinds(check_results(other, dataset, read_targets(dataset))) == {("name", None, "warning")}


def test_name_that_drops_separators_fits(tmp_path):
    write_scene(tmp_path / "visp_cube/test/000001", {0: [1]})
    path = write_rows(tmp_path / "m_vispcube-test.csv", row(0, 1))
    report = command.run(CheckOptions(path, data_dir=tmp_path))
    assert "visp_cube" in report.compared_with
    assert report.findings == ()


def test_without_data_only_the_file_is_checked_and_said_so(data, capsys, monkeypatch):
    _, path = data
    monkeypatch.delenv("BOP_PATH", raising=False)
    assert {finding.kind for finding in command.run(CheckOptions(path)).findings} == {"not compared"}
    assert "not checked: no data folder is given" in capsys.readouterr().out
    monkeypatch.setenv("BOP_PATH", str(path.parent))
    assert command.run(CheckOptions(path)).exit_code == 1
    assert "not checked" in capsys.readouterr().out
    bad = write_rows(path.parent / "nonsense.csv", row(0, 1))
    assert command.run(CheckOptions(bad)).exit_code == 2
    assert "the file's name has no data set" in capsys.readouterr().out


def test_private_set_without_target_file_is_checked_by_itself(tmp_path, capsys):
    write_scene(tmp_path / "hope/test/000001", {0: [1]}, gt=False)
    path = write_rows(tmp_path / "m_hope-test.csv", row(0, 1))
    assert command.run(CheckOptions(path, data_dir=tmp_path)).exit_code == 1
    assert "no test_targets_bop19.json" in capsys.readouterr().out


def test_time_tolerance_is_that_of_the_toolkit(tmp_path):
    path = write_rows(tmp_path / "m_ycbv-test.csv", row(0, 1, time=1), row(0, 2, time=1.0009), row(0, 3, time=0.9991))
    assert check_results(path) == []  # compared with the image's first row, not with each other


@pytest.mark.parametrize("pattern", ["cnos-*.csv", "gt-*.csv"])
def test_public_files_pass_without_data(shared_dir, pattern, monkeypatch):
    monkeypatch.delenv("BOP_PATH", raising=False)
    paths = sorted((shared_dir / "bop_results").glob(pattern))
    assert paths
    for path in paths:
        assert {finding.kind for finding in command.run(CheckOptions(path)).findings} == {"not compared"}


def test_recorded_scoring_files(shared_dir):
    def found(name):
        path = shared_dir / "scoring/results" / f"{name}_ycbv-test.csv"
        report = command.run(CheckOptions(path, data_dir=shared_dir / "scoring"))
        return report.exit_code, {finding.kind for finding in report.findings}

    assert found("gt") == (0, set())
    assert found("mid") == (1, {"missing target", "unknown object"})


def test_unknown_times_are_not_compared_with_known_ones(tmp_path):
    rows = [row(0, 1, time=-1), row(0, 2, time=0.1), row(0, 3, time=0.1), row(0, 4, time=0.2), row(0, 5, time="nan")]
    findings = check_results(write_rows(tmp_path / "m_ycbv-test.csv", *rows))
    assert kinds(findings) == {
        ("negative time", 2, "warning"), ("differing times", 5, "error"), ("NaN", 6, "warning")
    }  # fmt: skip
    texts = {finding.row: finding.text for finding in findings}
    assert texts[5] == "time 0.2 differs from 0.1 of the same image in row 3"
    assert texts[6] == "time not finite: there is no mean time"


@pytest.mark.parametrize("content", ["[", "{}", "[]", '[{"scene_id": 1}]'])
def test_broken_target_file_is_an_error(data, content):
    root, path = data
    (root / "mine/test_targets_bop19.json").write_text(content)
    with pytest.raises(PicoPoseError, match=r"test_targets_bop19\.json"):
        command.run(CheckOptions(path, data_dir=root))


def test_kind_of_targets_may_be_named(data, capsys, monkeypatch):
    root, path = data
    assert command.run(CheckOptions(path, data_dir=root, targets="bop24")).exit_code == 0
    assert "(BOP24, detection)" in capsys.readouterr().out
    monkeypatch.delenv("BOP_PATH", raising=False)
    with pytest.raises(PicoPoseError, match="no data folder is given"):
        command.run(CheckOptions(path, targets="bop24"))


def test_a_file_that_is_compared_with_nothing_is_a_warning(data, capsys, monkeypatch):
    monkeypatch.delenv("BOP_PATH", raising=False)
    assert command.run(CheckOptions(data[1])).exit_code == 1
    printed = capsys.readouterr().out.strip()
    assert "warning: images, objects and counts are not checked: no data folder is given; pass --data-dir" in printed
    assert printed.endswith("it was not compared with targets")


def test_poses_of_a_sensor_that_is_not_scored_are_named(tmp_path):
    path = write_rows(tmp_path / "mine_ipd-test-cam1.csv", row(1, 1))
    (finding,) = check_results(path)
    assert str(finding) == "warning: the poses are of the sensor cam1, in its frame; BOP scores those of photoneo"
    assert not check_results(write_rows(tmp_path / "mine_ipd-test.csv", row(1, 1)))
