"""Template banks of random pictures."""

from __future__ import annotations

import numpy as np

from helpers.poses import random_rotation
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Provenance, TemplateBank

PROVENANCE = Provenance("obj.ply", "0" * 64, "mm", "software", "test", "")


def noise_bank(obj_id: int = 1, views: int = 12, seed: int = 0) -> TemplateBank:
    """Return a bank of random pictures with consistent geometry: a wavy sheet half a metre before the camera."""
    rng = np.random.default_rng([seed, obj_id])
    K = np.array([[572.4114, 0, 320], [0, 573.57043, 240], [0, 0, 1]])
    T = np.stack([make_T(random_rotation(rng), np.array([0.0, 0, 0.5])) for _ in range(views)])
    masks = np.zeros((views, 224, 224), bool)
    masks[:, 28:196, 42:182] = True
    depth = (0.5 + 0.02 * rng.random((views, 64, 64))) * masks[:, 2::7, 2::7].repeat(2, 1).repeat(2, 2)[:, :64, :64]
    return TemplateBank(
        obj_id=obj_id,
        crops_rgb=rng.integers(0, 255, (views, 224, 224, 3), np.uint8),
        masks=masks,
        depth_corner_m=depth.astype(np.float32),
        depth_centre_m=depth.astype(np.float32),
        K=K,
        A_crop_from_image=np.tile(np.array([[1.4, 0, -336], [0, 1.4, -224], [0, 0, 1]]), (views, 1, 1)),
        T_tmpl_from_obj=T,
        diameter_m=0.1,
        provenance=PROVENANCE,
    )
