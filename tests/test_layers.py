"""Who may import whom: the rooms and their arrows, from `cli` at the top down to `base`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import picopose_cli

PACKAGE = Path(picopose_cli.__file__).parent
ALLOWED = {
    "base": set(),
    "network": {"base"},
    "rendering": {"base"},
    "bop": {"base"},
    "scoring": {"base"},
    "downloads": {"base", "bop"},  # the only room that opens connections
    "templates": {"base", "rendering"},
    "reconstruction": {"base", "rendering", "bop", "templates"},
    "synthesis": {"base", "rendering", "templates", "bop"},  # writes data sets as users have them
    "pose": {"base", "rendering", "network", "templates"},
    "training": {"base", "rendering", "network", "templates", "bop", "synthesis", "pose"},
    "pictures": {"base", "bop", "rendering", "scoring"},  # overlays of a result file render silhouettes
    "runs": {"base", "rendering", "network", "templates", "bop", "pose", "scoring", "reconstruction"},
}
"""Rooms that a room may import besides itself; `cli` imports `commands`, and `commands` all but `cli`."""
ALLOWED["commands"] = set(ALLOWED)
ALLOWED["cli"] = {"base", "commands"}
ALLOWED["__main__"] = {"cli"}
ONLY_IN = {
    "h5py": {"templates/bank.py", "pose/feature_file.py"},
    "pandas": {"bop/results.py", "bop/check.py"},
    "ray": {"runs/cluster.py"},
}
FORBIDDEN_NAMES = {"utils.py", "misc.py", "common.py", "helpers.py"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path):
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "picopose_cli" and parts[1] != "__version__":
            assert parts[1] in ALLOWED[room(path)] | {room(path)}, f"{path} imports {name}"


def test_commands_never_import_each_other():
    for path in (PACKAGE / "commands").glob("*.py"):
        assert not [name for name in imported_modules(path) if name.startswith("picopose_cli.commands")], path


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_library_stays_in_its_room(library):
    users = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imported_modules(path))
    }
    assert users == ONLY_IN[library]


@pytest.mark.parametrize("name", ["base", "bop", "reconstruction", "rendering", "synthesis", "templates"])
def test_rooms_without_torch(name):
    for path in (PACKAGE / name).glob("*.py"):
        assert "torch" not in {imported.split(".")[0] for imported in imported_modules(path)}, path


def test_trimesh_stays_in_rendering():
    users = {room(path) for path in MODULES if any(name.startswith("trimesh") for name in imported_modules(path))}
    assert users == {"rendering"}


def test_no_file_is_a_drawer_for_everything_or_too_long():
    assert not [path for path in MODULES if path.name in FORBIDDEN_NAMES]
    assert not [path for path in MODULES if len(path.read_text().splitlines()) >= 350]


def test_no_unsafe_reading_of_strangers_files():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in {"eval", "exec", "pickle.load", "pickle.loads"}, path
                if called == "torch.load":
                    assert keywords.get("weights_only") == "True", path
                if called == "np.load":
                    assert keywords.get("allow_pickle", "False") == "False", path


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [(["--help"], ("torch", "cv2", "h5py", "numpy", "pandas")), (["infer", "--help"], ("torch", "cv2"))],
)
def test_help_does_not_import_heavy_libraries(arguments, heavy):
    code = (
        "import sys; from picopose_cli.cli import app\n"
        f"try: app({arguments!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage" in done.stdout
