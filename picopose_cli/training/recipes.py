"""Training recipes: the optimiser's settings and the weights of the losses, one recipe a preset."""

from __future__ import annotations

from dataclasses import dataclass, replace

from picopose_cli.base.train_options import TrainOptions


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss in the total, by default that of the released training: 1, but 0.1 for the flow."""

    matching: float = 1.0
    translation: float = 1.0
    scale: float = 1.0
    inplane: float = 1.0
    certainty: float = 1.0
    flow: float = 0.1


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimiser: AdamW, or Muon for matrices; a linear warm-up, then half a cosine down to 0."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    clip_norm: float
    """Largest norm of the gradient; a longer one is scaled down to it."""
    losses: LossWeights = LossWeights()
    muon_gain: float = 0.0
    """Rate of the matrices and convolutions of stages 1 and 3 as a multiple of `lr`, under Muon; 0: AdamW for all."""
    offset_share: float = 1.0
    """Share of a batch's pairs on which stage 3 trains: in a small network it costs more per pair than the backbone."""
    coarse_share: float = 0.0
    """Share of the steps in which stage 3 omits its finest grid, which takes four fifths of its time."""


RELEASED_RECIPE = Recipe(lr=1e-5, betas=(0.5, 0.999), eps=1e-6, weight_decay=5e-4, warmup_steps=1000, clip_norm=10.0)
"""The published recipe, for a network that starts from trained weights; the gradient clipping is an addition."""
MINI_RECIPE = Recipe(
    lr=1e-3,
    betas=(0.9, 0.99),
    eps=1e-6,
    weight_decay=0.02,
    warmup_steps=100,
    clip_norm=5.0,
    muon_gain=5.0,
    offset_share=0.5,
    coarse_share=0.6,
)
"""Recipe for a small network that starts from random weights; benchmarks/training.md lists the runs behind it."""


def choose_recipe(options: TrainOptions) -> Recipe:
    """Return the preset's recipe, with the learning rate of the options where they give one."""
    recipe = RELEASED_RECIPE if options.preset == "vit-l" else MINI_RECIPE
    return recipe if options.lr is None else replace(recipe, lr=options.lr)
