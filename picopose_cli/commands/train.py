"""`picopose train`: train a network; the same command continues an interrupted run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from picopose_cli.base.files import require_writable
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.network.checkpoint import save_network
from picopose_cli.network.devices import choose_device
from picopose_cli.training.distributed import join_processes, leave_processes
from picopose_cli.training.loop import train
from picopose_cli.training.sources import open_source
from picopose_cli.training.start import CONFIGS, start_network
from picopose_cli.training.stop_signals import stop_signals
from picopose_cli.training.summary import SUMMARY_NAME, TrainSummary, write_summary
from picopose_cli.training.validation import open_validator

NETWORK_NAME = "network.safetensors"


@dataclass(frozen=True)
class TrainReport:
    """The network that a run wrote, and its summary."""

    network: Path
    summary: TrainSummary

    @property
    def exit_code(self) -> int:
        """0, also for a run that stopped before its last step; 1 when entries of the source could not be used."""
        return 1 if self.summary.skipped else 0


def run(options: TrainOptions) -> TrainReport:
    """Train, validate and write the network; see `picopose train --help`.

    Raises PicoPoseError when source, start weights, device, a checkpoint or the output folder cannot be used.
    """
    process = join_processes(choose_device(options.device), options.precision)
    try:
        require_writable(options.output / SUMMARY_NAME)
        source = open_source(options, process.world)
        network = start_network(CONFIGS[options.preset], options.init, options.seed)
        if options.freeze_backbone:
            network.feature_extractor.requires_grad_(False)
        validator = open_validator(options, process)
        with stop_signals() as stop:
            summary = train(options, network, source, process, validate=validator, stop=stop)
        path = options.output / NETWORK_NAME
        if process.is_leader:
            save_network(path, network, half=True)
            write_summary(options, process, summary, path)
            console = Console(markup=False, highlight=False, soft_wrap=True)
            console.print(f"{summary.text()}\nnetwork: {path}")
        return TrainReport(path, summary)
    finally:
        leave_processes(process)
