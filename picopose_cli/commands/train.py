"""`picopose train`: a network from samples without end; the same command goes on where it stopped."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from picopose_cli.base.environment import machine, package_versions
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import atomic_write_bytes, file_sha256, require_writable
from picopose_cli.base.option_fields import options_record
from picopose_cli.base.options import TrainOptions
from picopose_cli.network.checkpoint import save_network
from picopose_cli.network.devices import choose_device, device_name
from picopose_cli.synthesis.samples import SampleSource
from picopose_cli.training.loop import (
    TrainingProcess,
    TrainSummary,
    join_processes,
    leave_processes,
    ramp_samples,
    train,
)
from picopose_cli.training.recipes import choose_recipe
from picopose_cli.training.start import CONFIGS, start_network
from picopose_cli.training.validation import Validator

NETWORK_NAME, SUMMARY_NAME = "network.safetensors", "summary.json"


@dataclass(frozen=True)
class TrainReport:
    """What a run wrote, and what it did."""

    network: Path
    summary: TrainSummary

    @property
    def exit_code(self) -> int:
        """0: a run that stops early stops cleanly."""
        return 0


def run(options: TrainOptions) -> TrainReport:
    """Train, validate and write the network; see `picopose train --help`.

    Raises PicoPoseError when source, start weights, device, a checkpoint or the output folder cannot be used.
    """
    group = _join(options)
    try:
        require_writable(options.output / SUMMARY_NAME)
        source = _open_source(options, group.world)
        network = start_network(CONFIGS[options.preset], options.init, options.seed)
        if options.freeze_backbone:
            network.feature_extractor.requires_grad_(False)
        with _stopped_by_signals() as stop:
            summary = train(options, network, source, group, validate=_validator(options, group), stop=stop)
        path = options.output / NETWORK_NAME
        if group.leads:
            save_network(path, network, half=True)
            _write_summary(options, group, summary, path)
            _print_summary(summary, path)
        return TrainReport(path, summary)
    finally:
        leave_processes(group)


def _join(options: TrainOptions) -> TrainingProcess:
    """Return this process's part of the run; `auto` is bf16 on a GPU, where that is several times faster."""
    device = choose_device(options.device)
    precision = options.precision
    if precision == "auto":
        precision = "fp32" if device == "cpu" else "bf16"
    return join_processes(device, precision)


def _open_source(options: TrainOptions, world: int) -> SampleSource:
    if options.source == "procedural":
        from picopose_cli.synthesis.procedural_source import ProceduralOptions, ProceduralSource

        ramp = ramp_samples(options, world)
        return ProceduralSource(ProceduralOptions(seed=options.seed, objects=options.objects, ramp_samples=ramp))
    from picopose_cli.training.megapose import ShardOptions, ShardSource

    if options.shards is None:
        raise PicoPoseError("--source megapose needs the shards", fix="pass --shards DIR")
    templates = options.templates or options.shards / "templates"
    return ShardSource(ShardOptions(options.shards, templates, seed=options.seed))


def _validator(options: TrainOptions, group: TrainingProcess) -> Validator | None:
    """Return what scores the network on held-out procedural objects, the same for every source and run."""
    if not options.validation_objects or not group.leads:
        return None
    from picopose_cli.training.validation_set import make_validation_set

    return Validator(make_validation_set(options.validation_objects), group.device, group.precision)


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or a request to end has come: a checkpoint is written first."""
    seen: list[int] = []

    def note(number: int, _: object) -> None:
        if seen:
            raise KeyboardInterrupt  # asked twice: at once
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_summary(options: TrainOptions, group: TrainingProcess, summary: TrainSummary, network: Path) -> None:
    """Write the run beside those before it: together they are the history of the network."""
    path = options.output / SUMMARY_NAME
    this = {
        "options": options_record(options),
        "recipe": asdict(choose_recipe(options)),
        "device": device_name(str(group.device)),
        "precision": group.precision,
        "processes": group.world,
        "machine": machine(),
        "versions": package_versions(),
        **asdict(summary),
    }
    content = {
        "network": {"file": network.name, "bytes": network.stat().st_size, "sha256": file_sha256(network)},
        "runs": [*_runs_before(path, summary.first_step), this],
    }
    atomic_write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def _runs_before(path: Path, first_step: int) -> list[dict[str, Any]]:
    """Return the earlier runs that this one continues."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return [run for run in runs if run["step"] <= first_step]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _print_summary(summary: TrainSummary, network: Path) -> None:
    console = Console(markup=False, highlight=False, soft_wrap=True)
    state = "done" if summary.finished else "not finished: the same command goes on"
    console.print(
        f"steps {summary.first_step} to {summary.step} in {summary.seconds / 60:.1f} min, "
        f"{summary.pairs_per_s:.1f} pairs/s, {summary.waiting_share:.0%} waiting for data; {state}"
    )
    console.print(f"network: {network}")
