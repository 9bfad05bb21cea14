"""The state of a training run, its optimisers and its checkpoint files."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_path
from picopose_cli.network.picopose import PicoPose
from picopose_cli.training.muon import Muon
from picopose_cli.training.recipes import Recipe

FORMAT_VERSION = 3
_MUON_MOMENTUM = 0.95
_KEPT_CHECKPOINTS = 2
"""The newest checkpoint, and the one before in case the newest is damaged."""
_NAME = re.compile(r"checkpoint_(\d{8})\.pt")
_FIX = "delete it to continue from the checkpoint before, or choose another --output"
_FIX_TRAINED = (
    "pass --freeze-backbone exactly as that run did, or start from its network: --init network.safetensors with "
    "another --output"
)


@dataclass
class TrainState:
    """Everything that changes during a run. Random numbers are derived from seed and step, so they need no state.

    `mean` is the running mean of the weights by name, empty when there is none; `batches` is the number of batches that
    each process has consumed; `skipped` counts by reason the entries that the leader's source could not use.
    """

    network: PicoPose
    optimizers: tuple[Optimizer, ...]
    mean: dict[str, Tensor]
    step: int = 0
    batches: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def start_state(network: PicoPose, recipe: Recipe, *, ema: bool) -> TrainState:
    """Return the state before the first step, of a network on its device; `ema` adds a running mean of the weights."""
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    matrices = [parameter for name, parameter in trained.items() if recipe.muon_gain and _for_muon(name, parameter)]
    taken = {id(parameter) for parameter in matrices}
    adamw = AdamW(
        [parameter for parameter in trained.values() if id(parameter) not in taken],
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=next(network.parameters()).device.type == "cuda",
    )
    optimizers: list[Optimizer] = [adamw]
    if matrices:
        rate = recipe.muon_gain * recipe.lr
        optimizers.append(Muon(matrices, lr=rate, weight_decay=recipe.weight_decay, momentum=_MUON_MOMENTUM))
    mean = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()} if ema else {}
    return TrainState(network, tuple(optimizers), mean)


def _for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon trains a weight: matrices and convolutions, except output layers and stage 2.

    In stage 2 linear layers follow each other without normalisation: there Muon's steps of constant size make
    activations grow until tanh saturates and ReLUs are always 0.
    """
    return parameter.ndim in (2, 4) and not name.startswith("affine_") and "predict_layer" not in name


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0, of a run of `steps`: linear warm-up, then half a cosine."""
    warmup = min(recipe.warmup_steps, steps // 10)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_learning_rate(state: TrainState, recipe: Recipe, steps: int) -> None:
    """Set the learning rate of every optimiser for the next step of a run of `steps`."""
    rate = learning_rate(recipe, state.step, steps)
    for optimizer in state.optimizers:
        gain = recipe.muon_gain if isinstance(optimizer, Muon) else 1.0
        for group in optimizer.param_groups:
            group["lr"] = gain * rate


@torch.no_grad()
def update_mean(state: TrainState, decay: float) -> None:
    """Update the running mean of the weights; the decay is smaller in the first steps."""
    if not state.mean:
        return
    decay = min(decay, (1 + state.step) / (10 + state.step))
    now = state.network.state_dict()
    names = [name for name, tensor in state.mean.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([state.mean[name] for name in names], [now[name] for name in names], 1 - decay)
    for name in now.keys() - set(names):
        state.mean[name].copy_(now[name])


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"checkpoint_{step:08d}.pt"


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder, or None."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def write_checkpoint(folder: Path, state: TrainState, facts: Mapping[str, Any]) -> Path:
    """Write the state, delete all but the two newest checkpoints, and return the path; `facts` describe the run.

    Raises PicoPoseError when the folder cannot be written or the disk is full.
    """
    path = checkpoint_path(folder, state.step)
    content = {
        "format_version": FORMAT_VERSION,
        "config": json.dumps(state.network.config.to_json_dict()),
        "facts": json.dumps(dict(facts)),
        "step": state.step,
        "batches": state.batches,
        "skipped": dict(state.skipped),
        "network": state.network.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
        "mean": state.mean,
    }
    with atomic_path(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # raised by PyTorch's archive writer on a full disk
            raise OSError(str(error)) from error
    for old in _checkpoints(folder)[:-_KEPT_CHECKPOINTS]:
        old.unlink(missing_ok=True)
    return path


def read_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Load the state from a file and return the facts that it was written with.

    Raises PicoPoseError when the file is damaged, of another format version, of a network with other sizes or with
    other trained weights, or has numbers that are not finite.
    """
    content = _load(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise PicoPoseError("is not a checkpoint of this version of picopose", where=path, fix=_FIX)
    if content["config"] != json.dumps(state.network.config.to_json_dict()):
        raise PicoPoseError("is of a network with other sizes", where=path, fix="pass the --preset of the first run")
    try:
        if _trained_counts(content["optimizers"]) != _trained_counts(one.state_dict() for one in state.optimizers):
            raise PicoPoseError("is of a run that trained other weights", where=path, fix=_FIX_TRAINED)
        facts = _load_content(content, state)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PicoPoseError("is damaged", where=path, fix=_FIX) from error
    if find_not_finite(state) is not None:
        raise PicoPoseError("contains numbers that are not finite", where=path, fix=_FIX)
    return facts


def find_not_finite(state: TrainState) -> str | None:
    """Return the name of a tensor of weights, mean or optimisers with a number that is not finite; None without one."""
    named = [*state.network.state_dict().items(), *state.mean.items()]
    for optimizer in state.optimizers:
        named += [item for values in optimizer.state.values() for item in values.items()]
    broken = (name for name, value in named if isinstance(value, Tensor) and not torch.isfinite(value).all())
    return next(broken, None)


def _trained_counts(optimizers: Iterable[Mapping[str, Any]]) -> list[list[int]]:
    """Return the number of parameters in each group of each optimiser's state."""
    return [[len(group["params"]) for group in optimizer["param_groups"]] for optimizer in optimizers]


def _load_content(content: Mapping[str, Any], state: TrainState) -> dict[str, Any]:
    """Load the content of a checkpoint into the state and return its facts."""
    state.network.load_state_dict(content["network"])
    for optimizer, saved in zip(state.optimizers, content["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    device = next(state.network.parameters()).device
    if state.mean and content["mean"]:
        state.mean = {name: tensor.to(device) for name, tensor in content["mean"].items()}
    elif state.mean:
        state.mean = {name: tensor.detach().clone() for name, tensor in state.network.state_dict().items()}
    state.step, state.batches = int(content["step"]), int(content["batches"])
    state.skipped = Counter(content["skipped"])
    facts: dict[str, Any] = json.loads(content["facts"])
    return facts


def _load(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, LookupError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise PicoPoseError("is damaged or not a checkpoint", where=path, fix=_FIX) from error
    if not isinstance(content, dict):
        raise PicoPoseError("is not a checkpoint", where=path, fix=_FIX)
    return content


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("checkpoint_*.pt") if _NAME.fullmatch(path.name))
