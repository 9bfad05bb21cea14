"""Jobs on workers that die, join late, are slow or lack memory, in simulated time."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers.simulated_cluster import SimulatedCluster

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.workers import WorkerDiedError
from picopose_cli.runs.backend import Lost, NoMemory, Unusable
from picopose_cli.runs.dispatch import JOBS_AHEAD, MOST_TRIES, WINDOW, Dispatcher


def outcomes(count: int, cluster: SimulatedCluster) -> list:
    found = list(Dispatcher(count, cluster).run())
    assert [done.job for done in found] == list(range(count))
    return [done.outcome for done in found]


def test_results_are_in_order_whatever_the_workers_do():
    cluster = SimulatedCluster({"a": 2, "b": 3}, seconds=lambda place, job: 1 + (job * 7919 + place.index) % 13)
    assert outcomes(200, cluster) == list(range(200))
    assert {node for node, _, _ in cluster.given} == {"a", "b"}


def test_without_jobs_no_worker_is_started():
    cluster = SimulatedCluster({"a": 2})
    assert outcomes(0, cluster) == []
    assert cluster.now() == 0


def test_no_more_workers_than_jobs():
    cluster = SimulatedCluster({"a": 8})
    dispatcher = Dispatcher(3, cluster)
    assert len(list(dispatcher.run())) == 3
    assert dispatcher.nodes["a"].workers == 3


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_a_slow_worker_costs_no_more_than_its_part(workers):
    """One is four times slower; ideal: all work to the end."""
    cluster = SimulatedCluster({"a": workers}, seconds=lambda place, _: 4.0 if place.index == 0 else 1.0)
    jobs = 20 * workers
    outcomes(jobs, cluster)
    ideal = jobs / (workers - 1 + 1 / 4)
    assert cluster.now() <= ideal / 0.95


def test_a_worker_that_dies_is_replaced_and_its_jobs_are_done_once():
    cluster = SimulatedCluster({"a": 1, "b": 1}, start_s=2.0)
    cluster.at(5.5, lambda: cluster.kill(cluster.workers_on("a")[0]))
    dispatcher = Dispatcher(30, cluster)
    assert [done.outcome for done in dispatcher.run()] == list(range(30))
    assert dispatcher.nodes["a"].lost == 1
    assert dispatcher.nodes["a"].jobs + dispatcher.nodes["b"].jobs == 30
    assert dispatcher.warnings == {"a worker on a was lost: killed": 1}
    assert "a" in [node for node, _, _ in cluster.given[-6:]]


def test_a_job_that_kills_is_given_up_alone_after_three_workers():
    def answer(_place, job, _halvings):
        return (lambda worker: Lost(worker, f"killed by {job}")) if job in (4, 5) else job

    cluster = SimulatedCluster({"a": 2, "b": 1}, lambda _, job: 3.0 if job in (4, 5) else 1.0, answer, 30.0)
    found = outcomes(200, cluster)
    for job in (4, 5):
        assert isinstance(found[job], WorkerDiedError)
        assert str(found[job]).count("killed by") == MOST_TRIES
    assert [one for job, one in enumerate(found) if job not in (4, 5)] == [*range(4), *range(6, 200)]
    # only a job that was beside one that kills for the first time is given again, and once
    given = Counter(job for _, job, _ in cluster.given)
    assert given[4] == given[5] == MOST_TRIES
    assert sum(given.values()) - 2 * MOST_TRIES <= 198 + 2
    # and a worker gets nothing new until it is free for such a job
    assert max(index for index, (_, job, _) in enumerate(cluster.given) if job in (4, 5)) < 60


def test_every_job_kills_and_it_ends():
    cluster = SimulatedCluster({"a": 2}, answer=lambda *_: lambda worker: Lost(worker, "killed"))
    assert all(isinstance(one, WorkerDiedError) for one in outcomes(7, cluster))


def test_a_node_that_leaves_is_no_jobs_fault_and_one_that_joins_gets_work():
    """Node b leaves and comes back again and again, more often than a job may end workers."""
    cluster = SimulatedCluster({"b": 2}, seconds=lambda *_: 5.0)

    def leave() -> None:
        for worker in cluster.workers_on("b"):
            cluster.kill(worker, node_left=True)
        cluster.nodes.pop("b")

    for turn in range(6):
        cluster.at(4.0 + 20 * turn, leave)
        cluster.at(14.0 + 20 * turn, lambda: cluster.nodes.update(b=2))
    cluster.at(120.0, lambda: cluster.nodes.update(late=1))
    dispatcher = Dispatcher(60, cluster)
    assert [done.outcome for done in dispatcher.run()] == list(range(60))
    assert dispatcher.nodes["late"].jobs > 0
    assert dispatcher.nodes["b"].lost >= 6


def test_a_long_job_outlives_nodes_that_leave_more_often_than_it_may_end_workers():
    cluster = SimulatedCluster({"b": 1}, seconds=lambda *_: 25.0)
    for turn in range(MOST_TRIES + 2):
        cluster.at(10.0 + 20 * turn, lambda: cluster.kill(cluster.workers_on("b")[0], node_left=True))
    assert outcomes(1, cluster) == [0]


def test_a_node_that_vanishes_silently_is_noticed():
    """Ray may tell of the node before it tells of its workers, whose answers never come."""
    cluster = SimulatedCluster({"a": 1, "b": 1}, seconds=lambda place, _: 1e6 if place.node == "b" else 1.0)
    cluster.at(10.0, lambda: cluster.nodes.pop("b"))
    assert outcomes(20, cluster) == list(range(20))
    assert cluster.now() < 100


def test_lacking_memory_halves_the_batch_and_then_goes_elsewhere():
    """Job 3 fits on node big alone, and there with a quarter of the batch."""

    def answer(place, job, halvings):
        fits = job != 3 or (place.node == "big" and halvings >= 2)
        return job if fits else lambda worker: NoMemory(worker, job)

    cluster = SimulatedCluster(
        {"small": 2, "big": 1}, answer=answer, seconds=lambda p, _: 3.0 if p.node == "big" else 1
    )
    assert outcomes(30, cluster) == list(range(30))
    tries = [(node, halvings) for node, job, halvings in cluster.given if job == 3]
    assert [halvings for _, halvings in tries] == [0, 1, 2]
    assert tries[-1][0] == "big"


def test_a_worker_that_lost_its_life_to_memory_halves_the_batch_too():
    def answer(_place, job, halvings):
        return job if job != 3 or halvings else lambda worker: Lost(worker, "no memory", no_memory=True)

    cluster = SimulatedCluster({"a": 2}, answer=answer)
    assert outcomes(10, cluster) == list(range(10))
    assert [halvings for _, job, halvings in cluster.given if job == 3] == [0, 1]


def test_what_fits_nowhere_is_given_up():
    cluster = SimulatedCluster({"a": 1}, answer=lambda _, job, __: job if job else lambda worker: NoMemory(worker, job))
    found = outcomes(5, cluster)
    assert isinstance(found[0], WorkerDiedError)
    assert "a: memory ran out" in str(found[0])
    assert found[1:] == [1, 2, 3, 4]


def test_an_unusable_node_is_left_out_and_named():
    def starts(place, worker):
        return Unusable(worker, "other versions") if place.node == "old" else SimulatedCluster.starts(place, worker)

    dispatcher = Dispatcher(10, SimulatedCluster({"old": 2, "new": 1}, starts=starts))
    assert [done.node for done in dispatcher.run()] == ["new"] * 10
    assert dispatcher.warnings == {"old is not used: other versions": 2}


def test_when_no_worker_can_start_it_says_why():
    cluster = SimulatedCluster({"a": 1, "b": 1}, starts=lambda _, worker: Lost(worker, "killed while it started"))
    with pytest.raises(PicoPoseError, match=r"on 2 nodes: .: killed while it started"):
        list(Dispatcher(3, cluster).run())
    assert cluster.now() < 60


def test_memory_is_bounded_however_long_the_first_job_takes():
    cluster = SimulatedCluster({"a": 3}, seconds=lambda _, job: 1000.0 if job == 0 else 0.1)
    held = []
    dispatcher = Dispatcher(400, cluster, lambda status: held.append(status.held))
    assert [done.outcome for done in dispatcher.run()] == list(range(400))
    assert 3 * WINDOW - 10 < max(held) <= 3 * WINDOW


def test_the_status_adds_up():
    cluster, found, done = SimulatedCluster({"a": 2}, start_s=1.0), [], []
    dispatcher = Dispatcher(50, cluster, lambda status: found.append((len(done), status)))
    for one in dispatcher.run():
        done.append(one)  # noqa: PERF402 - counted while it runs
    assert found[0][1].starting == 2
    assert max(one.in_progress for _, one in found) == 2 * JOBS_AHEAD
    assert all(n + one.held + one.in_progress + one.waiting == 50 for n, one in found)
