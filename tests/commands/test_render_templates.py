"""The command: what is made, kept and reported, and that no failure takes the others with it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.meshes import make_box, make_sphere, write_ply

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import RenderTemplatesOptions
from picopose_cli.base.types import Mesh
from picopose_cli.base.workers import WorkerDiedError
from picopose_cli.commands import render_templates as command
from picopose_cli.pictures.contact_sheets import SHEET_CELL_PX
from picopose_cli.runs import template_banks
from picopose_cli.templates import build
from picopose_cli.templates.bank import bank_path, read_bank


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data set of three small objects and nothing else."""
    models = tmp_path / "data/toy/models"
    write_ply(models / "obj_000001.ply", make_box())
    write_ply(models / "obj_000002.ply", make_sphere(rings=16))
    write_ply(models / "obj_000005.ply", make_box((0.03, 0.02, 0.05)))
    return tmp_path / "data"


@pytest.fixture
def few_views(monkeypatch):
    """Render only every 18th view, where nothing but the files and the report matter (not in worker processes)."""
    place_all = build.place_views
    monkeypatch.setattr(build, "place_views", lambda diameter_m: place_all(diameter_m)[::18])


def render(data_dir: Path, **changes) -> template_banks.RenderReport:
    options = {"dataset": "toy", "data_dir": data_dir, "renderer": "software"} | changes
    return command.run(RenderTemplatesOptions(**options))


@pytest.mark.usefixtures("few_views")
def test_every_object_gets_a_bank_once(data_dir: Path, capsys):
    report = render(data_dir, object_ids=(1, 5), contact_sheet=True)
    folder = data_dir / "toy/templates"
    assert (report.written, report.kept, report.failed, report.exit_code) == ([1, 5], [], {}, 0)
    assert sorted(path.name for path in folder.iterdir()) == [
        "obj_000001.h5", "obj_000001.png", "obj_000005.h5", "obj_000005.png",
    ]  # fmt: skip
    assert read_bank(bank_path(folder, 5)).obj_id == 5
    text = capsys.readouterr().out
    assert "renderer: software (cv2.triangleRasterize" in text
    assert "2 written, 0 kept, 0 failed" in text
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = render(data_dir)
    assert (again.written, again.kept) == ([2], [1, 5])
    assert all((folder / name).stat().st_mtime_ns == time for name, time in times.items())
    forced = render(data_dir, object_ids=(1,), overwrite=True)
    assert forced.written == [1]


@pytest.mark.usefixtures("few_views")
def test_what_killed_runs_have_left_is_removed(data_dir: Path):
    """A lock and half a bank, of an object without a bank and of one whose bank is finished."""
    folder = data_dir / "toy/templates"
    folder.mkdir()
    for _ in range(2):
        (folder / "obj_000001.h5.lock").touch()
        (folder / ".obj_000001.h5.abc123.tmp.h5").touch()
        render(data_dir, object_ids=(1,))
        assert [path.name for path in folder.iterdir()] == ["obj_000001.h5"]


@pytest.mark.usefixtures("few_views")
def test_what_does_not_fit_is_made_again(data_dir: Path):
    one = {"object_ids": (1,)}
    assert render(data_dir, **one).written == [1]
    assert render(data_dir, **one, renderer="auto").kept == [1]
    bank = bank_path(data_dir / "toy/templates", 1)
    bank.write_bytes(bank.read_bytes()[:5000])
    assert render(data_dir, **one).written == [1]
    write_ply(data_dir / "toy/models/obj_000001.ply", make_box((0.1, 0.1, 0.05)))
    assert render(data_dir, **one).written == [1]
    assert render(data_dir, **one, mesh_unit="cm").written == [1]


@pytest.mark.usefixtures("few_views")
def test_a_missing_contact_sheet_is_added_to_a_kept_bank(data_dir: Path):
    render(data_dir, object_ids=(1,))
    report = render(data_dir, object_ids=(1,), contact_sheet=True)
    assert report.kept == [1]
    sheet = cv2.imread(str(data_dir / "toy/templates/obj_000001.png"))
    assert sheet.shape == (SHEET_CELL_PX, 9 * SHEET_CELL_PX, 3)
    seen = {tuple(rgb) for rgb in (sheet[..., ::-1] // 200 * 255).reshape(-1, 3).tolist()}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255)} <= seen


@pytest.mark.usefixtures("few_views")
def test_one_unusable_object_does_not_stop_the_others(data_dir: Path, tmp_path: Path, capsys):
    models = data_dir / "toy/models"
    (models / "obj_000002.ply").write_text("ply\nnothing\n")
    (models / "obj_000003.ply").write_bytes((models / "obj_000001.ply").read_bytes()[:600])
    flat = Mesh(np.array([[-0.05, -0.05, 0], [0.05, -0.05, 0], [0, 0.05, 0]]), np.array([[0, 1, 2]], np.int32))
    write_ply(models / "obj_000004.ply", flat)  # edge-on from the equator: every fifth of the few views
    report = render(data_dir, templates=tmp_path / "banks")
    assert (report.written, sorted(report.failed), report.exit_code) == ([1, 5], [2, 3, 4], 1)
    assert "not a readable mesh" in report.failed[2]
    assert "shows nothing of the mesh" in report.failed[4]
    assert sorted(path.name for path in (tmp_path / "banks").iterdir()) == ["obj_000001.h5", "obj_000005.h5"]
    text = capsys.readouterr().out
    assert "2 written, 0 kept, 3 failed" in text
    assert "object 4: " in text


@pytest.fixture
def infos(data_dir: Path):
    """Writes models_info.json: the true diameters in mm, changed by `factors` of some objects."""

    def write(**factors: float) -> None:
        true_mm = {"1": 100 * 3**0.5, "2": 100.0, "5": 10 * (3**2 + 2**2 + 5**2) ** 0.5}
        content = {obj_id: {"diameter": value * factors.get(f"o{obj_id}", 1.0)} for obj_id, value in true_mm.items()}
        (data_dir / "toy/models/models_info.json").write_text(json.dumps(content))

    return write


@pytest.mark.usefixtures("few_views")
def test_a_size_unlike_models_info_stops_the_object_and_names_the_unit(data_dir: Path, infos, capsys):
    infos(o1=10.0, o2=1.2, o5=0.5)
    report = render(data_dir)
    assert (report.written, sorted(report.failed), report.exit_code) == ([2], [1, 5], 1)
    assert "its diameter in mm is 173" in report.failed[1]
    assert "models_info.json has 1732 mm" in report.failed[1]
    assert "pass --mesh-unit cm" in report.failed[1]
    assert "not checked" not in capsys.readouterr().out
    for path in (data_dir / "toy/models").glob("*.ply"):
        path.write_text(path.read_text().replace("1000.0", "1"))  # any change of the file
    infos(o1=10.0, o2=10.0, o5=10.0)
    assert render(data_dir, mesh_unit="cm").failed == {}


@pytest.mark.usefixtures("few_views")
def test_a_unit_that_cannot_be_checked_is_said(data_dir: Path, capsys):
    assert render(data_dir, object_ids=(1,)).unchecked.endswith("has no models_info.json")
    assert "the unit of the meshes is not checked" in capsys.readouterr().out
    (data_dir / "toy/models/models_info.json").write_text("{}}")
    report = render(data_dir, object_ids=(2,))
    assert (report.written, report.exit_code) == ([2], 0)
    assert "models_info.json" in report.unchecked


@pytest.mark.usefixtures("few_views")
def test_grey_meshes_and_stray_triangles_are_said_each_time(data_dir: Path, capsys):
    box = make_box(coloured=False)
    stray = np.array([[0, 0, 0], [0.001, 0, 0], [0, 0.001, 0]]) + np.array([2.0, 0, 0])
    faces = np.concatenate([box.faces, [[24, 25, 26]]]).astype(np.int32)
    write_ply(data_dir / "toy/models/obj_000001.ply", Mesh(np.concatenate([box.vertices_m, stray]), faces))
    for made in ("written", "kept"):
        report = render(data_dir, object_ids=(1, 5))
        assert getattr(report, made) == [1, 5]
        assert list(report.notes) == [1]
        text = capsys.readouterr().out
        assert "object 1, warning: it has no colours and is rendered grey; 99 % of its area is in a tenth" in text
        assert report.exit_code == 0
    bank = read_bank(bank_path(data_dir / "toy/templates", 1))
    assert "rendered grey" in bank.provenance.notes


def test_processes_write_what_this_one_does(data_dir: Path, tmp_path: Path):
    assert render(data_dir, templates=tmp_path / "two", object_ids=(1, 5), workers=2).written == [1, 5]
    assert render(data_dir, templates=tmp_path / "one", object_ids=(5,)).written == [5]
    one, two = (read_bank(bank_path(tmp_path / name, 5)) for name in ("one", "two"))
    np.testing.assert_array_equal(one.crops_rgb, two.crops_rgb)
    np.testing.assert_array_equal(one.xyz_obj_m, two.xyz_obj_m)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"object_ids": (1, 7, 9)}, "--object-ids names 7, 9.*choose from 1, 2, 5"),
        ({"dataset": "none"}, "there is no data set 'none'"),
        ({"models": "models_cad"}, "models_cad"),
        ({"from_images": Path("/nowhere"), "templates": Path("t")}, "does not exist"),
    ],
)
def test_what_is_asked_for_must_exist(data_dir: Path, changes: dict, text: str):
    with pytest.raises(PicoPoseError, match=text):
        render(data_dir, **changes)


def test_a_folder_that_cannot_be_written_is_found_out_first(data_dir: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PicoPoseError, match="cannot be written"):
        render(data_dir, templates=tmp_path / "file" / "banks")


@pytest.mark.usefixtures("few_views")
def test_a_full_disk_fails_the_object_and_leaves_nothing(data_dir: Path, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a disk that fills up while the bank is written
    try:
        report = render(data_dir, templates=tmp_path / "banks", object_ids=(1,))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written (File too large)" in report.failed[1]
    assert report.exit_code == 1
    assert list((tmp_path / "banks").iterdir()) == []


def crash_on_object_2(job: template_banks.BankJob, _: int) -> None:
    if job.obj_id == 2:
        os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crashed_worker_is_its_objects_error(data_dir: Path, monkeypatch):
    monkeypatch.setattr(template_banks, "make_bank", crash_on_object_2)
    report = render(data_dir, workers=2)
    assert (report.written, list(report.failed)) == ([1, 5], [2])
    assert "the worker process was killed by signal 11" in report.failed[2]


def test_a_dead_gl_process_points_to_the_software_renderer():
    error = WorkerDiedError("the worker process was killed by signal 11")
    assert "pass --renderer software" in template_banks.failure_text(error, "egl")
    assert "software" not in template_banks.failure_text(error, "software")
    own = PicoPoseError("the mesh is missing", fix="look for it")
    assert template_banks.failure_text(own, "egl") == str(own)


@pytest.mark.usefixtures("few_views")
@pytest.mark.parametrize("name", ["lmo", "lm", "hope", "visp_cube", "bba"])
def test_real_data_sets(shared_dir: Path, tmp_path: Path, name: str):
    models = tmp_path / name / "models"
    shutil.copytree(shared_dir / "real" / name / "models", models)
    first = int(min(models.glob("obj_*.ply")).stem.split("_")[1])
    report = render(tmp_path, dataset=name, object_ids=(first,))
    assert report.written == [first]
    bank = bank_path(tmp_path / name / "templates", first)
    assert bank.stat().st_size < 20e6 * 9 / 162
    colours = read_bank(bank).crops_rgb
    assert colours[colours.any(axis=-1)].std(axis=0).min() > 10  # its colours or texture have arrived
