"""The network with the device and the precision in which it runs at inference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from picopose_cli.base.types import Array
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.matching import masks_on_grid, unit_cells
from picopose_cli.network.offsets import OffsetFeatures
from picopose_cli.network.picopose import PicoPose, store_in_bf16


class InferenceNetwork:
    """A PicoPose network on a device, with arrays in and tensors on the device out.

    `precision` is fp32 or bf16: in bf16 the network runs under autocast, geometry stays fp32 and, on the host, fp64.
    """

    def __init__(self, network: PicoPose, *, device: str, precision: str) -> None:
        self.network = network
        self.config = network.config
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Disable gradients; use bf16 if asked for, otherwise true fp32: cuDNN would round to TF32 by default."""
        bf16 = self.dtype == torch.bfloat16
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=bf16))
            if self.device.type == "cuda":
                stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=bf16))
            yield

    def extract(self, inputs: Array) -> tuple[Tensor, OffsetFeatures]:
        """Return the unit cells (B,P,C) and the offset features of normalised BGR crops (B,3,S,S)."""
        with self.arithmetic():
            maps = self.network.extract(self.tensor(inputs))
            return unit_cells(maps[-1]).to(self.dtype), self.network.offset_features(maps)

    def extract_offset_features(self, inputs: Array) -> OffsetFeatures:
        """Return the offset features alone of normalised BGR crops (B,3,S,S)."""
        with self.arithmetic():
            return self.network.offset_features(self.network.extract(self.tensor(inputs)))

    def grid_masks(self, masks: Array) -> Tensor:
        """Return crop masks (B,S,S) sampled on the network's grid, (B,g,g)."""
        return masks_on_grid(self.tensor(masks), self.config.grid)

    def tensor(self, array: Array) -> Tensor:
        """Return an array as a tensor on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def load_inference_network(weights: Path, *, device: str, precision: str) -> InferenceNetwork:
    """Return the network of a checkpoint on a device; raises PicoPoseError when the file cannot be used."""
    network = load_network(weights, device)
    return InferenceNetwork(
        store_in_bf16(network) if precision == "bf16" else network, device=device, precision=precision
    )
