"""Muon: an optimiser with orthogonalised momentum (Jordan et al., 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the odd quintic whose iteration moves singular values to about 1 (Jordan et al.)."""
_EPS = 1e-7
_ADAM_RMS = 0.2
"""Typical root mean square of AdamW's step relative to the learning rate, so that rates are comparable."""


class Muon(Optimizer):
    """Optimises weights of two and more dimensions; convolutions are matrices (outputs, inputs * kernel).

    Unlike PyTorch's Muon it computes in the weights' own precision, since bfloat16 is many times slower on CPUs without
    it, and it trains convolutions.
    """

    def __init__(self, weights: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient, with Nesterov momentum; a closure is not supported."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    update = self._momentum(weight, group["momentum"]).flatten(1)
                    by_shape[update.shape[0], update.shape[1]].append((weight, update))
            for shape, entries in by_shape.items():
                rate = group["lr"] * _ADAM_RMS * max(shape) ** 0.5
                steps = orthogonal(torch.stack([update for _, update in entries]))
                for (weight, _), step in zip(entries, steps, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(rate * step.view_as(weight))

    def _momentum(self, weight: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        update: Tensor = weight.grad.lerp(state["momentum"], momentum)
        return update


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices (N,r,c) with the same singular vectors and with singular values of .7 to 1.2."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    X = matrices.transpose(1, 2) if tall else matrices
    X = X / (torch.linalg.matrix_norm(X, keepdim=True) + _EPS)
    for _ in range(_ITERATIONS):
        gram = X @ X.transpose(1, 2)
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.transpose(1, 2) if tall else X
