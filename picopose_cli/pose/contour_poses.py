"""The pose of a detection by silhouette and contours alone, for objects without texture.

The templates' silhouettes that overlap most with the mask give many starts. Small renders of all of them are judged by
how well their contours agree with the photograph, the best are moved to it and judged again, and the best of these are
refined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.pose.close_ups import MAX_SIDE_PX, CloseUp, shrink
from picopose_cli.pose.confidence import contour_confidence
from picopose_cli.pose.contour_refinement import ROUNDS, DrawDepth, agreements, refine_by_contours
from picopose_cli.pose.contour_search import Photograph, prepare_photograph
from picopose_cli.pose.silhouette_starts import Silhouettes, silhouette_starts

STARTS = 40
"""Poses that are judged."""
MOVED_STARTS = 12
"""Of those, the ones of the best agreement, which are moved by one round of refinement and judged again."""
REFINED_STARTS = 3
"""Of those, again the best, which are refined."""
JUDGED_SIDE_PX, REFINED_SIDE_PX = 128, 224
"""Largest sides of the renders to judge and move, and to refine."""

DrawIn = Callable[[CloseUp], DrawDepth]
"""Takes a close-up and returns what renders the depth of the object in its camera."""


@dataclass(frozen=True)
class ContourPose:
    """A pose `T_cam_from_obj` (4,4) metres, its `agreement` (see `contour_agreement`) and `mask_iou`, in [0, 1].

    `side_px` of the close-up that it was found in.
    """

    T_cam_from_obj: Array
    agreement: float
    mask_iou: float
    side_px: int

    @property
    def quantities(self) -> tuple[float, float, float]:
        """What the confidence is made of: agreement, mask IoU, and the close-up's share of the largest side."""
        return self.agreement, self.mask_iou, self.side_px / MAX_SIDE_PX

    @property
    def confidence(self) -> float:
        """Probability that the pose is right."""
        return contour_confidence(*self.quantities)


def contour_pose(
    close_up: CloseUp, silhouettes: Silhouettes, more_starts: Array, draw_in: DrawIn
) -> ContourPose | None:
    """Return the pose whose contours agree best with a photograph, None if there is nothing to start from.

    `more_starts` (N,4,4) are judged beside those by silhouettes.
    """
    small, large = shrink(close_up, JUDGED_SIDE_PX), shrink(close_up, REFINED_SIDE_PX)
    T = np.concatenate([silhouette_starts(silhouettes, small.mask, small.shown, small.K, STARTS), more_starts])
    if not len(T):
        return None
    photo, draw = prepare_photograph(small), draw_in(small)
    T = _best(photo, draw, T, MOVED_STARTS)
    T = _best(photo, draw, refine_by_contours(photo, draw, T, ROUNDS[:1]), REFINED_STARTS)
    photo, draw = prepare_photograph(large), draw_in(large)
    T = refine_by_contours(photo, draw, T)
    found = agreements(photo, draw, T)
    best = int(found.argmax())
    return ContourPose(T[best], float(found[best]), large.mask_iou(draw(T[best]) > 0), close_up.side_px)


def _best(photo: Photograph, draw: DrawDepth, T: Array, count: int) -> Array:
    """Return the `count` poses of (H,4,4) whose contours agree best with a photograph, best first."""
    return T[np.argsort(-agreements(photo, draw, T), kind="stable")[:count]]
