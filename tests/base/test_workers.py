from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.workers import WorkerDiedError, run_jobs


def job_of_any_kind(job: str, share: int) -> tuple[str, int]:
    if job == "refuse":
        raise PicoPoseError("is unlucky", where="here", fix="take another")
    if job == "bug":
        raise ZeroDivisionError("a bug")
    if job == "die":
        os._exit(3)
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hang":
        signal.pause()
    return job, share


def test_jobs_and_their_failures():
    jobs = ["a", "die", "b", "refuse", "kill", "c"]
    outcomes = dict(run_jobs(job_of_any_kind, jobs, 2))
    assert [outcomes[index] for index in (0, 2)] == [("a", 1), ("b", 1)]
    assert outcomes[5][0] == "c"
    assert isinstance(outcomes[1], WorkerDiedError)
    assert str(outcomes[1]) == "the worker process ended with code 3"
    assert str(outcomes[4]) == "the worker process was killed by signal 9"
    assert (outcomes[3].what, outcomes[3].where, outcomes[3].fix) == ("is unlucky", "here", "take another")


def test_a_lone_job_gets_all_cores_and_a_silent_one_is_ended():
    assert list(run_jobs(job_of_any_kind, ["a"], 3)) == [(0, ("a", 3))]
    assert list(run_jobs(job_of_any_kind, ["a"], 3, in_process=True)) == [(0, ("a", 3))]
    [(_, outcome)] = run_jobs(job_of_any_kind, ["hang"], 1, timeout_s=3)
    assert "did not answer within 3 s" in str(outcome)
    assert list(run_jobs(job_of_any_kind, [], 3)) == []


def test_a_bug_is_not_taken_for_a_bad_input():
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug"):
        list(run_jobs(job_of_any_kind, ["bug"], 1))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, blow):
    script = tmp_path / "parent.py"  # a spawned process imports it again
    script.write_text(
        "import os, time\nfrom picopose_cli.base.workers import run_jobs\n"
        "def work(job, share):\n    os.write(1, b'%d\\n' % os.getpid())\n    time.sleep(0.2)\n"
        "if __name__ == '__main__':\n    list(run_jobs(work, range(1000), 3))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )
    pids = {int(parent.stdout.readline()) for _ in range(3)}
    parent.send_signal(blow)
    parent.wait(20)
    deadline = time.monotonic() + 20
    while (alive := [pid for pid in pids if _is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.stdout.close()
    assert not alive


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
