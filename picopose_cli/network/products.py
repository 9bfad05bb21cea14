"""Matrix products through oneDNN: for f32 PyTorch takes MKL, which runs at half the speed on CPUs of other makers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def is_plain_inference(values: Tensor) -> bool:
    """Say whether values are f32 on the CPU, and nobody asks for gradients or autocast."""
    plain = values.device.type == "cpu" and values.dtype == torch.float32
    return plain and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear`: inputs (...,C), weight (O,C), bias (O,); (...,O)."""
    if is_plain_inference(inputs) and torch._C._has_mkldnn:
        # The product that torch.compile calls; F.linear asks oneDNN only for half precision.
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return product
    return F.linear(inputs, weight, bias)


class Linear(torch.nn.Linear):
    """A linear layer that takes the fast product."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (...,C) to (...,O)."""
        return linear(input, self.weight, self.bias)
