"""Weight files: every kind that can be read, and the messages for others."""

from __future__ import annotations

import collections
import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.networks import CROP_56, random_network
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network import checkpoint
from picopose_cli.network.checkpoint import load_network, read_config, save_network
from picopose_cli.network.config import VIT_L
from picopose_cli.network.picopose import PicoPose

State = dict[str, Tensor]


class Foreign:
    """Stands for an object of a training framework inside a checkpoint."""


@pytest.fixture(scope="module")
def network() -> PicoPose:
    return random_network(CROP_56)


@pytest.fixture
def state(network: PicoPose) -> State:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def _tiny_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files without sizes be of the small network."""
    monkeypatch.setattr(checkpoint, "VIT_L", CROP_56)


def _prefixed(state: State, prefix: str = "network.") -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _same(network: PicoPose, state: State, **tolerance: float) -> None:
    loaded = network.state_dict()
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}))


# ---- files that are taken


@pytest.mark.usefixtures("_tiny_is_released")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content",
    [
        lambda state: {
            "state_dict": {**_prefixed(state), "loss.temperature": torch.ones(1)},
            "epoch": 3,
            "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-5}]}],
            "loops": {"fit_loop": collections.OrderedDict(done=1)},
        },
        lambda state: {"state_dict": state},
        lambda state: state,
        _prefixed,
        lambda state: collections.OrderedDict(state),
    ],
    ids=["lightning", "nested", "bare", "prefixed", "ordered"],
)
def test_pytorch_files(tmp_path: Path, state: State, content: Callable[[State], Any], zipped: bool) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save(content(state), path, _use_new_zipfile_serialization=zipped)
    network = load_network(path)
    _same(network, state)
    assert not network.training
    assert network.config == CROP_56


@pytest.mark.usefixtures("_tiny_is_released")
def test_the_file_may_vanish_after_loading(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    network = load_network(path)
    path.write_bytes(b"")  # a mapped tensor would now crash the process
    _same(network, state)


@pytest.mark.usefixtures("_tiny_is_released")
@pytest.mark.parametrize("prefix", ["", "network."])
def test_safetensors_without_sizes(tmp_path: Path, state: State, prefix: str) -> None:
    save_file(_prefixed(state, prefix), tmp_path / "weights.safetensors")
    _same(load_network(tmp_path / "weights.safetensors"), state)


def test_own_files_carry_their_sizes(tmp_path: Path, network: PicoPose, state: State) -> None:
    save_network(tmp_path / "tiny.safetensors", network)
    loaded = load_network(tmp_path / "tiny.safetensors")
    assert loaded.config == CROP_56
    _same(loaded, state)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_the_length_of_the_header_may_look_like_a_pickle(tmp_path: Path, network: PicoPose, state: State) -> None:
    """Of the names' lengths, one in 32 makes the file begin with the byte 0x80."""
    save_network(tmp_path / "plain.safetensors", network)
    with safe_open(tmp_path / "plain.safetensors", framework="pt") as handle:
        metadata = handle.metadata()
    path = tmp_path / "own.safetensors"
    for length in range(0, 264, 4):
        save_file(state, path, {**metadata, "note": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    loaded = load_network(path)
    assert loaded.config == CROP_56
    _same(loaded, state)


def test_sizes_are_read_without_the_tensors(tmp_path: Path, network: PicoPose, state: State) -> None:
    save_network(tmp_path / "own.safetensors", network)
    torch.save(state, tmp_path / "bare.pth")
    save_file(state, tmp_path / "bare.safetensors")
    assert read_config(tmp_path / "own.safetensors") == CROP_56
    assert read_config(tmp_path / "bare.pth") == read_config(tmp_path / "bare.safetensors") == VIT_L
    with pytest.raises(PicoPoseError, match="cannot be read"):
        read_config(tmp_path / "nowhere.pth")


def test_the_suffix_does_not_matter(tmp_path: Path, network: PicoPose, state: State) -> None:
    save_network(tmp_path / "tiny.ckpt", network)
    _same(load_network(tmp_path / "tiny.ckpt"), state)


def test_half_precision_keeps_vectors_whole(tmp_path: Path, network: PicoPose, state: State) -> None:
    path = tmp_path / "half.safetensors"
    save_network(path, network, half=True)
    stored = load_file(path)
    for name, tensor in state.items():
        assert stored[name].dtype == (torch.float16 if tensor.ndim >= 2 else tensor.dtype)
    _same(load_network(path), state, rtol=1e-3, atol=1e-6)


def test_a_value_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    network = random_network(CROP_56)
    with torch.no_grad():
        network.affine_regressor.fc1.weight[0, 0] = 1e6
    with pytest.raises(PicoPoseError, match=r"fc1\.weight does not fit into half"):
        save_network(tmp_path / "half.safetensors", network, half=True)
    assert list(tmp_path.iterdir()) == []


def test_another_memory_format_is_saved_alike(tmp_path: Path, state: State) -> None:
    network = random_network(CROP_56).to(memory_format=torch.channels_last)
    save_network(tmp_path / "tiny.safetensors", network)
    _same(load_network(tmp_path / "tiny.safetensors"), state)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, network: PicoPose, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.safetensors"
    save_network(path, network)
    before = path.read_bytes()

    def full_disk(_tensors: object, temporary: Path, _metadata: object) -> None:
        temporary.write_bytes(b"half a file")
        raise checkpoint.SafetensorError(f"I/O error: {errno.ENOSPC}")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(PicoPoseError, match="cannot be written"):
        save_network(path, network)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_released_layout_loads_strictly(tmp_path: Path) -> None:
    """Every tensor of the full size, each stored as one repeated number so that the file is small."""
    with torch.device("meta"):
        expected = PicoPose(VIT_L).state_dict()
    repeated = {
        f"network.{name}": torch.tensor(0.5).to(like.dtype).expand(like.shape) for name, like in expected.items()
    }
    torch.save({"state_dict": repeated, "global_step": 400_000}, tmp_path / "released.ckpt")
    network = load_network(tmp_path / "released.ckpt")
    loaded = network.state_dict()
    assert len(loaded) == 603
    assert round(sum(tensor.numel() for tensor in loaded.values()) / 1e6, 1) == 380.9
    assert all(tensor.is_contiguous() for tensor in loaded.values())


# ---- files that are not


def _refusal(path: Path) -> str:
    with pytest.raises(PicoPoseError) as caught:
        load_network(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert caught.value.fix
    assert "\n" not in text
    return text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "No such file" in _refusal(tmp_path / "absent.ckpt")
    assert "directory" in _refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, this is a text file", "is not a checkpoint;"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"\x80\x02" + bytes(100), "damaged"),
        ((1 << 40).to_bytes(8, "little") + b'{"a":', "damaged"),
        (bytes(300), "is not a checkpoint;"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    assert message in _refusal(path)


def _pytorch_zip(state: State, path: Path) -> None:
    torch.save({"state_dict": state}, path)


def _pytorch_old(state: State, path: Path) -> None:
    torch.save({"state_dict": state}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [_pytorch_zip, _pytorch_old, save_file])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, write: Callable[[State, Path], None], kept: float, state: State) -> None:
    path = tmp_path / "weights"
    write(state, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "truncated, damaged" in _refusal(path) or "damaged" in _refusal(path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("write", [_pytorch_zip, _pytorch_old, save_file])
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, write: Callable[[State, Path], None]) -> None:
    path, draw = tmp_path / "weights", random.Random(0)
    write({f"layer{index}.weight": torch.ones(2, 2) for index in range(4)}, path)
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(draw.choice([1, 2, 5])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        _refusal(path)


def test_foreign_objects_are_refused_with_a_way_out(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": Foreign()}, path)
    text = _refusal(path)
    assert "Foreign" in text
    assert "could run foreign code" in text
    assert "torch.save(" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {}, "param_groups": []}, "state of an optimizer"),
        ({"model": {"a": torch.ones(1)}, "epoch": 3}, "contains model, epoch instead of a state dict"),
        ({}, "contains a dict, not weights"),
        ({"state_dict": {}}, "not weights"),
        ([torch.ones(1)], "contains a list"),
        (torch.ones(1), "contains a Tensor"),
        ({"cls_token": torch.ones(1), "blocks.0.norm1.weight": torch.ones(1)}, "DINOv2's own file"),
        ({"embeddings.cls_token": torch.ones(1)}, "Hugging Face"),
        ({"state_dict": {"ae_net.a": torch.ones(1), "ist_net.b": torch.ones(1)}}, "GigaPose"),
        ({"conv1.weight": torch.ones(1)}, "another network"),
    ],
)
def test_other_files_are_recognised(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert message in _refusal(path)


@pytest.mark.usefixtures("_tiny_is_released")
def test_missing_and_unexpected_tensors_are_named_and_counted(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.pth"
    for name in [name for name in state if name.startswith("affine_regressor.fc")]:
        del state[name]
    torch.save(state, path)
    text = _refusal(path)
    assert "a part of a PicoPose network" in text
    assert (
        "4 missing (affine_regressor.fc1.weight, affine_regressor.fc1.bias, affine_regressor.fc2.weight, ...)" in text
    )
    torch.save({**state, "extra": torch.ones(1)}, path)
    assert "1 unexpected (extra)" in _refusal(path)


@pytest.mark.usefixtures("_tiny_is_released")
def test_another_shape_is_named(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.pth"
    state["affine_regressor.fc2.bias"] = torch.ones(5)
    torch.save(state, path)
    text = _refusal(path)
    assert "a PicoPose network of other sizes" in text
    assert "1 of another shape (affine_regressor.fc2.bias (5,) for (16,))" in text


def test_own_tensors_must_fit_the_own_sizes(tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path, {"picopose_format_version": "1", "picopose_config": json.dumps(VIT_L.to_json_dict())})
    assert "of another shape" in _refusal(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"picopose_format_version": "2", "picopose_config": "{}"}, "format version 2, and this picopose reads 1"),
        ({"picopose_config": "{}"}, "format version None"),
        ({"picopose_format_version": "1", "picopose_config": "{"}, "no JSON"),
        ({"picopose_format_version": "1", "picopose_config": "{}"}, "missing or unknown"),
    ],
)
def test_own_files_of_another_kind(tmp_path: Path, state: State, metadata: dict[str, str], message: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path, metadata)
    assert message in _refusal(path)


@pytest.mark.usefixtures("_tiny_is_released")
@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity"), (None, "needs")]
)
def test_values_that_cannot_be_weights(tmp_path: Path, state: State, value: float | None, message: str) -> None:
    path, name = tmp_path / "weights.pth", "affine_regressor.fc2.bias"
    state[name] = torch.ones(16, dtype=torch.int64) if value is None else torch.full((16,), value)
    torch.save(state, path)
    text = _refusal(path)
    assert name in text
    assert message in text
