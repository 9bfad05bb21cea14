"""A small training source: coloured boxes and ellipsoids before blurred noise, with exact geometry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np

from helpers.banks import PROVENANCE
from helpers.meshes import make_ball, make_box
from helpers.poses import random_rotation
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh, RenderedView, TemplateBank
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.samples import CropView, Sample
from picopose_cli.templates.build import join_templates, make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

K_OBS = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
MESHES = {
    "box": make_box((0.08, 0.1, 0.06)),
    "ball": make_ball((0.05, 0.035, 0.06)),
    "bar": make_box((0.03, 0.04, 0.12)),
    "egg": make_ball((0.03, 0.05, 0.03)),
}


def render_view(
    mesh: Mesh, K: np.ndarray, T: np.ndarray, rng: np.random.Generator | None = None, loose: float = 0.0
) -> CropView:
    """One crop of a mesh: on black, or on a random background when `rng` is given.

    A `loose` crop reaches out to the lower right by up to this share of the object's size, as a rough mask makes it.
    """
    drawn = SoftwareRenderer(mesh, K, TEMPLATE_SIZE_HW).render(T)
    rgb = drawn.rgb
    if rng is not None:
        noise = rng.integers(0, 255, (6, 8, 3), np.uint8)
        background = cv2.resize(noise, TEMPLATE_SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC)
        rgb = np.where(drawn.alpha[..., None] > 0, rgb, background)
    alpha = drawn.alpha.copy()
    if rng is not None and loose:
        rows, cols = np.nonzero(alpha)
        size = max(np.ptp(rows), np.ptp(cols))
        reach = rng.uniform(0, loose) * size * np.array([np.cos(a := rng.uniform(0, np.pi / 2)), np.sin(a)])
        row, col = np.rint([rows.mean(), cols.mean()] + reach + np.sign(reach) * size / 2).astype(int)
        alpha[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3] = 255  # a speck that is no part of the object
    crop = make_template(RenderedView(rgb, alpha, drawn.depth_m))
    return CropView(crop.crop_rgb, crop.mask, crop.depth_centre_m, K, crop.A_crop_from_image.astype(np.float64), T)


def nearest_view(T_cam_from_obj: np.ndarray, T_views: np.ndarray) -> int:
    """The view with the viewing direction nearest to that of another camera."""
    towards = -T_views[:, 2, :3]
    camera = -T_cam_from_obj[:3, :3].T @ T_cam_from_obj[:3, 3]
    return int(np.argmax(towards @ camera))


def make_sample(key: str, rng: np.random.Generator, tilt: float = 1.0, loose: float = 0.0) -> Sample:
    """A random view of a toy object; `tilt` below 1 draws the rotation near the template's own."""
    mesh = MESHES[key]
    diameter_m = mesh_diameter_m(mesh)
    T_views = place_views(diameter_m)
    R = random_rotation(rng)
    if tilt < 1:
        rotation, _ = cv2.Rodrigues(rng.normal(0, 0.3 * tilt, 3))
        R = rotation @ T_views[rng.integers(len(T_views)), :3, :3]
    T = make_T(R, np.array([*rng.uniform(-0.05, 0.05, 2), rng.uniform(0.35, 0.6)]))
    T_tmpl = T_views[nearest_view(T, T_views)]
    observation = render_view(mesh, K_OBS, T, rng, loose)
    return Sample(key, diameter_m, observation, render_view(mesh, template_camera(), T_tmpl))


def toy_bank(key: str, obj_id: int = 1, every: int = 1) -> TemplateBank:
    """The bank of a toy object with every n-th of its views."""
    mesh = MESHES[key]
    poses = place_views(mesh_diameter_m(mesh))[::every]
    renderer, K = SoftwareRenderer(mesh, template_camera(), TEMPLATE_SIZE_HW), template_camera()
    crops = [make_template(renderer.render(T)) for T in poses]
    return replace(join_templates(obj_id, crops, K, poses, mesh_diameter_m(mesh), PROVENANCE))


class ToySource:
    """Endless samples of the toy objects; `kept` samples are drawn again and again."""

    def __init__(
        self,
        seed: int = 0,
        kept: int = 10_000,
        tilt: float = 1.0,
        keys: tuple[str, ...] = tuple(MESHES),
        loose: float = 0,
    ) -> None:
        self.seed, self.kept, self.tilt, self.keys, self.loose = seed, kept, tilt, keys, loose
        self.skipped: Counter[str] = Counter()
        self._made: dict[int, Sample] = {}

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        index = start * workers + worker
        while True:
            number = index % self.kept
            if number not in self._made:
                rng = np.random.default_rng([self.seed, number])
                self._made[number] = make_sample(self.keys[number % len(self.keys)], rng, self.tilt, self.loose)
            yield self._made[number]
            index += workers
