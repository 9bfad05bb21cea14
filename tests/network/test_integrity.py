"""Damage in weight files is noticed: no flipped bit gives a network of other values."""

from __future__ import annotations

import hashlib
import random
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.networks import CROP_56, random_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network import bundled, checkpoint
from picopose_cli.network.checkpoint import carries_hash, load_network, save_network
from picopose_cli.network.integrity import RELEASED_SHA256, SHIPPED_SHA256, unverified_weights

ROOT = Path(__file__).resolve().parents[2]


def test_the_recorded_hashes_are_those_of_the_readme_and_the_file() -> None:
    readme = (ROOT / "weights/README.md").read_text()
    assert SHIPPED_SHA256 in readme
    assert RELEASED_SHA256 in readme
    assert hashlib.sha256((ROOT / "weights/mini.safetensors").read_bytes()).hexdigest() == SHIPPED_SHA256


def test_a_changed_shipped_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "site-packages/picopose_cli/network/bundled.py"))
    path = tmp_path / "site-packages/weights/mini.safetensors"
    path.parent.mkdir(parents=True)
    data = bytearray((ROOT / "weights/mini.safetensors").read_bytes())
    path.write_bytes(data)
    assert bundled.bundled_weights() == path
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(PicoPoseError, match=r"SHA-256 is not that of the shipped file.*--weights"):
        bundled.bundled_weights()


def test_a_flipped_bit_anywhere_in_an_own_file_is_refused(tmp_path: Path) -> None:
    path, dice = tmp_path / "own.safetensors", random.Random(0)
    save_network(path, random_network(CROP_56))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [dice.randrange(8, header) for _ in range(40)] + [
        dice.randrange(header, len(whole)) for _ in range(20)
    ]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        try:
            network = load_network(path)
        except PicoPoseError:
            continue
        assert place < header  # blanks of the header, or the name of the hash
        for name, tensor in random_network(CROP_56).state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor)


def test_the_sizes_are_covered_by_the_hash(tmp_path: Path) -> None:
    """The number of heads, for example, changes the results but no tensor's shape."""
    path = tmp_path / "own.safetensors"
    save_network(path, random_network(CROP_56))
    data = path.read_bytes()
    assert data.count(rb"\"heads\": 2") == 1
    path.write_bytes(data.replace(rb"\"heads\": 2", rb"\"heads\": 4"))
    with pytest.raises(PicoPoseError, match="its tensors do not have their checksum"):
        load_network(path)


def test_an_own_file_of_an_earlier_version_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    save_network(path, random_network(CROP_56))
    assert unverified_weights(path, "00", carries_hash(path)) == []
    with safe_open(path, "pt") as handle:
        metadata = {name: text for name, text in handle.metadata().items() if name != "picopose_tensors_sha256"}
    save_file(load_file(path), path, metadata)
    assert load_network(path).config == CROP_56
    assert not carries_hash(path)
    assert "contains no checksum" in unverified_weights(path, "00", has_hash=False)[0]
    assert unverified_weights(path, SHIPPED_SHA256, has_hash=False) == []


def _pytorch_file(path: Path, *, checksums: bool = True) -> bytes:
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save(random_network(CROP_56).state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    return path.read_bytes()


def test_a_flipped_bit_in_a_tensor_of_a_pytorch_file_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "VIT_L", CROP_56)
    path = tmp_path / "released.ckpt"
    whole = _pytorch_file(path)
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    flipped = bytearray(whole)
    flipped[info.header_offset + 400 + info.file_size // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(PicoPoseError, match=r"is damaged \(.* does not have its checksum\)"):
        load_network(path)


def test_a_pytorch_file_written_without_checksums_is_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint, "VIT_L", CROP_56)
    _pytorch_file(tmp_path / "plain.pth", checksums=False)
    load_network(tmp_path / "plain.pth")


@pytest.mark.parametrize("change", [lambda value: value.to("meta"), lambda value: value.to_sparse()])
def test_tensors_without_plain_values_are_refused(tmp_path: Path, monkeypatch, change) -> None:
    monkeypatch.setattr(checkpoint, "VIT_L", CROP_56)
    state = dict(random_network(CROP_56).state_dict())
    state["affine_regressor.fc2.bias"] = change(state["affine_regressor.fc2.bias"])
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(PicoPoseError, match=r"without plain values .*affine_regressor\.fc2\.bias"):
        load_network(tmp_path / "odd.pth")
