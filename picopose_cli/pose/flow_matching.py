"""Correspondences of a render and a photograph by optical flow: the most accurate ones near the right pose.

The render is put into the photograph at the place of the object, so that the flow is small everywhere except where the
pose is wrong. Source: dense inverse search (Kroeger et al., ECCV 2016), as OpenCV has it.
"""

from __future__ import annotations

import cv2
import numpy as np

from picopose_cli.base.types import Array

STEP_PX = 4
"""Distance of the pixels that give correspondences."""
CONSISTENCY_PX = 1.0
"""Standard deviation by which the way there and back may miss its start."""
MIN_CERTAINTY = 0.05
_TEXTURE_WINDOW_PX = 9
_TEXTURE_GREY = 4.0
"""Smallest squared grey value gradient, in any direction, at which a flow counts by half."""


def flow_pairs(render_rgb: Array, inside: Array, photo_rgb: Array) -> tuple[Array, Array, Array]:
    """Return positions in a render (N,2) and in a photograph (N,2), px from the outer corner, and certainties (N,).

    `render_rgb` and `photo_rgb` (S,S,3) u8; `inside` (S,S) bool: where the render shows the object.
    """
    render = cv2.cvtColor(np.where(inside[..., None], render_rgb, photo_rgb), cv2.COLOR_RGB2GRAY)
    photo = cv2.cvtColor(photo_rgb, cv2.COLOR_RGB2GRAY)
    first = STEP_PX // 2
    rows, cols = (index * STEP_PX + first for index in np.nonzero(inside[first::STEP_PX, first::STEP_PX]))
    if not len(rows):  # a thin object may be between all of these pixels
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)
    there, back = _flow(render, photo), _flow(photo, render)
    step = there[rows, cols]
    target = np.stack([cols, rows], axis=1).astype(np.float32) + step
    returned = cv2.remap(back, target[:, None, 0], target[:, None, 1], cv2.INTER_LINEAR)[:, 0]
    missed = np.square(step + returned).sum(axis=1) / CONSISTENCY_PX**2
    certainty = np.exp(-0.5 * missed) * _texture(render)[rows, cols]
    kept = certainty > MIN_CERTAINTY
    start = np.stack([cols, rows], axis=1)[kept] + 0.5
    return start, target[kept].astype(np.float64) + 0.5, certainty[kept].astype(np.float64)


def _flow(source: Array, target: Array) -> Array:
    """Return the flow (S,S,2) f32 px."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # not thread-safe: one a call
    search.setUseMeanNormalization(True)
    return np.asarray(search.calc(source, target, np.zeros((*source.shape, 2), np.float32)))


def _texture(grey: Array) -> Array:
    """Return in [0, 1] how well the flow (S,S) is determined: by the smaller eigenvalue of the structure tensor."""
    window = (_TEXTURE_WINDOW_PX, _TEXTURE_WINDOW_PX)
    d_x, d_y = (cv2.Sobel(grey, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    xx, xy, yy = (cv2.boxFilter(product, -1, window) for product in (d_x * d_x, d_x * d_y, d_y * d_y))
    smaller = (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy**2)) / 2
    return np.asarray(smaller / (smaller + _TEXTURE_GREY))
