"""`render-templates --ray`: a worker on each core of a cluster renders objects; the driver writes their banks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.locks import writer_lock
from picopose_cli.rendering.meshes import mesh_files
from picopose_cli.runs.cluster import Cluster, WorkerShare
from picopose_cli.runs.node_files import FileBundle, bundle_files
from picopose_cli.runs.node_worker import NodeContext
from picopose_cli.runs.template_banks import BankJob, RenderReport, add_bank, make_bank


def make_banks_on_cluster(
    jobs: Sequence[BankJob], renderer: str, cluster: Cluster, report: RenderReport, on_progress: Callable[[int], None]
) -> None:
    """Make the banks of the jobs from meshes with one renderer and report each as written or failed.

    `on_progress(n)` is called with the number of objects done since the last call. Raises PicoPoseError when no worker
    can be started.
    """
    jobs = [replace(job, renderer=renderer) for job in jobs]
    sent = [(job, bundle_files(*mesh_files(job.source))) for job in jobs]
    with cluster.dispatcher(MakeBanksOnNode(), sent, WorkerShare(per_core=True)) as dispatcher:
        for done in dispatcher.run():
            job, outcome = jobs[done.job], done.outcome
            try:
                if not isinstance(outcome, PicoPoseError):
                    with writer_lock(job.bank):  # for what a killed run has left of it
                        atomic_write_bytes(job.bank, outcome.content)
                    outcome = outcome.notes
            except PicoPoseError as error:
                outcome = error
            add_bank(report, job, outcome)
            on_progress(1)


@dataclass(frozen=True)
class MadeBank:
    """A bank's file, and what is doubtful about its mesh."""

    content: bytes
    notes: str


@dataclass(frozen=True)
class MakeBanksOnNode:
    """Makes banks on a node."""

    def __call__(self, context: NodeContext) -> Callable[[tuple[BankJob, FileBundle], int], MadeBank]:
        """Return the function that makes the bank of a mesh, which is sent where the node lacks it."""

        def make(sent: tuple[BankJob, FileBundle], _halvings: int) -> MadeBank:
            job, mesh = sent
            with TemporaryDirectory(prefix="picopose-") as folder:
                bank = Path(folder) / job.bank.name
                notes = make_bank(replace(job, source=context.files.local(mesh), bank=bank), context.threads)
                return MadeBank(bank.read_bytes(), notes)

        return make
