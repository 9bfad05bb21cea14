"""Damaged input of every kind: each command ends in 0, 1 or 2 with one-line messages and no silent wrong result.

    PYTHONPATH=tests python benchmarks/fuzz.py [--cases 1000] [--seed 0] [--jobs 2] [--work DIR]

Case N of a seed is always the same: a kind of file (in turn), a file of it, a change of its bytes or of its content,
and a command that reads it (`faults/kinds.py`). Each runs in a forked child with one thread, at most 4 GB and 60 s;
what comes out is compared with the same command on the sound file (`faults/verdicts.py`). Cases are written to
WORK/cases.jsonl as they end, and the same command continues from there. Writes benchmarks/results/fuzz.json, prints
the table, and exits with 1 when a case is a bug; its folder stays in WORK.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", OPENCV_LOG_LEVEL="SILENT", KMP_BLOCKTIME="0")

from faults.children import Child, import_everything, run_alone
from faults.folder import render_few_views
from faults.kinds import COMMANDS, KINDS, Kind, files_of
from faults.mutations import change_bytes, change_file
from faults.sound import prepare_folder
from faults.verdicts import BUGS, IN_ORDER, Results, judge, read_made
from run_info import ROOT, describe_run, write_result

OUTPUT = ROOT / "benchmarks/results/fuzz.json"
_POLL_S = 0.01


@dataclass(frozen=True)
class Case:
    """One damaged file, and the command that reads it."""

    number: int
    kind: str
    file: str
    change: str
    command: str
    exit: int | str
    verdict: str
    detail: str
    seconds: float
    peak_mb: float
    message: str


def sound_results(root: Path, folder: Path) -> dict[str, Results]:
    """Return the results of each command on the sound folder."""
    results = {}
    for name in {command for kind in KINDS for command in kind.commands}:
        copy_folder(root, folder)
        outcome = run_alone(COMMANDS[name], folder)
        results[name] = read_made(name, folder, outcome)
        if outcome.exit not in (0, 1) and not name.endswith((".pth", ".ckpt")):  # which need the released sizes
            raise SystemExit(f"{name} on sound input: exit {outcome.exit}\n{outcome.stdout}{outcome.stderr}")
    shutil.rmtree(folder)
    return results


def copy_folder(root: Path, folder: Path) -> Path:
    """Copy a folder by hard links, except journals, which runs append to."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root, folder, copy_function=os.link)
    for path in folder.rglob("*.journal"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    return folder


class Running:
    """A case whose command is running."""

    def __init__(self, number: int, seed: int, root: Path, work: Path) -> None:
        rng = Random(f"{seed}/{number}")
        self.number = number
        self.kind: Kind = KINDS[number % len(KINDS)]
        self.folder = copy_folder(root, work / f"case{number}")
        self._file = rng.choice(files_of(self.kind, root))
        change = rng.choice(self.kind.changes)
        damaged = self.folder / self._file.relative_to(root)
        self._change = change(damaged, rng)
        has_checksum = self.kind.has_checksum or self._file.suffix == ".png"
        self._noticed = has_checksum and change in (change_bytes, change_file)
        self._command = rng.choice(self.kind.commands)
        self._touched = self.kind.touched(self._file, damaged)
        self._root = root
        self._child = Child(COMMANDS[self._command], self.folder)

    def poll(self, bases: dict[str, Results]) -> Case | None:
        """Return the case when its command has ended."""
        outcome = self._child.poll()
        if outcome is None:
            return None
        base = bases[self._command]
        verdict, detail = judge(self._command, outcome, self.folder, base, self._touched, self._noticed)
        return Case(
            self.number, self.kind.name, str(self._file.relative_to(self._root)), self._change[:200], self._command,
            outcome.exit, verdict, detail, outcome.seconds, outcome.peak_mb, outcome.stderr.strip()[-300:],
        )  # fmt: skip


def run_cases(numbers: Sequence[int], seed: int, work: Path, jobs: int) -> Iterator[Case]:
    """Yield the cases as they end, `jobs` at a time; the folders of bugs are kept."""
    import_everything()
    render_few_views()
    root = work / "root"
    shutil.rmtree(root, ignore_errors=True)
    prepare_folder(root)
    bases = sound_results(root, work / "sound")
    waiting, running = list(reversed(numbers)), list[Running]()
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Running(waiting.pop(), seed, root, work))
        for one in list(running):
            case = one.poll(bases)
            if case is not None:
                running.remove(one)
                if case.verdict in IN_ORDER:
                    shutil.rmtree(one.folder, ignore_errors=True)
                yield case
        time.sleep(_POLL_S)


def table(cases: Sequence[Case]) -> list[str]:
    """Return a Markdown table of the outcomes by kind of file."""
    lines = [f"| kind | cases | {' | '.join(IN_ORDER)} | bugs |", "|---" * (len(IN_ORDER) + 3) + "|"]
    names = list(dict.fromkeys(kind.name for kind in KINDS))
    for name in [*names, "all"]:
        chosen = [case for case in cases if name in (case.kind, "all")]
        counts = Counter(case.verdict for case in chosen)
        numbers = [len(chosen), *(counts[verdict] for verdict in IN_ORDER), sum(counts[one] for one in BUGS)]
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    return lines


def _verdicts(cases: Iterable[Case]) -> dict[str, int]:
    return dict(Counter(case.verdict for case in cases))


def _finished(path: Path) -> dict[int, Case]:
    lines = path.read_text().splitlines() if path.is_file() else []
    cases = [Case(**json.loads(line)) for line in lines]
    return {case.number: case for case in cases}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-fuzz")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    started, run = time.perf_counter(), describe_run()
    arguments.work.mkdir(parents=True, exist_ok=True)
    log = arguments.work / f"cases-{arguments.seed}.jsonl"
    numbers = range(arguments.first, arguments.first + arguments.cases)
    cases = _finished(log)
    todo = [number for number in numbers if number not in cases]
    with log.open("a") as stream:
        for case in run_cases(todo, arguments.seed, arguments.work.resolve(), arguments.jobs) if todo else ():
            cases[case.number] = case
            stream.write(json.dumps(asdict(case)) + "\n")
            stream.flush()
            if case.verdict in BUGS:
                print(f"case {case.number}: {case.verdict}: {case.kind}, {case.file}, {case.change}, {case.command}: "
                      f"{case.detail}", file=sys.stderr)  # fmt: skip
    chosen = [cases[number] for number in numbers]
    seconds = round(time.perf_counter() - started, 1)
    summary = {
        **run, "seed": arguments.seed, "first": arguments.first, "cases": len(chosen), "verdicts": _verdicts(chosen),
        "exit_codes": dict(Counter(str(case.exit) for case in chosen)), "seconds": seconds,
        "longest_s": max(case.seconds for case in chosen), "peak_mb": max(case.peak_mb for case in chosen),
        "kinds": {kind.name: _verdicts(case for case in chosen if case.kind == kind.name) for kind in KINDS},
        "bugs": [asdict(case) for case in chosen if case.verdict in BUGS],
    }  # fmt: skip
    write_result(arguments.output, summary)
    print("\n".join(table(chosen)))
    return int(any(case.verdict in BUGS for case in chosen))


if __name__ == "__main__":
    sys.exit(main())
