"""Objects and samples that no training run ever sees: what validation during training is made of."""

from __future__ import annotations

import numpy as np

from picopose_cli.base.types import Provenance, TemplateBank
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.objects import SyntheticObject, make_distinct_mesh
from picopose_cli.synthesis.observe import observe_scene
from picopose_cli.synthesis.samples import Sample
from picopose_cli.synthesis.scenes import Difficulty, random_scene
from picopose_cli.synthesis.textures import paint_background
from picopose_cli.templates.build import join_templates, make_template, versions_text
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, template_camera
from picopose_cli.training.validation import ValidationSet

SAMPLES_PER_OBJECT = 12
LEVEL = 0.7
"""Of difficulty: several objects, some occlusion, rough masks."""
_STREAM = 7_000_003
"""Begins the seeds of validation; training's begin with --seed."""
_SIZE_M = (0.06, 0.25)
_TEXTURE_PX = 384


def make_validation_set(objects: int, samples_per_object: int = SAMPLES_PER_OBJECT) -> ValidationSet:
    """Return the validation set of so many objects that look different from every side; always the same one."""
    pool = [
        SyntheticObject(f"held-out-{i}", make_distinct_mesh([_STREAM, i], _SIZE_M, _TEXTURE_PX)) for i in range(objects)
    ]
    samples: list[Sample] = []
    for number, item in enumerate(pool):
        others = [other for other in pool if other is not item]
        samples += _samples_of(item, others, np.random.default_rng([_STREAM, objects, number]), samples_per_object)
    return ValidationSet(tuple(samples), {item.key: _bank(item, i + 1) for i, item in enumerate(pool)})


def _samples_of(
    item: SyntheticObject, others: list[SyntheticObject], rng: np.random.Generator, count: int
) -> list[Sample]:
    difficulty = Difficulty.at(LEVEL)
    found: list[Sample] = []
    while len(found) < count:
        scene = random_scene(rng, [item, *others], difficulty, backgrounds=1)
        cut = observe_scene(rng, scene, paint_background(rng), difficulty)
        found += [sample for sample in cut if sample.object_key == item.key][:1]
    return found


def _bank(item: SyntheticObject, obj_id: int) -> TemplateBank:
    """Render an object's bank by the functions of `render-templates`."""
    K = template_camera()
    renderer = SoftwareRenderer(item.mesh, K, TEMPLATE_SIZE_HW)
    templates = [make_template(renderer.render(T)) for T in item.poses]
    made_by = Provenance(item.key, "", "m", renderer.name, renderer.detail, versions_text())
    return join_templates(obj_id, templates, K, item.poses, item.diameter_m, made_by)
