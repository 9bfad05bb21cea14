"""Small scenes that every renderer must render alike."""

from __future__ import annotations

import numpy as np

from helpers.meshes import make_box, make_poster, make_sphere
from helpers.poses import random_T
from picopose_cli.base.geometry import make_T
from picopose_cli.rendering.renderers import open_renderer

K = np.array([[572.4114, 0, 320], [0, 573.57043, 240], [0, 0, 1]])
SIZE_HW = (480, 640)
TILTED = random_T(np.random.default_rng(11), (0.0, 0.0, 0.35))
SPHERE_CENTRE = np.array([0.02, -0.01, 0.35])
SCENES = {
    "sphere": (make_sphere(), make_T(np.eye(3), SPHERE_CENTRE)),
    "box": (make_box((0.1, 0.06, 0.03)), TILTED),
    "grey box": (make_box(coloured=False), TILTED),
    "seen from the right": (make_box(), make_T(np.eye(3), np.array([-0.15, 0.0, 0.35]))),
    "seen from below": (make_box(), make_T(np.eye(3), np.array([0.0, -0.15, 0.35]))),
    "poster": (make_poster(), make_T(np.eye(3), np.array([0.0, 0.0, 0.35]))),
}
"""What every renderer renders: the mesh and its pose by name."""


def draw_scenes(kind: str, _: int = 1) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return all scenes as (rgb, alpha, depth); to run in a child process for the GL renderers."""
    drawn = {}
    for name, (mesh, T) in SCENES.items():
        renderer = open_renderer(kind, mesh, K, SIZE_HW)
        view = renderer.render(T)
        drawn[name] = (view.rgb, view.alpha, view.depth_m)
        renderer.close()
    return drawn
