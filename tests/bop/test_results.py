"""Result files: exact round trips, names, times, and rows that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import ImageTarget, PoseEstimate, Target
from picopose_cli.bop import results
from picopose_cli.bop.result_names import ResultName, parse_result_name, result_file_name
from picopose_cli.bop.results import HEADER, counted_rows, read_results, write_results

R_TEXT = "1 0 0 0 1 0 0 0 1"


def estimates(count=20, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        R, _ = np.linalg.qr(rng.standard_normal((3, 3)))
        T = make_T(R * np.sign(np.linalg.det(R)), rng.uniform((-1, -1, 1), (1, 1, 3)))
        made.append(PoseEstimate(48, index // 3, index % 21, float(rng.random()), T, 0.1 + index // 3 / 7))
    return made


def write_text(path, *rows, header=True):
    path.write_text("\n".join(([HEADER] if header else []) + list(rows)) + "\n")
    return path


def row(scene=1, im=2, obj=3, score=0.5, R=R_TEXT, t="10 20 500", time=0.25):
    return f"{scene},{im},{obj},{score},{R},{t},{time}"


def test_rows_after_the_best_of_a_target_do_not_count(tmp_path):
    scores = [(2, 1, 0.1), (2, 1, 0.3), (2, 1, 0.2), (2, 5, 0.9), (2, 5, 0.9), (7, 1, 0.5), (2, 1, "nan")]
    path = write_text(tmp_path / "m_ycbv-test.csv", *(row(im=im, obj=obj, score=score) for im, obj, score in scores))
    table = read_results(path)
    counted = counted_rows(table, [Target(1, 2, 1, 2), Target(1, 2, 5, 1)])
    assert counted.row.tolist() == [3, 4, 5, 7]  # in their order; of equal scores the first; row 7 is no target's
    assert counted.score.tolist() == [0.3, 0.2, 0.9, 0.5]
    assert (table.not_finite, counted.not_finite) == ((8,), ())
    assert counted_rows(table, [ImageTarget(1, 2, 1)]).row.tolist() == table.row.tolist()


def test_numbers_read_back_as_they_were_written(tmp_path):
    path = tmp_path / "m_ycbv-test.csv"
    made = estimates()
    write_results(path, made)
    table = read_results(path)
    for name in ("scene_id", "im_id", "obj_id", "score", "time_s"):
        assert getattr(table, name).tolist() == [getattr(item, name) for item in made]
    T = np.stack([item.T_cam_from_obj for item in made])
    np.testing.assert_array_equal(table.T_cam_from_obj[:, :3, :3], T[:, :3, :3])
    np.testing.assert_allclose(table.T_cam_from_obj[:, :3, 3], T[:, :3, 3], rtol=1e-15)
    assert table.row.tolist() == list(range(2, 22))
    again = tmp_path / "again_ycbv-test.csv"
    write_results(again, [PoseEstimate(*values) for values in table_rows(table)])
    np.testing.assert_allclose(read_results(again).T_cam_from_obj, table.T_cam_from_obj, rtol=1e-15)


def test_many_rows_are_written_in_parts_and_not_held(tmp_path, monkeypatch):
    write_results(tmp_path / "whole_ycbv-test.csv", estimates())
    monkeypatch.setattr(results, "_ROWS_AT_ONCE", 3)
    write_results(tmp_path / "parts_ycbv-test.csv", iter(estimates()))
    assert (tmp_path / "parts_ycbv-test.csv").read_bytes() == (tmp_path / "whole_ycbv-test.csv").read_bytes()
    write_results(tmp_path / "none_ycbv-test.csv", [])
    assert (tmp_path / "none_ycbv-test.csv").read_text() == HEADER + "\n"


def table_rows(table):
    columns = (table.scene_id, table.im_id, table.obj_id, table.score, table.T_cam_from_obj, table.time_s)
    return zip(*columns, strict=True)


def test_the_file_is_what_bop_demands(tmp_path):
    path = tmp_path / "m_ycbv-test.csv"
    T = make_T(np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32), np.array([0.1, -0.2, 1.5], np.float64))
    write_results(path, [PoseEstimate(np.int64(48), 1, 7, np.float32(0.5), T, 2)])
    expected = "48,1,7,0.5,0.0 -1.0 0.0 1.0 0.0 0.0 0.0 0.0 1.0,100.0 -200.0 1500.0,2.0"
    assert path.read_text() == f"{HEADER}\n{expected}\n"


def test_writer_refuses_what_no_file_may_hold_and_leaves_nothing(tmp_path):
    path = tmp_path / "m_ycbv-test.csv"
    good, other = estimates(2)
    late = PoseEstimate(other.scene_id, other.im_id, 5, 0.5, other.T_cam_from_obj, other.time_s + 1)
    with pytest.raises(ValueError, match="same time"):
        write_results(path, [good, other, late])
    broken = PoseEstimate(1, 1, 5, 0.5, np.full((4, 4), np.nan), 1.0)
    with pytest.raises(ValueError, match="not finite"):
        write_results(path, [good, broken])
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PicoPoseError, match="cannot be written"):
        write_results(tmp_path / "file" / "m_ycbv-test.csv", estimates(1))


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m_ycbv-test.csv"
    write_results(path, estimates(1))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PicoPoseError, match="No space left on device"):
        write_results(path, estimates(5))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_ends_and_header_are_read_as_the_toolkit_does(tmp_path, end):
    path = tmp_path / "m_ycbv-test.csv"
    path.write_bytes(f"{HEADER}\r\n{row()}{end}".encode())
    assert read_results(path).row.tolist() == [2]
    path.write_bytes(f"{row()}\n{row()}{end}".encode())
    assert read_results(path).row.tolist() == [1, 2]
    path.write_bytes(f"\ufeff{HEADER}\n 1 ,2,3,5e-1,{R_TEXT.replace(' ', '  ')}, 1 2 3 ,1{end}".encode())
    assert read_results(path).score.tolist() == [0.5]


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("1,2,3,0.5", "4 fields, need 7"),
        (row() + ",9", "8 fields, need 7"),
        ("", "the line is blank"),
        (row(scene="x"), "scene_id is 'x', not a whole number"),
        (row(im="2.0"), "im_id is '2.0', not a whole number"),
        (row(obj=""), "obj_id is '', not a whole number"),
        (row(obj=10**30), "an id is too large"),
        (row(scene="9" * 5000), "not a whole number"),
        (row(score="high"), "score is 'high'"),
        (row(R="1 0 0 0 1 0 0 0"), "R has 8 numbers"),
        (row(R=R_TEXT.replace(" ", ";")), "R has 1 numbers"),
        (row(R="a" + R_TEXT), "R is 'a1'"),
        (row(t="1 2"), "t 2; need 9 and 3"),
        (row(time="1 2"), "a field has more than one number"),
        (row(time=""), "time is ''"),
        (HEADER, "this is a header, not a row"),
        ("\udcff", "1 fields"),
    ],
)
def test_unreadable_row_is_named(tmp_path, broken, words):
    path = tmp_path / "m_ycbv-test.csv"
    text = "\n".join([HEADER, row(), row(im=3), broken, row(im=4)])
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(PicoPoseError) as caught:
        read_results(path)
    assert "row 4" in str(caught.value)
    assert words in str(caught.value)
    assert "picopose check" in str(caught.value)


def test_numbers_that_are_not_finite_are_read_and_match_nothing(tmp_path):
    rows = [row(score="nan"), row(R="nan 0 0 0 1 0 0 0 1"), row(t="1 inf 3"), row(time="nan"), row(score="inf"), row()]
    table = read_results(write_text(tmp_path / "m_ycbv-test.csv", *rows))
    assert table.not_finite == (2, 3, 4)
    assert np.isnan(table.T_cam_from_obj).any(axis=(1, 2)).tolist() == [True, True, True, False, False, False]
    assert table.score.tolist() == [-np.inf, 0.5, 0.5, 0.5, np.inf, 0.5]
    assert table.mean_time_s() is None


def test_empty_and_missing_files(tmp_path):
    path = tmp_path / "m_ycbv-test.csv"
    for content in ("", HEADER, HEADER + "\n"):
        path.write_text(content)
        with pytest.raises(PicoPoseError, match="has no rows"):
            read_results(path)
    with pytest.raises(PicoPoseError, match="does not exist"):
        read_results(tmp_path / "missing.csv")
    with pytest.raises(PicoPoseError, match="cannot be read"):
        read_results(tmp_path)


def test_mean_time_is_over_images(tmp_path):
    path = write_text(tmp_path / "m_ycbv-test.csv", row(im=1, time=1), row(im=1, time=1.0005), row(im=2, time=4))
    assert read_results(path).mean_time_s() == pytest.approx(2.5)
    write_text(path, row(im=1, time=1), row(im=2, time=-1))
    assert read_results(path).mean_time_s() is None
    write_text(path, row(im=1, time=1), row(im=2, time=2), row(im=1, time=1.5))
    with pytest.raises(PicoPoseError, match="row 4: the time differs"):
        read_results(path).mean_time_s()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("picopose_ycbv-test.csv", ResultName("picopose", "ycbv", "test")),
        ("my-method_hope-val.csv", ResultName("my-method", "hope", "val")),
        ("m_tless-test-primesense_5f2a-11.csv", ResultName("m", "tless", "test", "primesense", "5f2a-11")),
        ("m_lmo-test_a_b.csv", ResultName("m", "lmo", "test", None, "a_b")),
        ("m_lmo-test_v1.2.csv", ResultName("m", "lmo", "test", None, "v1")),
    ],
)
def test_names(tmp_path, name, expected):
    assert parse_result_name(tmp_path / name) == expected


def test_split_folder_of_a_name(tmp_path):
    assert parse_result_name(tmp_path / "m_tless-test-primesense.csv").split_folder == "test_primesense"
    assert parse_result_name(tmp_path / "m_tless-test.csv").split_folder == "test"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("results.csv", "no `_` between METHOD and DATASET"),
        ("pico_pose_ycbv-test.csv", "METHOD and DATASET must not have a `_`"),
        ("picopose_visp_cube-test.csv", "METHOD and DATASET must not have a `_`"),
        ("cnos.v2_ycbv-test.csv", "METHOD must not have a dot"),
        ("_ycbv-test.csv", "METHOD is empty"),
        ("m_ycbv.csv", "no SPLIT in 'ycbv'"),
        ("m_ycbv-.csv", "no SPLIT"),
        ("m_.csv", "DATASET is empty"),
        ("m_-test.csv", "DATASET is empty"),
    ],
)
def test_bad_names_are_explained(tmp_path, name, words):
    with pytest.raises(PicoPoseError, match=words) as caught:
        parse_result_name(tmp_path / name)
    assert name in str(caught.value)


def test_file_names_parse_again(tmp_path):
    assert result_file_name("picopose", "ycbv", "test") == "picopose_ycbv-test.csv"
    assert result_file_name("my-m", "visp_cube", "test") == "my-m_vispcube-test.csv"
    name = parse_result_name(tmp_path / result_file_name("m", "hot3d", "test_quest3"))
    assert (name.dataset, name.split_folder) == ("hot3d", "test_quest3")
    for method in ("", "a_b", "v1.2"):
        with pytest.raises(PicoPoseError, match=r"without `_` and `\.`"):
            result_file_name(method, "ycbv", "test")


PUBLIC = {  # rows, images, mean seconds an image
    "icbin": (1905, 150, 60.419),
    "lmo": (1645, 200, 39.737),
    "tless": (7001, 1000, 33.426),
    "tudl": (1158, 600, 9.010),
    "ycbv": (4914, 900, 25.954),
}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_submissions(shared_dir, name):
    (path,) = (shared_dir / "bop_results").glob(f"cnos-*_{name}-test_*.csv")
    table = read_results(path)
    images = set(zip(table.scene_id.tolist(), table.im_id.tolist(), strict=True))
    rows, image_count, mean_time_s = PUBLIC[name]
    assert (len(table.row), len(images)) == (rows, image_count)
    assert table.mean_time_s() == pytest.approx(mean_time_s, abs=1e-3)
    assert parse_result_name(path).method == "cnos-fastsammegapose"


@pytest.mark.parametrize(("name", "rows"), [("lmo", 1445), ("tless", 6721)])
def test_ground_truth_as_result_files(shared_dir, name, rows):
    (path,) = (shared_dir / "bop_results").glob(f"gt-*_{name}-test_*.csv")
    table = read_results(path)
    assert len(table.row) == rows
    assert table.mean_time_s() == 1.0
    assert table.T_cam_from_obj[:, 2, 3].min() > 0.3
