"""What came of a command on damaged input, compared with the same command on the sound input.

Verdicts that are in order: `refused` (exit code 2), `reported` (exit code 1, or a new line on the console), `equal`
(the same results to the bit, measured times aside), `other input` (results of the damaged part differ: without a
checksum, a damaged number is another valid number). The others are bugs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.children import HANG, MEMORY_BYTES, Outcome
from faults.folder import RESULT
from faults.kinds import Touched

IN_ORDER = ("refused", "reported", "equal", "other input")
BUGS = ("crash", "hang", "memory", "untidy", "leftover", "silent")
"""`crash`: a traceback, a signal or another exit code. `untidy`: stderr is not one line for exit code 2, or has lines
of libraries. `leftover`: a temporary file. `silent`: a result of an undamaged part differs, or a damage that a checksum
shows changes a result, or a result is missing, and nothing says so."""
_TIDY = re.compile(r"(WARNING |picopose: )")
_FAULT = re.compile(r"(warning|problem|skipped|failed|check|WARNING|object #|the unit of the meshes|noisy_toy)")
_NUMBERS = re.compile(r"[-+.\d]+(e[-+]?\d+)?")
Key = tuple[int, int, int]
"""(im_id, obj_id, index): of a result without an image or object -1."""


@dataclass(frozen=True)
class Results:
    """What a command made: values by key, and the lines that say what is wrong."""

    values: dict[Key, Any] = field(default_factory=dict)
    said: frozenset[str] = frozenset()


def read_made(command: str, folder: Path, outcome: Outcome) -> Results:
    """Return what a command has made in its folder."""
    said = _lines(command, outcome.stdout + outcome.stderr)
    if command.startswith("infer"):
        output = folder / ("begun" if "journal" in command else "out") / RESULT
        return Results(_rows(output, with_time=False), said | _reported(output.with_suffix(".json")))
    if command == "merge":
        return Results(_rows(folder / "out" / RESULT, with_time=True), said)
    if command.startswith("score"):
        scores = folder / "out/scores.json"
        return Results(_scores(json.loads(scores.read_text())) if scores.is_file() else {}, said)
    if command == "render":
        banks = sorted((folder / "bop/shapes/templates").glob("obj_*.h5"))
        hashes = {(-1, int(path.name[4:10]), 0): hashlib.sha256(path.read_bytes()).hexdigest() for path in banks}
        return Results(hashes, said)
    return Results({}, said)


def judge(
    command: str, outcome: Outcome, folder: Path, base: Results, touched: Touched, noticed: bool
) -> tuple[str, str]:
    """Return the verdict and, for a bug, what is wrong.

    `noticed`: the damage must not change a result without a word.
    """
    found = _bug_of_outcome(command, outcome) or _leftovers(folder)
    if found:
        return found
    if outcome.exit == 2:
        return "refused", ""
    made = read_made(command, folder, outcome)
    changed = {key for key in {*base.values, *made.values} if base.values.get(key) != made.values.get(key)}
    is_said = outcome.exit == 1 or bool(made.said - base.said)
    if not changed:
        return ("reported" if is_said else "equal"), ""
    others = sorted(key for key in changed if not _may_change(key, touched))
    moved = [key for key in others if key in made.values]
    if moved:
        return "silent", f"results of undamaged parts differ: {moved[:3]}"
    if is_said:
        return "reported", ""
    lost = sorted(key for key in changed if key not in made.values)
    if others or lost:
        return "silent", f"results are missing: {(others or lost)[:3]}"
    return ("silent", f"damage changes results: {sorted(changed)[:3]}") if noticed else ("other input", "")


def _may_change(key: Key, touched: Touched) -> bool:
    """Return whether a result may change; one without an image is of all images, and likewise for objects."""
    images = range(3) if key[0] < 0 else (key[0],)
    objects = range(1, 5) if key[1] < 0 else (key[1],)
    return any(touched(im_id, obj_id) for im_id in images for obj_id in objects)


def _bug_of_outcome(command: str, outcome: Outcome) -> tuple[str, str] | None:
    if outcome.exit == HANG:
        return "hang", f"{outcome.seconds} s"
    if "MemoryError" in outcome.stderr:
        return "memory", outcome.stderr[-300:]
    if outcome.exit not in (0, 1, 2) or "Traceback" in outcome.stderr:
        return "crash", f"exit {outcome.exit}: {outcome.stderr[-600:]}"
    if outcome.peak_mb * 1000 > MEMORY_BYTES / 1000 * 1.2:
        return "memory", f"{outcome.peak_mb} MB"
    lines = outcome.stderr.splitlines()
    if outcome.exit == 2 and not command.startswith("check"):
        is_tidy = len(lines) == 1 and lines[0].startswith("picopose: ")
    else:
        is_tidy = all(_TIDY.match(line) for line in lines)
    return None if is_tidy else ("untidy", outcome.stderr[:600])


def _leftovers(folder: Path) -> tuple[str, str] | None:
    found = [path.name for path in folder.rglob("*") if path.suffix == ".lock" or ".tmp" in path.name]
    return ("leftover", ", ".join(found)) if found else None


def _rows(path: Path, with_time: bool) -> dict[Key, Any]:
    if not path.is_file():
        return {}
    rows = dict[Key, Any]()
    with path.open() as stream:
        for row in csv.reader(stream):
            if row and row[0] == "scene_id":
                continue
            index = sum(key[:2] == (int(row[1]), int(row[2])) for key in rows)
            rows[int(row[1]), int(row[2]), index] = row if with_time else row[:-1]
    return rows


def _scores(content: Any, name: str = "") -> dict[Key, Any]:
    """Return all scores of a file, those of an object by its id."""
    values = dict[Key, Any]()
    for key, value in content.items() if isinstance(content, dict) else []:
        inner = f"{name}/{key}"
        if isinstance(value, dict):
            values |= _scores(value, inner)
        elif isinstance(value, (int, float)) and not re.search("time|seconds", key):
            ids = re.findall(r"/(\d+)(?:/|$)", inner)
            values[-1, int(ids[-1]) if ids else -1, hash_of(inner)] = value
    return values


def hash_of(name: str) -> int:
    """Return a number for a name, the same in every process."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def _reported(path: Path) -> frozenset[str]:
    if not path.is_file():
        return frozenset()
    report = json.loads(path.read_text())
    return frozenset(str(line) for name in ("problems", "skipped", "warnings", "findings") for line in report[name])


def _lines(command: str, text: str) -> frozenset[str]:
    """Return the lines of a console that say what is wrong, without their numbers; of `check`, all lines."""
    lines = [_NUMBERS.sub("#", line).strip() for line in text.splitlines()]
    return frozenset(line for line in lines if command.startswith("check") or _FAULT.match(line))
