"""The local features that ship with the package, ready for inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network.bundled import bundled_local_features
from picopose_cli.network.lightglue import LightGlue
from picopose_cli.network.local_features import LocalFeatureNetwork

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class LocalMatcher:
    """XFeat and LighterGlue with their published weights, frozen."""

    features: LocalFeatureNetwork
    lightglue: LightGlue

    @property
    def device(self) -> torch.device:
        """The device of both networks."""
        return self.lightglue.frequencies.weight.device


def load_local_features(device: str | torch.device = "cpu", precision: str = "fp32") -> LocalMatcher:
    """Return the shipped local features on `device`; `precision` fp32 or bf16 is that of XFeat.

    Raises PicoPoseError when their file is missing, damaged or replaced.
    """
    path = bundled_local_features()
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PicoPoseError(f"cannot be read ({error})", where=path, fix="install picopose again") from error
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    features = _loaded(LocalFeatureNetwork, "features.", tensors).to(device, dtype)
    return LocalMatcher(features, _loaded(LightGlue, "lightglue.", tensors).to(device))


def _loaded(kind: type[Network], prefix: str, tensors: Mapping[str, Tensor]) -> Network:
    """Return a network in eval mode, f32, with the tensors whose names begin with `prefix`."""
    with torch.device("meta"):  # neither memory nor random values for tensors that the file replaces
        network = kind()
    state = {name.removeprefix(prefix): _as_used(tensor) for name, tensor in tensors.items() if name.startswith(prefix)}
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _as_used(tensor: Tensor) -> Tensor:
    """Return a tensor in f32, kernels in the layout in which convolutions are fastest."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return tensor.to(torch.float32, memory_format=layout)
