"""The official BOP toolkit, if installed: its scripts run as a process, to compare their scores with ours."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import finite_number
from picopose_cli.bop.json_files import read_json_object

TOOLKIT_VARIABLE = "BOP_TOOLKIT_PATH"
"""Environment variable with a checkout of the toolkit, for an installation without its scripts."""
INSTALL = 'pip install --no-deps "bop_toolkit_lib @ git+https://github.com/thodan/bop_toolkit@cea62d6"'
_SCRIPTS = {"bop19": "eval_bop19_pose.py", "bop24": "eval_bop24_pose.py"}
_LAST_LINES = 5


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


def run_toolkit(result: Path, kind: str, data_dir: Path, workers: int) -> dict[str, float]:
    """Return the toolkit's scores of a result file whose data set is in `data_dir`; `kind` is bop19 or bop24.

    Raises PicoPoseError with the last lines of its output when the toolkit fails.
    """
    script = find_script(kind)
    with tempfile.TemporaryDirectory(prefix="picopose-toolkit-") as scratch:
        inputs, outputs = Path(scratch) / "results", Path(scratch) / "eval"
        inputs.mkdir()
        outputs.mkdir()
        (inputs / result.name).symlink_to(result.resolve())
        _run(script, inputs, outputs, result, data_dir, workers)
        return _read_scores(outputs / result.stem / f"scores_{kind}.json")


def _run(script: Path, inputs: Path, outputs: Path, result: Path, data_dir: Path, workers: int) -> None:
    command = [
        sys.executable,
        str(script),
        "--renderer_type=vispy",
        f"--results_path={inputs}",
        f"--eval_path={outputs}",
        f"--result_filenames={result.name}",
        f"--num_workers={workers}",
    ]
    done = subprocess.run(command, env=_environment(script, data_dir), capture_output=True, text=True, check=False)
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
