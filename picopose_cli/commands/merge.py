"""`picopose merge`: the result file of a run from those of its shards."""

from __future__ import annotations

from rich.console import Console

from picopose_cli.base.files import require_writable
from picopose_cli.base.options import MergeOptions
from picopose_cli.bop.result_names import require_result_path
from picopose_cli.runs.journal import journal_path
from picopose_cli.runs.merge import merge_shards
from picopose_cli.runs.report import InferReport, summary_lines
from picopose_cli.runs.shards import remove_other_shards


def run(options: MergeOptions) -> InferReport:
    """Join shards; see `picopose merge --help`.

    Raises PicoPoseError when a shard is missing, there twice, not complete or of another run.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    require_result_path(options.output)
    require_writable(options.output)
    report = merge_shards(options.output, options.shards)
    for shard in options.shards:
        journal_path(shard).unlink(missing_ok=True)  # kept until now, so that a finished shard is not computed again
    remove_other_shards(options.output, report.identity)
    for line in summary_lines(report):
        console.print(line)
    return report
