"""A run that is killed, stopped or sharded ends with the file of a run that was left alone."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.networks import random_network
from helpers.rendered_bop import write_bop_dataset

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.interrupts import StoppedError
from picopose_cli.base.options import InferOptions, MergeOptions
from picopose_cli.commands import infer, merge
from picopose_cli.network.checkpoint import save_network
from picopose_cli.runs import onboarding
from picopose_cli.runs.journal import Journal, JournalFollower, journal_path
from picopose_cli.runs.report import read_report

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = 12
NAME = "picopose_toy-test.csv"
BATCH_SIZE = 5
"""Two images a group, so that runs also end within a group."""
THREADS = {"OMP_NUM_THREADS": "1"}
"""In every process: how a sum is split over threads shows in its last bits."""


@pytest.fixture(scope="module")
def folder(toy_dir, tmp_path_factory) -> Path:
    """A data set of more images, with the templates and the network of `toy_dir`."""
    folder = tmp_path_factory.mktemp("resume")
    write_bop_dataset(folder, "toy", images=IMAGES, depth=False)
    shutil.copytree(toy_dir / "toy/models", folder / "toy/models", dirs_exist_ok=True)
    shutil.copytree(toy_dir / "toy/templates", folder / "toy/templates")
    shutil.copy(toy_dir / "tiny.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """The result file of a run that was left alone."""
    done = picopose(folder, folder / "whole" / NAME)
    assert done.returncode == 0, done.stderr
    return folder / "whole" / NAME


def arguments(folder: Path, output: Path, *more: str) -> list[str]:
    return [
        "infer", "--dataset", "toy", "--data-dir", str(folder), "--weights", str(folder / "tiny.safetensors"),
        "--detections", str(folder / "toy/detections.json"), "--hypotheses", "2", "--refine", "0",
        "--batch-size", str(BATCH_SIZE), "--output", str(output), *more,
    ]  # fmt: skip


def start(folder: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    output.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "picopose_cli", *arguments(folder, output, *more)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | THREADS, stdout=pipe, stderr=pipe, text=True)


def picopose(folder: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    process = start(folder, output, *more)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def options(folder: Path, output: Path, **changes) -> InferOptions:
    values = {
        "dataset": "toy", "data_dir": folder, "weights": folder / "tiny.safetensors", "device": "cpu",
        "detections": str(folder / "toy/detections.json"), "hypotheses": 2, "refine": 0, "batch_size": BATCH_SIZE,
        "output": output,
    }  # fmt: skip
    return InferOptions(**(values | changes))


def rows(path: Path) -> list[str]:
    """The lines of a result file without the measured time, which stands last."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]


def times(path: Path) -> list[str]:
    return [line.rpartition(",")[2] for line in path.read_text().splitlines()[1:]]


def journal_times(journal: bytes) -> list[str]:
    """The time of each estimate in the whole lines of a journal, as the result file has it."""
    records = [json.loads(line) for line in journal.split(b"\n")[1:-1]]
    return [repr(record["time_s"]) for record in records for _ in record["estimates"]]


def wait_for(journal: Path, images: int, process: subprocess.Popen[str]) -> None:
    follower = JournalFollower(journal)
    while follower.done() < images and process.poll() is None:
        time.sleep(0.002)


def test_killed_at_random_points_it_ends_with_the_same_file(folder, whole, tmp_path):
    output = tmp_path / NAME
    journal, dice = journal_path(output), random.Random(4)
    kept = b""
    for target in (0, 1, 4, 7, 9, 12):
        process = start(folder, output)
        wait_for(journal, target, process)
        time.sleep(dice.uniform(0, 0.03))
        process.kill()
        process.wait()
        after = journal.read_bytes() if journal.is_file() else b""
        whole_lines = kept[: kept.rfind(b"\n") + 1]
        assert after.startswith(whole_lines) or not journal.is_file()
        kept = after
        if dice.random() < 0.5 and kept:  # the machine loses what it had not yet written
            journal.write_bytes(kept[: -dice.randrange(1, 40)])
            kept = journal.read_bytes()
    done = picopose(folder, output)
    assert done.returncode == 0, done.stderr
    assert rows(output) == rows(whole)
    expected = journal_times(kept)
    assert times(output)[: len(expected)] == expected
    assert read_report(output).images == IMAGES
    assert not journal.exists()


def test_a_signal_stops_it_in_one_line_and_the_same_command_goes_on(folder, whole, tmp_path):
    output = tmp_path / NAME
    for _ in range(5):  # on a busy machine a run may be through before the signal is sent
        process = start(folder, output, "--workers", "1")
        wait_for(journal_path(output), 2, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        output.unlink()
    assert process.returncode == 143, err
    kept = JournalFollower(journal_path(output)).done()
    assert f"{kept} of {IMAGES} images are kept in {journal_path(output)}" in err
    assert len(err.strip().splitlines()) == 1
    assert not output.exists()
    lines = journal_path(output).read_bytes()
    report = infer.run(options(folder, output))
    assert report.kept_images == kept >= 2
    assert rows(output) == rows(whole)
    assert times(output)[: len(journal_times(lines))] == journal_times(lines)


def stop_after(monkeypatch, images: int, number: signal.Signals) -> None:
    """Let the run be interrupted when it has appended that many images, on the spot and not a moment later."""
    real = Journal.append

    def append(journal, *results):
        real(journal, *results)
        if journal.done == images:
            signal.raise_signal(number)

    monkeypatch.setattr(Journal, "append", append)


def stopped_run(monkeypatch, asked: InferOptions, images: int) -> None:
    number = random.Random(images).choice([signal.SIGINT, signal.SIGTERM])
    with monkeypatch.context() as patch:
        stop_after(patch, images, number)
        with pytest.raises(StoppedError, match=f"{images} of") as stopped:
            infer.run(asked)
    assert stopped.value.exit_code == 128 + number


def test_stopped_after_any_image_it_goes_on_to_the_same_file(folder, whole, tmp_path, monkeypatch):
    output = tmp_path / NAME
    for images in range(1, IMAGES, 2):
        stopped_run(monkeypatch, options(folder, output), images)
        kept = journal_times(journal_path(output).read_bytes())
    report = infer.run(options(folder, output))
    assert rows(output) == rows(whole)
    assert times(output)[: len(kept)] == kept
    assert (report.images, report.kept_images) == (IMAGES, images)
    assert report.seconds_per_image == pytest.approx(sum(map(float, times(output))) / (2 * IMAGES))
    assert report.stages_s.network > 0
    assert not journal_path(output).exists()
    saved = json.loads(output.with_suffix(".json").read_text())
    assert saved["kept_images"] == images
    assert saved["seconds_per_image"] == report.seconds_per_image


def test_a_run_whose_journal_is_complete_only_writes_its_files(folder, tmp_path, monkeypatch, capsys):
    """As after a kill between the last image and the removal of the journal."""
    output = tmp_path / NAME
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "delete", lambda _: None)
        infer.run(options(folder, output))
    before = output.read_bytes()
    monkeypatch.setattr(onboarding, "load_inference_network", lambda *_, **__: pytest.fail("the network was loaded"))
    report = infer.run(options(folder, output))
    assert output.read_bytes() == before
    assert report.kept_images == IMAGES
    assert report.images_per_second is None
    assert f"{IMAGES} of them from an earlier run" in capsys.readouterr().out
    assert not journal_path(output).exists()


def test_the_run_that_is_continued_says_the_batch_size(folder, whole, tmp_path, monkeypatch):
    output = tmp_path / NAME
    stopped_run(monkeypatch, options(folder, output), 4)
    report = infer.run(options(folder, output, batch_size=None))
    assert report.identity["batch_size"] == BATCH_SIZE
    assert rows(output) == rows(whole)


def edited_detections(folder: Path, tmp_path: Path) -> str:
    entries = json.loads((folder / "toy/detections.json").read_text())
    entries[-1]["score"] = 0.5
    (tmp_path / "other.json").write_text(json.dumps(entries))
    return str(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"hypotheses": 3}, ["hypotheses: 2 there, 3 here"]),
        ({"batch_size": 4}, ["batch_size: 5 there, 4 here"]),
        ({"refine": 1}, ["refinement"]),
        ({"rules": "paper", "refine": None}, ["rules"]),
        ({"precision": "bf16"}, ["precision: fp32 there, bf16 here"]),
        ({"timing": "sequential"}, ["timing"]),
        ({"extra_detections": 3}, ["extra_detections: 1 there, 3 here"]),
        ({"limit": 5}, ["images: 12 there, 5 here", "tasks_sha256"]),
        ({"shard": "1/2"}, ["shard"]),
        ({"detections": "gt"}, ["detections_sha256"]),
        ({"detections": edited_detections}, ["detections_sha256", "tasks_sha256"]),
    ],
)
def test_another_run_does_not_go_on_from_a_journal(folder, tmp_path, monkeypatch, changes, names):
    output = tmp_path / NAME
    stopped_run(monkeypatch, options(folder, output), 2)
    before = journal_path(output).read_bytes()
    changes = {name: value(folder, tmp_path) if callable(value) else value for name, value in changes.items()}
    with pytest.raises(PicoPoseError, match="another run") as caught:
        infer.run(options(folder, output, **changes))
    for name in names:
        assert name in str(caught.value)
    assert journal_path(output).read_bytes() == before


def test_other_weights_or_banks_are_another_run(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "bop", ignore=shutil.ignore_patterns("whole"))
    output = tmp_path / NAME
    stopped_run(monkeypatch, options(tmp_path / "bop", output), 2)
    (tmp_path / "bop/toy/templates/obj_000002.h5").unlink()
    with pytest.raises(PicoPoseError, match=r"banks\.2: \w+\.\.\. there, none here"):
        infer.run(options(tmp_path / "bop", output))
    shutil.copy(folder / "toy/templates/obj_000002.h5", tmp_path / "bop/toy/templates")
    weights = tmp_path / "bop/tiny.safetensors"
    save_network(weights, random_network(seed=1))
    with pytest.raises(PicoPoseError, match="weights_sha256"):
        infer.run(options(tmp_path / "bop", output))


def test_what_changes_no_result_may_change(folder, whole, tmp_path, monkeypatch):
    output = tmp_path / NAME
    stopped_run(monkeypatch, options(folder, output), 5)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved, ignore=shutil.ignore_patterns("whole"))
    report = infer.run(options(moved, output, workers=3, profile=tmp_path / "trace.json"))
    assert report.kept_images == 5
    assert rows(output) == rows(whole)


def test_restart_discards_the_journal(folder, whole, tmp_path, monkeypatch):
    output = tmp_path / NAME
    stopped_run(monkeypatch, options(folder, output, hypotheses=3, batch_size=7), 4)
    report = infer.run(options(folder, output, restart=True))
    assert report.kept_images == 0
    assert rows(output) == rows(whole)


def test_a_failed_start_leaves_nothing_to_trip_over(folder, tmp_path):
    output = tmp_path / NAME
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(PicoPoseError, match=r"broken\.safetensors"):
        infer.run(options(folder, output, weights=tmp_path / "broken.safetensors"))
    assert not journal_path(output).exists()


def test_two_runs_on_one_output_at_once_are_refused(folder, tmp_path):
    output = tmp_path / NAME
    process = start(folder, output)
    wait_for(journal_path(output), 1, process)
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(PicoPoseError, match="another process is writing this output"):
            infer.run(options(folder, output))
    finally:
        process.kill()
        process.communicate()


def test_a_full_disk_ends_it_with_what_is_kept(folder, whole, tmp_path, monkeypatch):
    output = tmp_path / NAME
    real = os.write

    def full(file, data):
        if b'"im_id":5' in data:
            raise OSError(28, "No space left on device")
        return real(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(PicoPoseError, match=r"No space left on device.*5 images"):
            infer.run(options(folder, output))
    assert infer.run(options(folder, output)).kept_images == 5
    assert rows(output) == rows(whole)


def run_shards(folder: Path, output: Path, count: int, **changes) -> list[Path]:
    shards = []
    for index in range(1, count + 1):
        shards.append(output.with_name(f"{output.stem}_{index}of{count}.csv"))
        infer.run(options(folder, shards[-1], shard=f"{index}/{count}", **changes))
    return shards


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards_merge_to_the_file_of_the_whole(folder, whole, tmp_path, count):
    """Seven shards are more than the groups of images, so that one of them is empty."""
    output = tmp_path / NAME
    shards = run_shards(folder, output, count)
    reports = [read_report(shard) for shard in shards]
    report = merge.run(MergeOptions(output, tuple(reversed(shards))))
    assert rows(output) == rows(whole)
    assert times(output) == [time_s for shard in shards for time_s in times(shard)]
    alone = read_report(whole)
    assert (report.images, report.estimates, report.skipped) == (alone.images, alone.estimates, alone.skipped)
    assert report.identity == alone.identity
    assert report.stages_s.network == pytest.approx(sum(one.stages_s.network for one in reports))
    assert [one["total_s"] for one in report.shards] == [one.total_s for one in reports]
    assert report.peak_memory_mb == max(one.peak_memory_mb for one in reports)
    assert report.exit_code == 0
    assert read_report(output).output_sha256 == report.output_sha256
    assert not list(tmp_path.glob("*.journal"))


def test_leftovers_of_a_killed_merge_are_removed(shards, tmp_path):
    given = copied(shards, tmp_path)
    output = tmp_path / NAME
    left = [path.with_name(f".{path.name}.abc123.tmp{path.suffix}") for path in (output, output.with_suffix(".json"))]
    for path in left:
        path.write_text("half")
    merge.run(MergeOptions(output, tuple(given)))
    assert not any(path.exists() for path in left)


def test_a_finished_shard_is_not_computed_again_until_it_is_merged(folder, tmp_path, monkeypatch):
    output = tmp_path / NAME
    (first, second) = run_shards(folder, output, 2)
    before = first.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(onboarding, "load_inference_network", lambda *_, **__: pytest.fail("the network was loaded"))
        run_shards(folder, output, 2)
    assert first.read_bytes() == before
    merge.run(MergeOptions(output, (first, second)))
    assert not journal_path(first).exists()
    assert first.exists()


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory) -> list[Path]:
    return run_shards(folder, tmp_path_factory.mktemp("shards") / NAME, 3)


def copied(shards: list[Path], folder: Path) -> list[Path]:
    for shard in shards:
        for path in (shard, shard.with_suffix(".json")):
            shutil.copy(path, folder)
    return [folder / shard.name for shard in shards]


def edit_report(path: Path, change) -> None:
    content = json.loads(path.with_suffix(".json").read_text())
    change(content)
    path.with_suffix(".json").write_text(json.dumps(content))


def cut_file(shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:-30])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda shards: shards.pop(1), "of 3 shards, missing: 2"),
        (lambda shards: shards.clear() or shards.append(Path("nowhere_toy-test_1of3.csv")), "nowhere_toy-test_1of3"),
        (lambda shards: shards.append(copied_as(shards[0], "again_toy-test.csv")), "given twice: 1"),
        (lambda shards: edit_report(shards[1], lambda r: r["identity"].update(hypotheses=9)), "hypotheses: 9 there, 2"),
        (lambda shards: edit_report(shards[2], lambda r: r["identity"].update(shard=[3, 4])), "different numbers"),
        (lambda shards: edit_report(shards[0], lambda r: r["identity"].update(shard=None)), "is not a shard"),
        (lambda shards: edit_report(shards[0], lambda r: r.pop("stages_s")), "is not a report"),
        *(
            (lambda shards, change=change: edit_report(shards[0], lambda r: r.update(change)), "is not a report")
            for change in (
                {"estimates": "6"},
                {"images": -1},
                {"images": True},
                {"banks": []},
                {"versions": None},
                {"peak_memory_mb": math.nan},
                {"problems": [1]},
                {"skipped": [{"scene_id": 1}]},
                {"stages_s": {}},
                {"skipped": [{"scene_id": "1", "im_id": 1, "obj_id": None, "reason": "x"}]},
                {"options": 5},
                {"identity": []},
                {"shards": {}},
                {"images_per_second": "fast"},
            )
        ),
        (cut_file, "is not the file that"),
        (lambda shards: shards[0].unlink(), "cannot be read"),
        (lambda shards: shards[0].with_suffix(".json").write_text("{"), "JSON"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(shards, tmp_path, spoil, text):
    given = copied(shards, tmp_path)
    spoil(given)
    with pytest.raises(PicoPoseError, match=text):
        merge.run(MergeOptions(tmp_path / NAME, tuple(given)))
    assert not (tmp_path / NAME).exists()


def copied_as(shard: Path, name: str) -> Path:
    for suffix in (".csv", ".json"):
        shutil.copy(shard.with_suffix(suffix), shard.with_name(name).with_suffix(suffix))
    return shard.with_name(name)


def test_what_shards_skipped_is_in_the_merged_report(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bop", ignore=shutil.ignore_patterns("whole"))
    for im_id in (1, 10):
        (tmp_path / f"bop/toy/test/000001/rgb/{im_id:06d}.png").unlink()
    shards = run_shards(tmp_path / "bop", tmp_path / NAME, 2)
    report = merge.run(MergeOptions(tmp_path / NAME, tuple(shards)))
    assert report.exit_code == 1
    assert [skip.im_id for skip in report.skipped] == [1, 10]
    assert report.estimates == 2 * (IMAGES - 2)


def test_shards_without_one_estimate_merge_to_a_report_of_the_reasons(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bop", ignore=shutil.ignore_patterns("whole"))
    for image in (tmp_path / "bop/toy/test/000001/rgb").iterdir():
        image.write_bytes(b"")
    shards = run_shards(tmp_path / "bop", tmp_path / NAME, 2, limit=4)
    with pytest.raises(PicoPoseError, match="no estimates to write"):
        merge.run(MergeOptions(tmp_path / NAME, tuple(shards)))
    assert not (tmp_path / NAME).exists()
    assert len(read_report(tmp_path / NAME).skipped) == 4


def test_several_devices_killed_end_at_once_go_on_and_give_the_file_of_one(folder, whole, tmp_path):
    output = tmp_path / NAME
    journals = [journal_path(output.with_name(f"{output.stem}_{index}of2.csv")) for index in (1, 2)]
    process = start(folder, output, "--device", "cpu,cpu")
    wait_for(journals[1], 1, process)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    for journal in journals:
        while is_locked(journal):
            assert time.monotonic() < deadline, "a child outlived its parent"
            time.sleep(0.05)
    kept = sum(JournalFollower(journal).done() for journal in journals)
    done = picopose(folder, output, "--device", "cpu,cpu")
    assert done.returncode == 0, done.stderr
    assert f"{2 * IMAGES} estimates of {IMAGES} images" in done.stdout
    assert rows(output) == rows(whole)
    report = read_report(output)
    assert report.kept_images == kept >= 1
    assert len(report.shards) == 2
    assert report.options["device"] == "cpu,cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picopose_toy-test.csv", "picopose_toy-test.json"]


def is_locked(path: Path) -> bool:
    import fcntl

    if not path.is_file():
        return False
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_child_that_fails_says_why(folder, tmp_path):
    output = tmp_path / NAME
    weights = tmp_path / "broken.safetensors"
    weights.write_bytes(b"no weights")
    done = picopose(folder, output, "--device", "cpu,cpu", "--weights", str(weights))
    assert done.returncode == 2
    assert done.stderr.startswith("picopose: the process on cpu failed: ")
    assert "broken.safetensors" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_sequential_timing_measures_each_image_alone(folder, tmp_path):
    report = infer.run(options(folder, tmp_path / NAME, timing="sequential", limit=3, profile=tmp_path / "trace.json"))
    assert report.images == 3
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    by_image = [[e for e in events if e["args"]["of"].startswith(f"scene 1, image {i}")] for i in range(3)]
    for before, after in itertools.pairwise(by_image):
        assert max(e["ts"] + e["dur"] for e in before) <= min(e["ts"] for e in after)
    assert report.seconds_per_image > 0.25 + report.stages_s.network / 3


def test_a_profile_names_the_threads_and_stages(folder, tmp_path):
    infer.run(options(folder, tmp_path / NAME, refine=1, limit=2, profile=tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    stages = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= 0
            stages.setdefault(event["name"], set()).add(names[event["tid"]].split("_")[0])
    assert stages == {
        "read": {"read"}, "crop": {"read"}, "PnP": {"pnp"}, "network": {"MainThread"}, "refine": {"pnp"},
        "journal": {"MainThread"},
    }  # fmt: skip
