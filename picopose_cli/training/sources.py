"""The sources of training samples, opened from the options of `picopose train`."""

from __future__ import annotations

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.train_options import TrainOptions
from picopose_cli.synthesis.procedural_source import ProceduralOptions, ProceduralSource
from picopose_cli.synthesis.samples import SampleSource
from picopose_cli.training.megapose import ShardOptions, ShardSource


def open_source(options: TrainOptions, world: int) -> SampleSource:
    """Return the source of the options for a run of `world` processes.

    Raises PicoPoseError when the folder of meshes, shards or templates cannot be used.
    """
    if options.source == "procedural":
        ramp = ramp_samples(options, world)
        return ProceduralSource(ProceduralOptions(seed=options.seed, objects=options.objects, ramp_samples=ramp))
    if options.shards is None:
        raise PicoPoseError("--source megapose needs the shards", fix="pass --shards DIR")
    templates = options.templates or options.shards / "templates"
    return ShardSource(ShardOptions(options.shards, templates, seed=options.seed))


def ramp_samples(options: TrainOptions, world: int) -> int:
    """Return the number of samples, of all processes together, over which their difficulty rises.

    A source knows the number of a sample but not the step, so the difficulty is the same in a resumed run.
    """
    return max(1, options.curriculum_steps * options.batch_size * options.accumulate * world // options.reuse)
