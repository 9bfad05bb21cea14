"""The official BOP toolkit, if installed: its scripts run as a process, to compare their scores with ours."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.json_numbers import finite_number
from picopose_cli.bop.datasets import Dataset
from picopose_cli.bop.json_files import read_json_object
from picopose_cli.bop.result_names import result_file_name
from picopose_cli.bop.targets import ChosenTargets

TOOLKIT_VARIABLE = "BOP_TOOLKIT_PATH"
"""Environment variable with a checkout of the toolkit, for an installation without its scripts."""
INSTALL = 'pip install --no-deps "bop_toolkit_lib @ git+https://github.com/thodan/bop_toolkit@cea62d6"'
_SCRIPTS = {"bop19": "eval_bop19_pose.py", "bop24": "eval_bop24_pose.py"}
_LAST_LINES = 5
_METHOD = "picopose"


def find_script(kind: str) -> Path:
    """Return the toolkit's script that scores `bop19` or `bop24` results.

    It is searched in BOP_TOOLKIT_PATH, in the installed package `scripts`, and next to bop_toolkit_lib (a checkout).
    Raises PicoPoseError with the command that installs the toolkit.
    """
    checkout = os.environ.get(TOOLKIT_VARIABLE)
    folders = [Path(checkout) / "scripts", Path(checkout)] if checkout else []
    library = _package_folders("bop_toolkit_lib")
    if not library and not checkout:
        raise PicoPoseError("bop_toolkit_lib is not installed, so --toolkit has nothing to run", fix=INSTALL)
    folders += [*_package_folders("scripts"), *(folder.parent / "scripts" for folder in library)]
    for folder in folders:
        if (folder / _SCRIPTS[kind]).is_file():
            return folder / _SCRIPTS[kind]
    raise PicoPoseError(
        f"the toolkit's {_SCRIPTS[kind]} is not found",
        where=checkout or library[0],
        fix=f"set {TOOLKIT_VARIABLE} to a checkout of the toolkit, or {INSTALL}",
    )


def _package_folders(name: str) -> list[Path]:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [] if spec.origin is None else [Path(spec.origin).parent]


def run_toolkit(result: Path, dataset: Dataset, targets: ChosenTargets, workers: int) -> dict[str, float]:
    """Return the toolkit's scores of a result file for targets of a data set.

    The toolkit reads data set and split from the file's name and cuts it at the first dot, so it gets a link with a
    name that it can read; and it gets the targets as a file, whatever the split.
    Raises PicoPoseError with the last lines of its output when the toolkit fails.
    """
    script = find_script(targets.kind)
    with tempfile.TemporaryDirectory(prefix="picopose-toolkit-") as scratch:
        inputs, outputs = Path(scratch) / "results", Path(scratch) / "eval"
        inputs.mkdir()
        outputs.mkdir()
        link = inputs / result_file_name(_METHOD, dataset.name, dataset.split)
        link.symlink_to(result.resolve())
        _run(script, result, dataset, link, outputs, _target_file(targets, Path(scratch)), workers)
        return _read_scores(outputs / link.stem / f"scores_{targets.kind}.json")


def _target_file(targets: ChosenTargets, folder: Path) -> Path:
    """Return the absolute path of the targets' file, written to `folder` when they were made from the ground truth."""
    if targets.path is not None:
        return targets.path.resolve()
    path = folder / f"targets_{targets.kind}.json"
    keys = ("scene_id", "im_id", "obj_id", "inst_count")
    entries = [{key: value for key, value in asdict(target).items() if key in keys} for target in targets.targets]
    atomic_write_bytes(path, json.dumps(entries).encode())
    return path


def _run(
    script: Path, result: Path, dataset: Dataset, link: Path, outputs: Path, target_file: Path, workers: int
) -> None:
    command = [
        sys.executable,
        str(script),
        "--renderer_type=vispy",
        f"--results_path={link.parent}",
        f"--eval_path={outputs}",
        f"--result_filenames={link.name}",
        f"--targets_filename={target_file}",
        f"--num_workers={workers}",
    ]
    environment = _environment(script, dataset.root.parent)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = " | ".join(lines[-_LAST_LINES:]) or "it printed nothing"
        raise PicoPoseError(
            f"the toolkit ended with code {done.returncode} on {result.name}: {reason}",
            where=script,
            fix="its VSD needs a working OpenGL; run the script by hand to get all of its output",
        )


def _environment(script: Path, data_dir: Path) -> Mapping[str, str]:
    """Return the environment in which the script finds the data, its library, and this Python as `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    library = [str(script.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "BOP_PATH": str(data_dir.resolve()),
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(library),
    }


def _read_scores(path: Path) -> dict[str, float]:
    numbers = {key: finite_number(value) for key, value in read_json_object(path).items()}
    return {key: value for key, value in numbers.items() if value is not None}
