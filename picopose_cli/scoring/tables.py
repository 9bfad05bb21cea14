"""Scores as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from picopose_cli.scoring.detection import DetectionScores
from picopose_cli.scoring.localisation import LocalisationScores, Tally

Scores = LocalisationScores | DetectionScores

_NONE = "-"
_HEADS = {
    "bop19_average_recall": "AR",
    "bop19_average_recall_vsd": "AR VSD",
    "bop19_average_recall_mssd": "AR MSSD",
    "bop19_average_recall_mspd": "AR MSPD",
    "bop19_average_time_per_image": "s/image",
    "bop24_mAP": "mAP",
    "bop24_mAP_mssd": "mAP MSSD",
    "bop24_mAP_mspd": "mAP MSPD",
    "bop24_mAP_mssd_mm": "mAP MSSD [mm]",
    "bop24_average_time_per_image": "s/image",
    "bop25_mAP": "2025 mAP",
    "bop25_mAP_mm": "2025 mAP [mm]",
}
_MATCHES = "matches: instances found with an MSSD below half the diameter"


def scores_tables(title: str, scores: Scores) -> list[Table]:
    """Return the tables of one result file, a row per object and the total."""
    if isinstance(scores, DetectionScores):
        return [_detection_table(title, scores)]
    tables = [_localisation_table(title, scores)]
    if scores.total.add is not None:
        tables.append(_average_distance_table(scores))
    return tables


def comparison_table(scores: Mapping[str, Scores]) -> Table:
    """Return a table that compares several result files of the same kind, a row per file."""
    columns: list[str] = []
    rows = []
    for name, one in scores.items():
        summary = {key: value for key, value in one.summary().items() if isinstance(value, float)}
        columns += [key for key in summary if key not in columns]
        rows.append((name, summary))
    table = _table("comparison", ["file", *(_HEADS[key] for key in columns)])
    for name, summary in rows:
        cells = (_seconds(summary[key]) if "time" in key else _number(summary.get(key)) for key in columns)
        table.add_row(name, *cells)
    return table


def difference_table(title: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> Table:
    """Return a table of our scores, the toolkit's and the difference."""
    table = _table(title, ["score", "picopose", "toolkit", "difference"])
    for key in [*theirs, *(key for key in ours if key not in theirs)]:
        a, b = ours.get(key), theirs.get(key)
        difference = _NONE if a is None or b is None else f"{a - b:+.1e}"
        table.add_row(key, _number(a, 6), _number(b, 6), difference)
    return table


def _localisation_table(title: str, scores: LocalisationScores) -> Table:
    heads = (_HEADS[f"bop19_average_recall_{error}"] for error in scores.errors)
    table = _table(title, ["object", "targets", "estimates", "matches", *heads, "AR"], _MATCHES)
    for name, tally in _rows(scores, table):
        recalls = (tally.average_recall(error) for error in tally.errors)
        cells = (_number(value) for value in (*recalls, tally.total))
        table.add_row(name, str(tally.targets), str(tally.estimates), str(tally.matches), *cells)
    return table


def _average_distance_table(scores: LocalisationScores) -> Table:
    caption = "recall at .1 of the diameter; AUC: area under the recall curve up to 10 cm"
    table = _table("average distances", ["object", "ADD", "ADD-S", "ADD AUC", "ADD-S AUC"], caption)
    for name, tally in _rows(scores, table):
        table.add_row(name, *(_number(tally.share(kind)) for kind in ("add", "adds", "add_area", "adds_area")))
    return table


def _rows(scores: LocalisationScores, table: Table) -> Iterator[tuple[str, Tally]]:
    """Yield the objects with their names, then, after a section line in `table`, all of them together."""
    for obj_id, tally in scores.objects.items():
        yield str(obj_id), tally
    table.add_section()
    yield "all", scores.total


def _detection_table(title: str, scores: DetectionScores) -> Table:
    columns = ["object", "targets", "estimates", "matches", "AP MSSD", "AP MSPD", "AP", "AP MSSD [mm]"]
    table = _table(title, columns, _MATCHES)
    for obj_id, one in scores.objects.items():
        mssd, mspd, mssd_mm = (float(values.mean()) for values in (one.mssd, one.mspd, one.mssd_mm))
        cells = (_number(value) for value in (mssd, mspd, (mssd + mspd) / 2, mssd_mm))
        table.add_row(str(obj_id), str(one.targets), str(one.estimates), str(one.matches), *cells)
    summary = scores.summary()
    keys = ("bop24_mAP_mssd", "bop24_mAP_mspd", "bop24_mAP", "bop24_mAP_mssd_mm")
    counts = (str(sum(getattr(one, name) for one in scores.objects.values())) for name in ("targets", "estimates"))
    matches = str(sum(one.matches for one in scores.objects.values()))
    table.add_section()
    table.add_row("all", *counts, matches, *(_number(summary[key]) for key in keys))
    return table


def _table(title: str, columns: Sequence[str], caption: str | None = None) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    table.add_column(columns[0], overflow="fold")  # a long name is wrapped, not truncated
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True, min_width=len(column))
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _seconds(value: float) -> str:
    return _NONE if value < 0 else f"{value:.3f}"
