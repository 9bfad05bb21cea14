"""Shards of one run: their file names, and the images that the run finished when it was sharded in another way."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from picopose_cli.base.tasks import ImageResult, ImageTask
from picopose_cli.runs.identity import is_same_run
from picopose_cli.runs.journal import ImageKey, finished_images, is_being_written, journal_path, read_identity
from picopose_cli.runs.report import report_path

_SHARD_STEM = re.compile(r"(?P<whole>.+)_\d+of\d+")


def shard_path(output: Path, index: int, count: int) -> Path:
    """Return the path of a shard of a result file: `picopose_ycbv-test_2of8.csv`."""
    return output.with_name(f"{output.stem}_{index}of{count}{output.suffix}")


def shard_paths(output: Path, count: int) -> list[Path]:
    """Return the paths of the shards of a result file; a single shard is the file itself."""
    return [shard_path(output, index, count) for index in range(1, count + 1)] if count > 1 else [output]


def begun_outputs(output: Path) -> list[Path]:
    """Return the whole result file and all shards of it that have a journal, given the path of any of them."""
    match = _SHARD_STEM.fullmatch(output.stem)
    whole = output.with_name(f"{match['whole']}{output.suffix}") if match else output
    journals = sorted(whole.parent.glob(f"{whole.stem}_*of*{whole.suffix}.journal"))
    shards = [path.with_suffix("") for path in journals if _SHARD_STEM.fullmatch(path.with_suffix("").stem)]
    return [path for path in (whole, *shards) if journal_path(path).is_file()]


def finished_elsewhere(
    output: Path, identity: Mapping[str, Any], tasks: Sequence[ImageTask]
) -> dict[ImageKey, ImageResult]:
    """Return the results in the journals of the other shards of a run, or of the unsharded run.

    A run that was stopped on two devices thus goes on with one, or with three.
    """
    by_key = {(task.scene_id, task.im_id): task for task in tasks}
    found: dict[ImageKey, ImageResult] = {}
    for other in begun_outputs(output):
        if other != output:
            found |= finished_images(journal_path(other), identity, by_key)
    return found


def remove_other_shards(output: Path, identity: Mapping[str, Any]) -> None:
    """Remove the files of shards of a run that is finished; those that a run is writing, or of another run, stay."""
    for other in begun_outputs(output):
        theirs = read_identity(journal_path(other))
        if other == output or theirs is None or is_being_written(journal_path(other)):
            continue
        if is_same_run(identity, theirs):
            remove_shard(other)


def remove_shard(output: Path) -> None:
    """Remove the result file, the report and the journal of a shard."""
    for path in (output, report_path(output), journal_path(output)):
        path.unlink(missing_ok=True)
