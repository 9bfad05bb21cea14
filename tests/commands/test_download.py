"""`picopose download` from a local server that behaves like the hub, with everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import sys
import types
import zipfile
from pathlib import Path

import pytest
from helpers.hub import Hub, serve
from helpers.split_zips import CONTENTS, write_parts
from typer.testing import CliRunner

from picopose_cli import cli
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.detections import find_detections
from picopose_cli.commands import download as command
from picopose_cli.downloads import fetch as fetch_module
from picopose_cli.downloads import released_weights
from picopose_cli.network.integrity import RELEASED_SHA256

UUID = "3cb298ea-e2eb-4713-ae9e-5a7134c5da0f"
DETECTIONS = f"default_detections/classic_bop23_model_based_unseen/cnos-fastsam/cnos-fastsam_lmo-test_{UUID}.json"
NOISE = random.Random(0).randbytes(200_000)


def zipped(**contents: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name.replace("__", "/"), data)
    return stream.getvalue()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    scene = {"test__000002__scene_camera.json": b'{"3": {"cam_K": [1, 0, 0, 0, 1, 0, 0, 0, 1]}}'}
    files = {
        "lmo/lmo_base.zip": zipped(lmo__test_targets_bop19_json=b"[]", lmo__camera_json=b"{}"),
        "lmo/lmo_models.zip": zipped(models__obj_000001_ply=b"ply"),
        "lmo/lmo_test_all.zip": zipped(test__all=b"too much"),
        "lmo/lmo_test_bop19.zip": zipped(**scene, **{"test__000002__rgb__000003.png": NOISE}),
        "lmo/lmo_train_pbr.zip": b"never read",
        "lmo/README.md": b"text",
        f"bop_extra/{DETECTIONS}": b"[]",
        "bop_extra/default_detections/other/cnos-fastsam_lmo-test_x.json": b"[1]",
        "hot3d/hot3d_base.zip": zipped(hot3d__a=b"x"),
    }
    monkeypatch.setattr(fetch_module, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no token"))
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "BOP_PATH", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(Hub(files)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        yield served


def download(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(cli.app, ["download", *map(str, arguments)])
    assert done.exit_code == code, done.output + str(done.exception)
    return done.output + (str(done.exception) if done.exception and code else "")


def test_a_data_set_is_unpacked_where_infer_looks_for_it(hub, tmp_path):
    printed = download("lmo", "--data-dir", tmp_path / "bop")
    assert "4 fetched, 0 kept, 0 failed" in printed
    dataset = open_dataset("lmo", tmp_path / "bop")
    assert dataset.image_path(2, 3).read_bytes() == NOISE
    assert find_detections(dataset, tmp_path / "bop").name == f"cnos-fastsam_lmo-test_{UUID}.json"
    assert (tmp_path / "bop/lmo/models/obj_000001_ply").read_bytes() == b"ply"
    assert not list((tmp_path / "bop").rglob("*.zip"))
    assert not any("train" in path or "test_all" in path for path, _, _ in hub.requests)
    before = len(hub.requests)
    assert "0 fetched, 4 kept" in download("lmo", "--data-dir", tmp_path / "bop")
    assert all(path.startswith("/api/") for path, _, _ in hub.requests[before:])


def test_detections_of_h3_are_found_under_their_other_names(hub, tmp_path):
    folder = "default_detections/h3_bop24_model_based_unseen/cnos-fastsam-with-mask"
    path = f"{folder}/cnos-fastsam-with-mask_hopev2-test_x.json"
    hub.files[f"bop_extra/{path}"] = b"[]"
    download("hope", "--data-dir", tmp_path, "--what", "detections")
    assert (tmp_path / path).is_file()


def test_dry_run_lists_files_and_fetches_nothing(hub, tmp_path):
    printed = download("lmo", "--data-dir", tmp_path / "bop", "--dry-run", "--what", "models,test")
    assert "lmo_test_bop19.zip: 0.2 MB, 0.2 MB to fetch" in printed
    assert "free in" in printed
    assert not (tmp_path / "bop").exists()
    assert all(path.startswith("/api/") for path, _, _ in hub.requests)


def test_a_cut_connection_is_continued_where_it_was_cut(hub, tmp_path):
    hub.cut_after["lmo/lmo_test_bop19.zip"] = [50_000, 10_000, 0, 0]
    download("lmo", "--data-dir", tmp_path, "--what", "test")
    ranges = [begin for path, begin, _ in hub.requests if path == "/cdn/lmo/lmo_test_bop19.zip"]
    assert ranges == [None, "bytes=50000-", "bytes=60000-", "bytes=60000-", "bytes=60000-"]
    assert open_dataset("lmo", tmp_path).image_path(2, 3).read_bytes() == NOISE


def test_a_stopped_download_is_continued_by_the_same_command(hub, tmp_path):
    hub.cut_after["lmo/lmo_test_bop19.zip"] = [70_000] + [0] * fetch_module.TRIES
    assert "cannot be reached (the connection was cut)" in download(
        "lmo", "--data-dir", tmp_path, "--what", "test", code=1
    )
    part = tmp_path / command.STORE / "lmo_test_bop19.zip.part"
    assert part.stat().st_size == 70_000
    printed = download("lmo", "--data-dir", tmp_path, "--what", "test")
    assert "0.1 MB to fetch" in printed
    assert hub.requests[-1][1] == "bytes=70000-"
    assert not part.exists()


def test_a_server_without_ranges_sends_all_again(hub, tmp_path):
    hub.without_ranges = True
    hub.cut_after["lmo/lmo_test_bop19.zip"] = [50_000]
    download("lmo", "--data-dir", tmp_path, "--what", "test")
    assert open_dataset("lmo", tmp_path).image_path(2, 3).read_bytes() == NOISE


def test_busy_servers_are_asked_again(hub, tmp_path):
    hub.statuses = [503, 429, 500]
    assert "1 fetched" in download("lmo", "--data-dir", tmp_path, "--what", "models")


def test_a_damaged_file_is_not_used(hub, tmp_path):
    hub.broken.add("lmo/lmo_test_bop19.zip")
    printed = download("lmo", "--data-dir", tmp_path, code=1)
    assert "lmo_test_bop19.zip: " in printed
    assert "SHA-256" in printed
    assert "3 fetched, 0 kept, 1 failed" in printed
    assert not (tmp_path / "lmo/test").exists()
    hub.broken.clear()
    assert "1 fetched, 3 kept" in download("lmo", "--data-dir", tmp_path)


def test_a_corrupt_archive_is_named(hub, tmp_path):
    hub.files["lmo/lmo_models.zip"] = b"no zip archive"
    assert "is damaged" in download("lmo", "--data-dir", tmp_path, "--what", "models", code=1)


def test_an_archive_in_parts(hub, tmp_path):
    del hub.files["lmo/lmo_test_bop19.zip"], hub.files["lmo/lmo_test_all.zip"]
    (tmp_path / "parts").mkdir()
    for path in write_parts(tmp_path / "parts", "lmo_test_bop19", 65536):
        hub.files[f"lmo/{path.name}"] = path.read_bytes()
    printed = download("lmo", "--data-dir", tmp_path / "bop", "--what", "test")
    assert "in 4 parts" in printed
    assert all((tmp_path / "bop/lmo" / name).read_bytes() == data for name, data in CONTENTS.items())
    del hub.files["lmo/lmo_test_bop19.z02"]
    assert "lacks parts" in download("lmo", "--data-dir", tmp_path / "new", "--what", "test", code=1)


def test_a_licence_needs_a_token_which_no_other_host_sees(hub, tmp_path, monkeypatch):
    hub.gated.add("hot3d")
    what = ("hot3d", "--data-dir", tmp_path, "--what", "base")
    printed = download(*what, code=1)
    assert "needs a token (HTTP 401)" in printed
    assert f"accept the licence on {hub.address}/datasets/bop-benchmark/hot3d, then set HF_TOKEN" in printed
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert "is refused with this token (HTTP 403)" in download(*what, code=1)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("right\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    assert "1 fetched" in download(*what)
    tokens = {token for path, _, token in hub.requests if path.startswith("/cdn/")}
    assert tokens == {None}


def test_no_space_is_known_before_the_download(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10**5))
    printed = download("lmo", "--data-dir", tmp_path, code=1)
    assert "there is not enough space; free 0.00 GB, or choose another --data-dir or fewer parts" in printed
    assert not any(path.startswith("/cdn/") for path, _, _ in hub.requests)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothere"], "does not exist (HTTP 404); check the name; known are lm, lmo"),
        (["lmo", "--what", "onboarding"], "has no archive of its onboarding"),
        (["hot3d", "--what", "detections"], "no default detections of hot3d"),
        (["lmo", "--what", "train"], "--what train is invalid"),
        (["../lmo"], "is not the name of a data set"),
    ],
)
def test_what_is_not_there_is_named(hub, tmp_path, arguments, words):  # noqa: ARG001 - the server must be there
    assert words in download(*arguments, "--data-dir", tmp_path, code=1)


def test_one_data_set_of_two_that_fails_leaves_the_other(hub, tmp_path):  # noqa: ARG001
    printed = download("nothere", "lmo", "--data-dir", tmp_path, "--what", "models", code=1)
    assert "failed: nothere" in printed
    assert (tmp_path / "lmo/models/obj_000001_ply").is_file()


def test_without_a_network_it_is_said_what_to_check(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "FIRST_PAUSE_S", 0.0)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in download("lmo", "--data-dir", tmp_path, code=1)
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert "HF_ENDPOINT" in download("lmo", "--data-dir", tmp_path, code=1)


def test_a_path_outside_of_the_repository_is_not_taken(hub, tmp_path):
    hub.files["bop_extra/default_detections/../../evil/cnos-fastsam_hot3d-test_x.json"] = b"[]"
    download("hot3d", "--data-dir", tmp_path, "--what", "detections", code=1)
    assert not (tmp_path.parent / "evil").exists()


def test_weights_are_named_fetched_and_checked(tmp_path, monkeypatch):
    assert released_weights.SHA256 == RELEASED_SHA256
    content = b"the network"
    monkeypatch.setattr(released_weights, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(sys.modules, "gdown", None)
    printed = download("weights", "--data-dir", tmp_path, code=1)
    assert "pip install gdown" in printed
    assert released_weights.PAGE in printed
    gdown = types.ModuleType("gdown")
    given = [b"a page of Google", None, content]

    def fake(id: str, output: str, quiet: bool) -> str | None:  # noqa: ARG001
        assert id == released_weights.DRIVE_ID
        data = given.pop(0)
        if data is None:
            return None
        Path(output).write_bytes(data)
        return output

    gdown.download = fake
    monkeypatch.setitem(sys.modules, "gdown", gdown)
    assert "SHA-256 differs" in download("weights", "--data-dir", tmp_path, code=1)
    assert "does not give the file" in download("weights", "--data-dir", tmp_path, code=1)
    assert not list(tmp_path.iterdir())
    assert f"pass --weights {tmp_path / 'picopose.ckpt'}" in download("weights", "--data-dir", tmp_path)
    assert "1 kept" in download("weights", "--data-dir", tmp_path)
    (tmp_path / "picopose.ckpt").write_bytes(b"damaged")
    assert "its SHA-256 differs" in download("weights", "--data-dir", tmp_path, code=1)


def test_the_notes_of_what_is_done_are_plain(hub, tmp_path):
    download("lmo", "--data-dir", tmp_path, "--what", "models")
    note = json.loads((tmp_path / command.STORE / "lmo_models.zip.done").read_text())
    assert note["archive"] == [["lmo_models.zip", len(hub.files["lmo/lmo_models.zip"]), note["archive"][0][2]]]
    assert note["unpacked"] == ["lmo/models/obj_000001_ply"] * 2
    (tmp_path / "lmo/models/obj_000001_ply").unlink()
    assert "1 fetched" in download("lmo", "--data-dir", tmp_path, "--what", "models")
    hub.files["lmo/lmo_models.zip"] = zipped(models__obj_000002_ply=b"new")
    assert "1 fetched" in download("lmo", "--data-dir", tmp_path, "--what", "models")
