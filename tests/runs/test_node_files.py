"""Files of the driver on a node: used where they are the same, copied where they are missing or others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.tasks import DepthSource, ImageTask
from picopose_cli.base.types import Detection
from picopose_cli.rendering.meshes import mesh_files, mesh_sha256
from picopose_cli.runs import node_files
from picopose_cli.runs.node_files import NodeFiles, bundle_files, read_block, with_paths


@pytest.fixture
def driver(tmp_path) -> Path:
    """A folder of the driver with a bank, and a mesh whose texture is in another folder."""
    folder = tmp_path / "driver"
    (folder / "models").mkdir(parents=True)
    (folder / "textures").mkdir()
    (folder / "bank.h5").write_bytes(bytes(range(256)) * 100)
    (folder / "models/a.obj").write_text("mesh")
    (folder / "textures/a.png").write_bytes(b"texture")
    return folder


def node(driver: Path, folder: Path) -> NodeFiles:
    """A node that sees `driver` at the path of the driver, or, when that was moved, not at all."""
    moved = driver.with_name("moved")
    return NodeFiles(folder / "cache", lambda path, offset: read_block(moved / path.relative_to(driver), offset))


def test_a_file_that_the_node_sees_is_used_where_it_is(driver, tmp_path):
    bundle = bundle_files(driver / "bank.h5")
    assert node(driver, tmp_path).local(bundle) == driver / "bank.h5"
    assert not (tmp_path / "cache").exists()


def test_files_that_the_node_lacks_are_copied_once(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(node_files, "BLOCK_BYTES", 1000)
    bank = bundle_files(driver / "bank.h5")
    mesh = bundle_files(driver / "models/a.obj", driver / "textures/a.png")
    driver.rename(driver.with_name("moved"))
    files = node(driver, tmp_path)
    copy, mesh_copy = files.local(bank), files.local(mesh)
    assert copy.read_bytes() == bytes(range(256)) * 100
    assert copy.name == "bank.h5"
    assert mesh_copy.parent.name == "models"
    assert (mesh_copy.parent / "../textures/a.png").read_bytes() == b"texture"
    asleep = replace(files, read=lambda *_: pytest.fail("it was sent again"))
    assert (asleep.local(bank), asleep.local(mesh)) == (copy, mesh_copy)


def test_another_file_at_the_same_path_is_not_used(driver, tmp_path):
    bundle = bundle_files(driver / "bank.h5")
    driver.rename(driver.with_name("moved"))
    driver.mkdir()
    (driver / "bank.h5").write_bytes(b"another version")
    files = node(driver, tmp_path)
    assert files.local(bundle).read_bytes() == bytes(range(256)) * 100
    files.local(bundle).write_bytes(b"half")
    assert files.local(bundle).read_bytes() == bytes(range(256)) * 100


def test_a_file_that_changes_while_it_is_sent_is_refused(driver, tmp_path):
    bundle = bundle_files(driver / "bank.h5")
    driver.rename(driver.with_name("moved"))
    (driver.with_name("moved") / "bank.h5").write_bytes(b"changed")
    with pytest.raises(PicoPoseError, match=r"bank\.h5: was changed"):
        node(driver, tmp_path).local(bundle)


def test_a_missing_file_is_no_bundle(tmp_path):
    with pytest.raises(PicoPoseError, match="cannot be read"):
        bundle_files(tmp_path / "bank.h5")


def test_a_bundle_of_a_mesh_has_the_hash_of_the_mesh(toy_dir):
    mesh = toy_dir / "toy/models/obj_000001.ply"
    assert bundle_files(*mesh_files(mesh)).sha256 == mesh_sha256(mesh)


def test_images_are_sent_with_masks_and_depth(driver, tmp_path):
    for name in ("rgb.png", "mask.png"):
        (driver / name).write_text(name)
    camera = Pinhole(np.eye(3))
    detections = tuple(Detection(1, 0.5, (0, 0, 1, 1), mask, 0.0) for mask in (driver / "mask.png", None))
    task = ImageTask(1, 2, driver / "rgb.png", camera, detections, depth=DepthSource(driver / "no.png", 1.0))
    driver.rename(driver.with_name("moved"))
    local = node(driver, tmp_path).copied_for_now(task, tmp_path / "now")
    assert local.image_path.read_text() == "rgb.png"
    assert local.image_path.is_relative_to(tmp_path / "now")
    assert local.detections[0].mask.read_text() == "mask.png"
    assert local.detections[1] == task.detections[1]
    assert local.depth == task.depth  # the driver has none either
    assert with_paths(local, lambda path: driver / path.name) == task
