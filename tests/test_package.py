"""The package as pip installs it: every module, the type marker and the weights, usable outside of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA_FILES = {
    Path("picopose_cli/pictures/report.html"),
    Path("picopose_cli/py.typed"),
    *(
        Path("picopose_cli/weights") / n
        for n in ("README.md", "mini.safetensors", "local_features.safetensors", "LICENSE-APACHE-2.0.txt")
    ),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed package, from a wheel built from the files of the repository."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in ("picopose_cli", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", folder, source], check=True)
    wheel = next(folder.glob("picopose_cli-*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "installed", wheel], check=True)
    return folder / "installed"


def run_outside(installed: Path, *arguments: str) -> str:
    """Run Python in a folder without the repository and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=installed.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_in_the_packaging_list():
    listed = re.findall(r'^    "(picopose_cli[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "picopose_cli").rglob("*.py")}
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "picopose_cli.weights"])


def test_wheel_has_every_file(installed):
    files = {path.relative_to(installed) for path in installed.glob("picopose_cli/**/*") if path.is_file()}
    files = {path for path in files if path.suffix != ".pyc"}
    modules = {path.relative_to(ROOT) for path in (ROOT / "picopose_cli").glob("**/*.py")}
    assert files == modules | DATA_FILES


def test_command_runs_outside_of_the_repository(installed):
    assert "render-templates" in run_outside(installed, "-m", "picopose_cli", "--help")
    script = installed / "bin/picopose"
    assert "Usage" in run_outside(installed, str(script), "infer", "--help")


def test_shipped_weights_load_outside_of_the_repository(installed):
    pytest.importorskip("torch")
    code = (
        "from picopose_cli.network.bundled import bundled_weights\n"
        "from picopose_cli.network.checkpoint import load_network\n"
        "print(bundled_weights(), load_network(bundled_weights()).config.crop_px)"
    )
    path, crop_px = run_outside(installed, "-c", code).split()
    assert path == str(installed / "picopose_cli/weights/mini.safetensors")
    assert crop_px == "224"
