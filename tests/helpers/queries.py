"""Batches of detections with random crops."""

from __future__ import annotations

import numpy as np

from helpers.poses import K
from picopose_cli.base.types import QueryBatch


def random_batch(obj_ids: list[int], seed: int = 0) -> QueryBatch:
    """Return a batch with one random crop (224 px) for each object id."""
    rng = np.random.default_rng(seed)
    count = len(obj_ids)
    masks = np.zeros((count, 224, 224), bool)
    masks[:, 30:200, 20:190] = True
    return QueryBatch(
        inputs=rng.standard_normal((count, 3, 224, 224)).astype(np.float32),
        masks=masks,
        A_crop_from_image=np.tile(np.array([[1.2, 0, -200], [0, 1.2, -150], [0, 0, 1]]), (count, 1, 1)),
        K=np.tile(K, (count, 1, 1)),
        obj_ids=np.array(obj_ids),
    )
