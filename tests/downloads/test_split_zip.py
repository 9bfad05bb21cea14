"""Zip archives in parts are read like whole ones: those of a writer here, and those of the program zip."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from helpers.split_zips import CONTENTS, whole_archive, write_parts

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.downloads import unpack as unpack_module
from picopose_cli.downloads.split_zip import open_parts
from picopose_cli.downloads.unpack import unpack, unpacked_size


def contents_of(paths: list[Path]) -> dict[str, bytes]:
    with open_parts(paths) as stream, zipfile.ZipFile(stream) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.mark.parametrize("size", [7001, 65536, 150_000, 10**7])
def test_parts_of_any_size_are_one_archive(tmp_path, size):
    paths = write_parts(tmp_path, "a", size)
    assert len(paths) == -(-sum(path.stat().st_size for path in paths) // size)
    assert contents_of(paths) == CONTENTS


@pytest.mark.skipif(shutil.which("zip") is None, reason="the program zip is not here")
def test_parts_of_the_program_zip(tmp_path):
    for name, data in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    subprocess.run(["zip", "-q", "-s", "64k", "-r", "a.zip", "test"], cwd=tmp_path, check=True)
    paths = sorted(tmp_path.glob("a.z*"), key=lambda path: (path.suffix == ".zip", path.name))
    assert len(paths) > 2
    assert contents_of(paths) == CONTENTS
    unpack(paths, tmp_path / "out", "lmo")
    assert all((tmp_path / "out/lmo" / name).read_bytes() == data for name, data in CONTENTS.items())


def test_a_missing_or_damaged_part_is_named(tmp_path):
    paths = write_parts(tmp_path, "a", 65536)
    with pytest.raises(PicoPoseError, match=r"parts are here|whole zip"):
        open_parts(paths[1:])
    paths[1].write_bytes(bytes(65536))
    with pytest.raises(PicoPoseError, match="is damaged"):
        unpack(paths, tmp_path / "out", "lmo")
    paths[-1].write_bytes(b"nothing")
    for paths_given in (paths, paths[-1:]):
        with pytest.raises(PicoPoseError, match=r"is damaged|whole zip"):
            unpack(paths_given, tmp_path / "out", "lmo")
        with pytest.raises(PicoPoseError, match=r"is damaged|whole zip"):
            unpacked_size(paths_given)


def archive_of(path: Path, names: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil", "a\\..\\evil"])
def test_nothing_is_written_outside_of_the_folder(tmp_path, name):
    archive = archive_of(tmp_path / "a.zip", {"good.txt": b"x", name: b"x"})
    with pytest.raises(PicoPoseError, match="outside of its folder"):
        unpack([archive], tmp_path / "out", "lmo")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip"]


def test_links_bombs_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    link = archive_of(tmp_path / "l.zip", {"models/link": b"/etc/passwd"}, 0o120777)
    with pytest.raises(PicoPoseError, match="a link or device"):
        unpack([link], tmp_path / "out", "lmo")
    bomb = tmp_path / "b.zip"
    bomb.write_bytes(whole_archive({"zeros": bytes(10**7)}))
    with pytest.raises(PicoPoseError, match="cannot be right"):
        unpack([bomb], tmp_path / "out", "lmo")
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))
    with pytest.raises(PicoPoseError, match=r"needs 0\.00 GB to unpack.*--data-dir"):
        unpack([archive_of(tmp_path / "c.zip", {"a.png": bytes(100)})], tmp_path / "out", "lmo")


def test_an_archive_with_the_root_of_its_data_set_goes_beside_others(tmp_path):
    rooted = archive_of(tmp_path / "base.zip", {"lmo/camera.json": b"{}", "lmo/a/b.json": b"{}"})
    unpack([rooted], tmp_path / "out", "lmo")
    unpack([archive_of(tmp_path / "models.zip", {"models/obj_000001.ply": b"ply"})], tmp_path / "out", "lmo")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["lmo/a/b.json", "lmo/camera.json", "lmo/models/obj_000001.ply"]


def test_a_stopped_unpacking_goes_on_and_leaves_no_half_files(tmp_path):
    archive = archive_of(tmp_path / "a.zip", {"x/1": b"first", "x/2": b"second"})
    (tmp_path / "out/lmo/x").mkdir(parents=True)
    (tmp_path / "out/lmo/x/1").write_bytes(b"FIRST")  # of the right size: unpacked by an earlier run
    (tmp_path / "out/lmo/x/2").write_bytes(b"sec")
    unpack([archive], tmp_path / "out", "lmo")
    assert (tmp_path / "out/lmo/x/1").read_bytes() == b"FIRST"
    assert (tmp_path / "out/lmo/x/2").read_bytes() == b"second"
    assert not list(tmp_path.rglob("*.unpacking"))
