"""The options of `picopose train`; as in `base.options`, they are here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.option_fields import REQUIRED, check_ranges, option, require
from picopose_cli.base.option_texts import ONE_DEVICE_HELP
from picopose_cli.base.options import PRECISIONS

SOURCES = ("procedural", "megapose")
PRESETS = ("mini", "vit-l")


@dataclass(frozen=True)
class TrainOptions:
    """Options of `picopose train`."""

    output: Path = option(REQUIRED, "Folder of the checkpoints, the log and the trained network.", value="DIR")
    source: str = option("procedural", "Training data: procedural scenes or MegaPose's shards.", choices=SOURCES)
    objects: Path | None = option(None, "Folder of meshes to mix with the procedural objects.", value="DIR")
    shards: Path | None = option(None, "Folder of MegaPose's shards.", value="DIR")
    templates: Path | None = option(
        None, "Folder of the banks of the shards' objects.", value="DIR", default_text="templates/ in --shards"
    )
    preset: str = option("mini", "Sizes and training recipe of the network.", choices=PRESETS)
    init: Path | None = option(
        None, "Initial weights: DINOv2's, or those of a whole network.", value="FILE", default_text="random"
    )
    steps: int = option(100_000, "Number of optimiser steps.", minimum=1)
    minutes: float | None = option(
        None, "Stop after this time; the same command continues.", default_text="no limit", positive=True
    )
    batch_size: int = option(32, "Pairs in a batch of one process.", minimum=1)
    accumulate: int = option(1, "Batches whose gradients are summed for one step.", minimum=1)
    workers: int = option(2, "Processes that make training samples.", minimum=0)
    reuse: int = option(
        1, "Number of times each sample is used; above 1 a continued run is not exactly reproducible.", minimum=1
    )
    lr: float | None = option(
        None, "Maximum learning rate.", default_text="0.001 for mini, 1e-05 for vit-l", positive=True
    )
    max_roll_deg: float = option(180.0, "Largest random in-plane rotation of observations in degrees.", minimum=0)
    curriculum_steps: int = option(2000, "Steps over which the samples become harder.", minimum=0)
    ema: float = option(
        0.999, "Decay of the running mean of the weights, which is saved; 0: no mean.", minimum=0, below=1
    )
    seed: int = option(0, "Seed of initial weights and data.", minimum=0)
    device: str = option("auto", ONE_DEVICE_HELP, value="DEVICE")
    precision: str = option("auto", "Precision of the network; auto: bf16 on a GPU.", choices=PRECISIONS)
    validate_every: int = option(2000, "Steps between validations; 0: only at the end.", minimum=0)
    validation_objects: int = option(8, "Held-out procedural objects of the validation; 0: no validation.", minimum=0)
    checkpoint_every: int = option(1000, "Steps between checkpoints.", minimum=1)
    freeze_backbone: bool = option(False, "Train only stages 2 and 3, on the features of --init.")
    compile: bool = option(False, "Compile large parts of the network: slower to start, then faster.")

    def __post_init__(self) -> None:
        check_ranges(self)
        given = self.source != "megapose" or self.shards is not None
        require(given, "--source megapose needs the shards", "pass --shards DIR")
        useful = self.init is not None or not self.freeze_backbone
        require(useful, "--freeze-backbone would keep random features", "pass --init FILE with trained ones")
