from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import DepthUse, ImageResult, ImageTask, Skip, StageSeconds
from picopose_cli.base.types import PoseEstimate
from picopose_cli.runs import journal
from picopose_cli.runs.identity import differences
from picopose_cli.runs.journal import (
    Journal,
    JournalFollower,
    batch_size_in,
    finished_images,
    journal_path,
    read_identity,
)

HEADER = {"dataset": "toy", "batch_size": 16, "shard": None, "banks": {"1": "ab", "2": None}}
IMAGES = 7


def make_results(seed: int = 0) -> list[ImageResult]:
    """Results with awkward numbers, texts and sizes."""
    rng = np.random.default_rng(seed)
    results = []
    for im_id in range(IMAGES):
        time_s = float(rng.uniform() * 10.0 ** rng.integers(-3, 3))
        poses = rng.standard_normal((im_id % 4, 4, 4)) * 10.0 ** rng.integers(-12, 5)
        estimates = tuple(PoseEstimate(7, im_id, 3 + i, float(rng.uniform()), T, time_s) for i, T in enumerate(poses))
        skips = (Skip(7, im_id, None, 'a "reason"\nwith ümlaut'), Skip(7, im_id, 5, "")) if im_id % 3 == 0 else ()
        task = ImageTask(7, im_id, Path(f"{im_id}.png"), Pinhole(np.eye(3)), ())
        reasons = tuple(None if i % 2 else "no depth" for i in range(len(estimates)))
        depths = (None, DepthUse(problem="is damaged"), DepthUse(reasons, (1.01, float(rng.uniform()))))
        seconds = StageSeconds(*rng.uniform(size=5).tolist())
        results.append(ImageResult(task, estimates, skips, seconds, time_s, depths[im_id % 3]))
    return results


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


RESULTS = make_results()
TASKS = [result.task for result in RESULTS]


def open_journal(path: Path, header=HEADER, tasks=TASKS, **changes) -> Journal:
    return Journal(path, header, tasks, **changes)


def written(path: Path, count: int = IMAGES) -> bytes:
    with open_journal(path) as journal:
        for result in RESULTS[journal.done : count]:
            journal.append(result)
    return path.read_bytes()


def assert_holds(journal: Journal, count: int) -> None:
    assert journal.done == count
    read = list(journal.results())
    assert len(read) == count
    for got, expected in zip(read, RESULTS, strict=False):
        assert got.task is expected.task
        assert (got.skips, got.seconds, got.time_s) == (expected.skips, expected.seconds, expected.time_s)
        assert len(got.estimates) == len(expected.estimates)
        for a, b in zip(got.estimates, expected.estimates, strict=True):
            assert (a.scene_id, a.im_id, a.obj_id, a.score, a.time_s) == (
                b.scene_id, b.im_id, b.obj_id, b.score, b.time_s
            )  # fmt: skip
            assert a.T_cam_from_obj.tobytes() == b.T_cam_from_obj.tobytes()


def test_what_was_appended_reads_back_exactly(tmp_path):
    path = journal_path(tmp_path / "a_toy-test.csv")
    assert path.name == "a_toy-test.csv.journal"
    written(path)
    with open_journal(path) as journal:
        assert_holds(journal, IMAGES)
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + IMAGES
    assert [json.loads(line).get("im_id") for line in lines] == [None, *range(IMAGES)]
    assert read_identity(path) is not None


def test_cut_anywhere_it_holds_the_images_before_and_goes_on_to_the_same_end(tmp_path, caplog):
    path = tmp_path / "a.csv.journal"
    whole = written(path)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    near_ends = {end + step for end in [0, *ends] for step in range(-3, 4)}
    for size in sorted(near_ends | set(np.random.default_rng(0).integers(0, len(whole), 200).tolist())):
        path.write_bytes(whole[: max(size, 0)])
        with open_journal(path) as journal:
            expected = max(sum(end <= size for end in ends) - 1, 0)
            assert journal.done == expected
            assert path.read_bytes() == whole[: ends[expected]]
            if size % 9 == 0:
                assert_holds(journal, expected)
                for result in RESULTS[expected:]:
                    journal.append(result)
                assert path.read_bytes() == whole
    assert not caplog.records  # a torn end is what a kill leaves, no damage


def test_any_changed_byte_ends_the_journal_before_it(tmp_path, caplog):
    path = tmp_path / "a.csv.journal"
    whole = written(path)
    first, last = whole.index(b"\n") + 1, whole.rstrip().rindex(b"\n") + 1
    rng = np.random.default_rng(1)
    for place in rng.integers(first, len(whole), 100).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        caplog.clear()
        with open_journal(path) as journal, caplog.at_level(logging.WARNING):
            before = whole[:place].count(b"\n") - 1
            assert journal.done == before
            assert path.read_bytes() == whole[: len(path.read_bytes())]
            if place < last:
                assert f"damaged after {before} images" in caplog.text


def test_several_images_are_written_as_one_by_one_and_wait_for_the_disk_once(tmp_path, monkeypatch):
    waits = []
    with open_journal(tmp_path / "together") as journal:
        monkeypatch.setattr(os, "fsync", waits.append)
        journal.append(*RESULTS[:5])
        assert (journal.done, len(waits)) == (5, 1)
        with pytest.raises(ValueError, match="image 6 is not the next"):
            journal.append(RESULTS[6])
        journal.append(*RESULTS[5:])
    assert (tmp_path / "together").read_bytes() == written(tmp_path / "one by one")


def test_an_image_that_is_not_the_next_one_is_refused_and_one_in_the_file_is_damage(tmp_path):
    path = tmp_path / "a.csv.journal"
    with open_journal(path) as journal:
        journal.append(RESULTS[0])
        with pytest.raises(ValueError, match="image 2"):
            journal.append(RESULTS[2])
    lines = written(path).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    with open_journal(path) as journal:
        assert_holds(journal, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"batch_size": 8}, "batch_size: 16 there, 8 here"),
        ({"banks": {"1": "ab", "2": "cd"}}, "banks.2: none there, cd here"),
        ({"banks": {"1": "ab"}}, "banks.2: none there, missing here"),
        ({"shard": [1, 2]}, "shard"),
        ({"new_option": True}, "new_option: missing there, True here"),
    ],
)
def test_a_journal_of_another_run_is_refused_and_left_alone(tmp_path, change, text):
    path = tmp_path / "a.csv.journal"
    before = written(path, 3)
    with pytest.raises(PicoPoseError, match="another run") as caught:
        open_journal(path, header=HEADER | change)
    assert text in str(caught.value)
    assert "--restart" in str(caught.value)
    assert "--output" in str(caught.value)
    assert path.read_bytes() == before
    with open_journal(path, header=HEADER | change, restart=True) as journal:
        assert journal.done == 0
        journal.append(RESULTS[0])
    assert read_identity(path) != json.loads(before.splitlines()[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("time_s", -1), ("time_s", "1"), ("time_s", float("nan")), ("estimates", None), ("estimates", [[3, 0.5]]),
        ("estimates", [[3, 0.5, [1.0] * 15]]), ("estimates", [["3", 0.5, [1.0] * 16]]),
        ("estimates", [[3, float("inf"), [1.0] * 16]]), ("skips", [[None, 3]]), ("skips", {}), ("seconds", {}),
        ("seconds", {"read": 1, "crop": 1, "network": 1, "pnp": 1, "refine": None}), ("scene_id", True),
    ],
)  # fmt: skip
def test_a_well_formed_record_of_nonsense_is_computed_again(tmp_path, name, value):
    path = journal_path(tmp_path / "a_toy-test.csv")
    lines = written(path).splitlines(keepends=True)
    record = json.loads(lines[4])
    del record["crc32"]
    path.write_bytes(b"".join([*lines[:4], journal._line(record | {name: value}), *lines[5:]]))
    assert finished_images(path, HEADER, {(7, im_id): task for im_id, task in enumerate(TASKS)}).keys() == {
        (7, im_id) for im_id in range(3)
    }
    with open_journal(path) as opened:
        assert_holds(opened, 3)


def test_a_line_that_is_no_json_under_a_valid_checksum_is_damage(tmp_path):
    path = journal_path(tmp_path / "a_toy-test.csv")
    lines = written(path).splitlines(keepends=True)
    for rest in (b"}{\n", b'"a": ' + b"[" * 100_000 + b"\n"):
        path.write_bytes(b"".join([*lines[:3], b'{"crc32": "%08x", ' % zlib.crc32(rest) + rest]))
        with open_journal(path) as opened:
            assert_holds(opened, 2)


@pytest.mark.parametrize("value", [0, -3, True, "16", 1.5, None])
def test_a_batch_size_that_is_none_is_not_continued(tmp_path, value):
    path = journal_path(tmp_path / "a_toy-test.csv")
    path.write_bytes(journal._line(HEADER | {"batch_size": value}))
    assert batch_size_in(path) is None
    path.write_bytes(journal._line(HEADER))
    assert batch_size_in(path) == HEADER["batch_size"]


def test_a_journal_of_another_run_without_images_is_replaced(tmp_path):
    path = tmp_path / "a.csv.journal"
    path.write_bytes(written(tmp_path / "b.csv.journal", 3).splitlines(keepends=True)[0])
    with open_journal(path, header=HEADER | {"batch_size": 8}) as journal:
        assert read_identity(path)["batch_size"] == 8
        assert journal.done == 0


def test_an_empty_journal_goes_when_its_run_ends_and_a_deleted_one_too(tmp_path):
    path = tmp_path / "a.csv.journal"
    with open_journal(path):
        assert path.is_file()
    assert not path.exists()
    written(path, 2)
    with open_journal(path) as journal:
        journal.delete()
    assert not path.exists()


def test_two_at_once_are_refused(tmp_path):
    path = tmp_path / "a.csv.journal"
    with open_journal(path) as journal:
        journal.append(RESULTS[0])
        with pytest.raises(PicoPoseError, match=r"another process.*--output"):
            open_journal(path)
        with pytest.raises(PicoPoseError, match="another process"):
            open_journal(path, restart=True)
        assert_holds(journal, 1)
    with open_journal(path) as journal:
        assert_holds(journal, 1)


def test_a_journal_removed_while_one_waits_for_it_is_made_anew(tmp_path, monkeypatch):
    """The other process finishes between our opening its journal and locking it."""
    path = tmp_path / "a.csv.journal"
    written(path, 2)
    real = fcntl.flock

    def finish_first(file, how):
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with open_journal(path) as journal:
        journal.append(RESULTS[0])
        assert path.is_file()
        assert_holds(journal, 1)


@pytest.mark.parametrize("part", [0, 10, None])
def test_a_full_disk_loses_no_image_before(tmp_path, monkeypatch, part):
    path = tmp_path / "a.csv.journal"
    before = written(path, 2)
    real = os.write

    def full(file, data):
        if part is not None:
            real(file, data[:part])
        if not part:
            raise OSError(28, "No space left on device")
        return part

    with open_journal(path) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(PicoPoseError, match=r"No space left on device.*2 images.*kept"):
            journal.append(RESULTS[2])
        monkeypatch.setattr(os, "write", real)
        assert path.read_bytes() == before
        journal.append(RESULTS[2])
        assert_holds(journal, 3)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(PicoPoseError, match=r"nowhere.*--output"):
        open_journal(tmp_path / "nowhere/a.csv.journal")


def test_a_follower_counts_whole_lines_and_notices_a_new_start(tmp_path):
    path = tmp_path / "a.csv.journal"
    follower = JournalFollower(path)
    assert follower.done() == 0
    whole = written(path, 5)
    assert follower.done() == 5
    path.write_bytes(whole + b'{"crc')
    assert follower.done() == 5
    written(path, 7)
    assert follower.done() == 7
    path.write_bytes(whole[: whole.index(b"\n") + 1])
    assert follower.done() == 0


def test_differences_are_named_whole():
    found = differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": "x" * 64, "d": None}, "e": 3})
    assert found == ["b.c: xxxxxxxxxxxx... there, 2 here", "b.d: none there, missing here", "e: 3 there, missing here"]


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Journal(tmp_path / "x.journal", {"a": 1}, []) as journal:
        assert journal.done == 0
    assert "has no locks" in caplog.text
