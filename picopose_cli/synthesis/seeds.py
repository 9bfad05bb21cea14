"""Prefixes of the seeds that keep generated things independent of each other.

Every random generator is seeded by a list: a stream or the user's seed, the kind of thing, then running numbers.
"""

from __future__ import annotations

DATASET_STREAM = 0x50B0
"""First number of all seeds of a written data set."""
HELD_OUT_STREAM = 7_000_003
"""First number of all seeds of a held-out set; the endless source begins its seeds with the user's seed instead."""

OBJECTS, SCENES, BACKGROUNDS = 0, 1, 2
"""Kinds of things that the endless source makes."""
DATASET_MODELS, DATASET_IMAGES, DATASET_DETECTIONS, DATASET_DAMAGE, DATASET_DEPTH = 0, 1, 2, 3, 4
"""Kinds of things that a written data set consists of."""
