"""Checks of options that need no heavy module: a mistyped name is refused before the seconds that torch takes."""

from __future__ import annotations

from picopose_cli.base.options import InferOptions, resolve_dataset
from picopose_cli.bop.datasets import require_dataset


def check_names(options: InferOptions) -> None:
    """Raise PicoPoseError when there is no such data folder or data set."""
    require_dataset(*resolve_dataset(options.dataset, options.data_dir))
