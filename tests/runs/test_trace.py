from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.runs.trace import Trace


def test_events_of_all_threads_in_chromes_format(tmp_path):
    path = tmp_path / "deep/trace.json"
    trace = Trace(path)
    started = time.perf_counter()

    def work(index: int) -> None:
        for step in range(50):
            trace.record("crop", started + step, started + step + 0.25, f'image "{index}"')

    threads = [threading.Thread(target=work, args=(index,), name=f"crop_{index}") for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trace.close()
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [event for event in events if event["ph"] == "X"]
    assert sorted(names.values()) == [f"crop_{index}" for index in range(4)]
    assert len(spans) == 4 * 50
    assert all(event["dur"] == pytest.approx(250000) and event["name"] == "crop" for event in spans)
    assert {(names[event["tid"]], event["args"]["of"]) for event in spans} == {
        (f"crop_{index}", f'image "{index}"') for index in range(4)
    }
    assert max(event["ts"] for event in spans) - min(event["ts"] for event in spans) == pytest.approx(49e6)


def test_a_trace_without_events_is_whole(tmp_path):
    Trace(tmp_path / "trace.json").close()
    assert json.loads((tmp_path / "trace.json").read_text()) == {"traceEvents": []}


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(PicoPoseError, match="--profile"):
        Trace(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_said_and_ends_nothing(caplog):
    trace = Trace(Path("/dev/full"))
    for _ in range(1000):
        trace.record("crop", 0.0, 1.0, "image")
    trace.close()
    assert "No space left" in caplog.text
