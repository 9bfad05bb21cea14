"""The processes of a training run: one, or with torchrun one per GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrainingProcess:
    """One process of a run: number `rank` of `world`, on `device`, with `precision` fp32 or bf16."""

    device: torch.device
    precision: str
    rank: int = 0
    world: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs with this process's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def any_process(self, condition: bool) -> bool:
        """Return whether the condition holds in any of the processes."""
        if self.world == 1:
            return condition
        votes = torch.tensor(float(condition), device=self.device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return bool(votes.item())


def join_processes(device: str, precision: str) -> TrainingProcess:
    """Connect to the other processes, if torchrun's environment variables name any, and return this process.

    `device` is `cpu` or `cuda:N`; of several processes, each takes the GPU of its local rank. `precision` is `auto`,
    `fp32` or `bf16`; `auto` is bf16 on a GPU, where it is several times faster.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    on_gpu = device != "cpu"
    if precision == "auto":
        precision = "bf16" if on_gpu else "fp32"
    if world > 1:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else device
    if on_gpu:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return TrainingProcess(torch.device(device), precision, rank, world)


def leave_processes(process: TrainingProcess) -> None:
    """Close the connection to the other processes, if there is one."""
    if process.world > 1:
        torch.distributed.destroy_process_group()
