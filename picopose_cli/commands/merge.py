"""`picopose merge`: the result file of a run from those of its shards."""

from __future__ import annotations

from rich.console import Console

from picopose_cli.base.files import require_writable
from picopose_cli.base.options import MergeOptions
from picopose_cli.bop.result_names import parse_result_name
from picopose_cli.runs.merge import merge_shards
from picopose_cli.runs.report import InferReport, summary_lines


def run(options: MergeOptions) -> InferReport:
    """Join shards; see `picopose merge --help`.

    Raises PicoPoseError when a shard is missing, there twice, not complete or of another run.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)
    parse_result_name(options.output)
    require_writable(options.output)
    report = merge_shards(options.output, options.shards)
    for line in summary_lines(report, []):
        console.print(line)
    return report
