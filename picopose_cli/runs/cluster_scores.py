"""`score --ray`: a worker on each core of a cluster scores result files, each on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_texts import DATA_DIR_VARIABLE
from picopose_cli.base.options import ScoreOptions
from picopose_cli.runs.cluster import Cluster, WorkerShare
from picopose_cli.runs.node_files import FileBundle, bundle_files
from picopose_cli.runs.node_worker import NodeContext
from picopose_cli.runs.scores import ScoredFile, score_file


def scored_on_cluster(options: ScoreOptions, cluster: Cluster) -> Iterator[ScoredFile | PicoPoseError]:
    """Yield the scores of each result file, or why it cannot be scored, in their order.

    The nodes must see the data set; result files are sent. Raises PicoPoseError when no worker can be started.
    """
    files = [_file_or_error(path) for path in options.results]
    with cluster.dispatcher(ScoreOnNode(_for_nodes(options)), files, WorkerShare(per_core=True)) as dispatcher:
        for done in dispatcher.run():
            path, outcome = options.results[done.job], done.outcome
            yield outcome if isinstance(outcome, PicoPoseError) else replace(outcome, path=path)


def _file_or_error(path: Path) -> FileBundle | PicoPoseError:
    try:
        return bundle_files(path)
    except PicoPoseError as error:
        return error


def _for_nodes(options: ScoreOptions) -> ScoreOptions:
    """Return options that mean the same on every node: one process a file, and no path relative to this folder."""
    given = options.data_dir or os.environ.get(DATA_DIR_VARIABLE)
    is_path = options.dataset is not None and os.sep in options.dataset
    return replace(
        options,
        workers=1,
        data_dir=None if is_path or not given else Path(given).absolute(),
        dataset=str(Path(options.dataset).absolute()) if is_path and options.dataset else options.dataset,
    )


@dataclass(frozen=True)
class ScoreOnNode:
    """Scores files on a node."""

    options: ScoreOptions

    def __call__(self, context: NodeContext) -> Callable[[FileBundle | PicoPoseError, int], ScoredFile]:
        """Return the function that scores a result file, which is sent where the node lacks it."""

        def score(file: FileBundle | PicoPoseError, _halvings: int) -> ScoredFile:
            if isinstance(file, PicoPoseError):
                raise file
            return score_file(context.files.local(file), self.options)

        return score
