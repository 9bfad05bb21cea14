"""Weight files: the released Lightning checkpoint, plain PyTorch files, and safetensors that contain the sizes.

Only tensors are read from a pickle (`weights_only=True`); a file with other objects is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path
from picopose_cli.network.config import VIT_L, ModelConfig
from picopose_cli.network.integrity import FETCH_AGAIN, require_intact_archive, tensors_sha256
from picopose_cli.network.picopose import PicoPose

FORMAT_VERSION = 1
"""Version of the safetensors files that picopose writes."""
LIGHTNING_PREFIX = "network."
"""Prefix of each name in the released file; its other entries belong to the training."""

_VERSION_KEY = "picopose_format_version"
_CONFIG_KEY = "picopose_config"
_SHA256_KEY = "picopose_tensors_sha256"
"""Files of earlier versions lack it."""
_NAMES_SHOWN = 3
_USE_PICOPOSE_WEIGHTS = "pass the released PicoPose checkpoint or a .safetensors file written by picopose"
# Exceptions of torch.load for damaged files: of the pickle, of the archive, and of decoding garbage.
_UNREADABLE = (
    RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError, OSError, AssertionError,
    OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def load_network(path: Path, device: str | torch.device = "cpu") -> PicoPose:
    """Return the network of a weight file in eval mode, f32, on `device`.

    Takes a Lightning `.ckpt`, a bare state dict (`.pth`; names with or without `network.`) and `.safetensors`; the
    file's content decides, not its suffix. Only safetensors written by picopose contain the sizes; other files must
    have those of the released network. Raises PicoPoseError that names the kind of the file, or the tensors that do not
    fit.
    """
    config, state = _read_file(path)
    with torch.device("meta"):  # neither memory nor random values for tensors that the file replaces
        network = PicoPose(config)
    expected = network.state_dict()
    _require_layout(path, state, expected)
    tensors = {name: _as_loaded(path, name, state[name], like, device) for name, like in expected.items()}
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval()


def read_config(path: Path) -> ModelConfig:
    """Return the sizes of the network in a weight file, those of the released network if it has none; reads no tensor.

    Raises PicoPoseError when the file cannot be read.
    """
    if _read_head(path)[8:9] != b"{":
        return VIT_L
    return _config_of_safetensors(path) or VIT_L


def load_start(path: Path, network: PicoPose) -> None:
    """Load initial weights of a training: the whole network, or its backbone if the file is DINOv2's own.

    Also takes the files of `load_network`. Raises PicoPoseError when the tensors do not fit the network's sizes.
    """
    _, state = _read_file(path)
    part = network.feature_extractor.dinov2 if "cls_token" in state else network
    expected = part.state_dict()
    _require_layout(path, state, expected)
    part.load_state_dict({name: _as_loaded(path, name, state[name], like, "cpu") for name, like in expected.items()})


def save_network(path: Path, network: PicoPose, *, half: bool = False) -> None:
    """Write the network with its sizes as safetensors; atomic.

    `half` stores matrices and kernels as f16 and keeps norms, biases and statistics in f32. Raises PicoPoseError when
    the file cannot be written or a value does not fit into f16.
    """
    tensors = {name: _as_stored(name, tensor, half) for name, tensor in network.state_dict().items()}
    config = json.dumps(network.config.to_json_dict())
    metadata = {
        "format": "pt",
        _VERSION_KEY: str(FORMAT_VERSION),
        _CONFIG_KEY: config,
        _SHA256_KEY: tensors_sha256(tensors, config),
    }
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # here only the disk can fail
            raise OSError(str(error)) from error


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(64)
    except OSError as error:
        raise _cannot_open(path, error) from error


def carries_hash(path: Path) -> bool:
    """Return whether a weight file has the hash of its tensors; raises PicoPoseError when it cannot be read."""
    if _read_head(path)[8:9] != b"{":
        return False
    with _opened_safetensors(path) as handle:
        return _SHA256_KEY in (handle.metadata() or {})


def _read_file(path: Path) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    head = _read_head(path)
    if head.startswith(b"PK\x03\x04"):
        return VIT_L, _state_dict_in(path, _read_torch(path, mapped=True))
    if head[8:9] == b"{":  # before it the length of the header, any eight bytes
        return _read_safetensors(path)
    if head.startswith(b"\x80"):  # PyTorch's old format, a bare pickle: cannot be mapped
        return VIT_L, _state_dict_in(path, _read_torch(path, mapped=False))
    raise PicoPoseError(f"is not a checkpoint{_describe_head(head)}", where=path, fix=_USE_PICOPOSE_WEIGHTS)


def _describe_head(head: bytes) -> str:
    if not head:
        return " (the file is empty)"
    if head.startswith(b"version https://git-lfs"):
        return " but a Git LFS pointer: run `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return " but a web page: the download did not deliver the file"
    return ""


def _read_torch(path: Path, *, mapped: bool) -> Any:
    if mapped:
        require_intact_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from error
    except _UNREADABLE as error:
        what = "is truncated, damaged, or no PyTorch file"
        raise PicoPoseError(f"{what} ({_first_line(error)})", where=path, fix=FETCH_AGAIN) from error


def _refused_pickle(path: Path, message: str) -> PicoPoseError:
    """Return the error of a pickle with objects, or of one that is garbage: PyTorch raises the same for both."""
    found = re.search(r"GLOBAL (\S+)", message)
    if found is None:
        return PicoPoseError("is damaged or no PyTorch file", where=path, fix=FETCH_AGAIN)
    rewrite = "torch.save(torch.load(OLD, weights_only=False)['state_dict'], NEW)"
    return PicoPoseError(
        f"contains objects besides tensors ({found[1]}), and reading those could run foreign code",
        where=path,
        fix=f"if you trust the file, write its tensors to a new one in Python: {rewrite}",
    )


def _state_dict_in(path: Path, content: Any) -> Mapping[str, Tensor]:
    """Return the tensors by name, without prefix, of the content of a PyTorch file."""
    if isinstance(content, Mapping) and {"state", "param_groups"} <= set(content):
        raise PicoPoseError("is the state of an optimizer, not of a network", where=path, fix=_USE_PICOPOSE_WEIGHTS)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state:
        raise PicoPoseError(f"contains a {type(state).__name__}, not weights", where=path, fix=_USE_PICOPOSE_WEIGHTS)
    state = {str(name): value for name, value in state.items()}
    if any(name.startswith(LIGHTNING_PREFIX) for name in state):
        cut = len(LIGHTNING_PREFIX)
        state = {name[cut:]: value for name, value in state.items() if name.startswith(LIGHTNING_PREFIX)}
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise PicoPoseError(f"contains {_some(others)} instead of a state dict", where=path, fix=_USE_PICOPOSE_WEIGHTS)
    empty = [name for name, value in state.items() if not _is_plain(value)]
    if empty:
        what = f"contains tensors without plain values (meta, sparse, nested or quantized: {_some(empty)})"
        raise PicoPoseError(what, where=path, fix=_USE_PICOPOSE_WEIGHTS)
    return state


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has its values in memory, one after another."""
    return tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)


def _read_safetensors(path: Path) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    config = _config_of_safetensors(path)
    with _opened_safetensors(path) as handle:
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no Mapping)
        metadata = handle.metadata() or {}
    expected = metadata.get(_SHA256_KEY)
    if expected is not None and expected != tensors_sha256(state, metadata.get(_CONFIG_KEY, "")):
        raise PicoPoseError("is damaged (its tensors do not have their checksum)", where=path, fix=FETCH_AGAIN)
    return (VIT_L, _state_dict_in(path, state)) if config is None else (config, state)


def _config_of_safetensors(path: Path) -> ModelConfig | None:
    """Return the sizes in a file that picopose wrote, None for another file."""
    with _opened_safetensors(path) as handle:
        metadata = handle.metadata() or {}
    if _CONFIG_KEY not in metadata:
        return None
    version = metadata.get(_VERSION_KEY)
    if version != str(FORMAT_VERSION):
        what = f"has format version {version}, and this picopose reads {FORMAT_VERSION}"
        raise PicoPoseError(what, where=path, fix="use the picopose that wrote it, or write it again")
    return _parse_config(path, metadata[_CONFIG_KEY])


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        what = f"is truncated, damaged, or no safetensors file ({_first_line(error)})"
        raise PicoPoseError(what, where=path, fix=FETCH_AGAIN) from error


def _parse_config(path: Path, text: str) -> ModelConfig:
    try:
        return ModelConfig.from_json_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise PicoPoseError(f"its sizes are no JSON ({error})", where=path, fix=FETCH_AGAIN) from error
    except PicoPoseError as error:
        raise PicoPoseError(error.what, where=path, fix=error.fix) from error


def _require_layout(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} for {tuple(like.shape)}"
        for name, like in expected.items()
        if name in state and state[name].shape != like.shape
    ]
    findings = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    text = ", ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in findings.items() if names)
    if text:
        raise PicoPoseError(f"{_likely_kind(state, expected)}; tensors: {text}", where=path, fix=_USE_PICOPOSE_WEIGHTS)


def _likely_kind(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return a description of a file that does not fit, from the names of its tensors."""
    if "cls_token" in state and "blocks.0.norm1.weight" in state:
        return "this is DINOv2's own file, the backbone alone, for picopose train --init"
    if "embeddings.cls_token" in state or any(name.startswith("dinov2.embeddings.") for name in state):
        return "this is a DINOv2 backbone under Hugging Face's names"
    if any(name.startswith(("ae_net.", "ist_net.")) for name in state):
        return "this is a GigaPose checkpoint"
    if not any(name in expected for name in state):
        return "these are the weights of another network"
    if set(state) < set(expected):
        return "this is a part of a PicoPose network"
    return "this is a PicoPose network of other sizes"


def _as_loaded(path: Path, name: str, tensor: Tensor, like: Tensor, device: str | torch.device) -> Tensor:
    """Return a copy of the network's type on the device: the file may be mapped into memory, and files change."""
    if tensor.is_floating_point() != like.is_floating_point():
        what = f"tensor {name} is {tensor.dtype}, needs {like.dtype}"
        raise PicoPoseError(what, where=path, fix=_USE_PICOPOSE_WEIGHTS)
    loaded = tensor.to(device=device, dtype=like.dtype, copy=True).contiguous()
    if not torch.isfinite(loaded).all():
        what = f"tensor {name} contains NaN or infinity"
        raise PicoPoseError(what, where=path, fix="use an earlier checkpoint: this training went wrong")
    return loaded


def _as_stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    stored = tensor.detach().cpu().contiguous()
    if not half or stored.ndim < 2:
        return stored
    stored = stored.half()
    if torch.isinf(stored).any():
        raise PicoPoseError(f"tensor {name} does not fit into half precision", fix="save in full precision")
    return stored


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _cannot_open(path: Path, error: OSError) -> PicoPoseError:
    return PicoPoseError(f"cannot be read ({error.strerror or error})", where=path, fix=_USE_PICOPOSE_WEIGHTS)
