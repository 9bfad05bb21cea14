"""The fixed validation set: objects and samples that no training run contains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.types import Provenance, TemplateBank
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.objects import SyntheticObject, make_distinct_mesh
from picopose_cli.synthesis.observe import observe_scene
from picopose_cli.synthesis.samples import Sample
from picopose_cli.synthesis.scenes import Difficulty, random_scene
from picopose_cli.synthesis.seeds import HELD_OUT_STREAM
from picopose_cli.synthesis.textures import paint_background
from picopose_cli.templates.build import join_templates, make_template, versions_text
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, template_camera

SAMPLES_PER_OBJECT = 12
LEVEL = 0.7
"""Difficulty: several objects, some occlusion, rough masks."""
_SIZE_M = (0.06, 0.25)
_TEXTURE_PX = 384


@dataclass(frozen=True)
class ValidationSet:
    """A fixed set of samples, and the template banks of their objects by `object_key`."""

    samples: tuple[Sample, ...]
    banks: Mapping[str, TemplateBank]


def make_validation_set(objects: int, samples_per_object: int = SAMPLES_PER_OBJECT) -> ValidationSet:
    """Return the validation set of a number of objects without symmetries; the same on every call."""
    pool = [
        SyntheticObject(f"held-out-{i}", make_distinct_mesh([HELD_OUT_STREAM, i], _SIZE_M, _TEXTURE_PX))
        for i in range(objects)
    ]
    samples: list[Sample] = []
    for number, item in enumerate(pool):
        others = [other for other in pool if other is not item]
        rng = np.random.default_rng([HELD_OUT_STREAM, objects, number])
        samples += _samples_of(rng, item, others, samples_per_object)
    return ValidationSet(tuple(samples), {item.key: _render_bank(item, i + 1) for i, item in enumerate(pool)})


def _samples_of(
    rng: np.random.Generator, item: SyntheticObject, others: list[SyntheticObject], count: int
) -> list[Sample]:
    difficulty = Difficulty.at(LEVEL)
    found: list[Sample] = []
    while len(found) < count:
        scene = random_scene(rng, [item, *others], difficulty, backgrounds=1)
        observed = observe_scene(rng, scene, paint_background(rng), difficulty)
        found += [sample for sample in observed if sample.object_key == item.key][:1]
    return found


def _render_bank(item: SyntheticObject, obj_id: int) -> TemplateBank:
    """Return an object's bank, rendered as by `render-templates`."""
    K = template_camera()
    renderer = SoftwareRenderer(item.mesh, K, TEMPLATE_SIZE_HW)
    templates = [make_template(renderer.render(T)) for T in item.poses]
    provenance = Provenance(item.key, "", "m", renderer.name, renderer.detail, versions_text())
    return join_templates(obj_id, templates, K, item.poses, item.diameter_m, provenance)
