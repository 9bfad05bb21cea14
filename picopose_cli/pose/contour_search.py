"""Where a photograph shows the contours of a render: the search along their normals, and how well both agree.

Two things tell where an object ends. Its colours differ from those around it: along a line across the outline, every
pixel before the outline should have a colour of the object and every pixel after it one of the background, which is a
sum of logarithms for each place where the outline may be. And there is an edge, as at folds of the surface. The first
is seen from afar but is blurred by everything that has both colours; the second is accurate but ambiguous. The search
therefore begins with more weight on colours and a wide range, and ends with edges close by.

Sources: PWP3D (Prisacariu and Reid, IJCV 2012) and SRT3D (Stoiber et al., IJCV 2022) for regions and lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.pose.close_ups import CloseUp
from picopose_cli.pose.contours import Contour

COLOUR_BINS = 16
"""Of each channel in histograms of colours."""
MAX_COLOUR_LOGIT, MAX_MASK_LOGIT = 2.5, 2.0
MASK_STD = 0.04
"""How far a detector's mask may be off, in square roots of its area."""
MIN_STD_PX = 0.7
"""Standard deviation of a place that the search found with certainty."""
AGREEING_PX = 1.5
"""An edge as far from a contour as this still agrees with it."""
EXPLAINED_PX = 2.0
"""Standard deviation of the distance from an edge of the photograph to the contour that explains it."""
_RARE = 2e-4
"""Share of pixels that is added to each colour's: colours that were not seen are possible."""
_SMOOTHING_PX = 0.8
_NEAR_PX = 9
_LEAST_EDGE = 0.5
"""Gradient, grey values per px, that is added to a photograph's own: smooth surfaces have none."""
_CLEAR_EDGE = 4.0
"""Gradient, in those of the photograph, at which an edge counts by half."""


@dataclass(frozen=True)
class Photograph:
    """A close-up as the search for contours needs it.

    `smooth_rgb` (S,S,3) f32; `object_logit` (S,S) f32: logarithm of the odds that a pixel shows the object, by its
    colour and the detection's mask; `probability` (S,S) f32 of the same, 0 where nothing is shown; `edge_scale`: the
    median gradient, grey values per px; `edges` (S,S,2) f32: vectors at twice the angle of an edge's normal, of its
    strength in [0, 1); `near_mask` (S,S) bool: the mask and its rim; `near_strength` (N,) f32 of the edges there;
    `shown` (S,S) bool: where the object may be visible; `K` (3,3) px.
    """

    smooth_rgb: Array
    object_logit: Array
    probability: Array
    edge_scale: float
    edges: Array
    near_mask: Array
    near_strength: Array
    shown: Array
    K: Array

    @property
    def side_px(self) -> int:
        """Number of rows and of columns."""
        return len(self.smooth_rgb)


@dataclass(frozen=True)
class SearchRound:
    """How contours are searched for: `range_sides` in sides of the close-up, and the weights of colours and edges."""

    range_sides: float
    colour_weight: float
    edge_weight: float


def prepare_photograph(close_up: CloseUp) -> Photograph:
    """Return what the search needs of a close-up."""
    smooth = cv2.GaussianBlur(close_up.rgb.astype(np.float32), (0, 0), _SMOOTHING_PX)
    logit = _colour_logit(close_up) + _mask_logit(close_up.mask)
    logit[~close_up.shown] = 0
    edge_scale, edges = _edges(smooth)
    shown, dilated = close_up.shown, cv2.dilate(close_up.mask.astype(np.uint8), np.ones((_NEAR_PX, _NEAR_PX), np.uint8))
    near = (dilated > 0) & shown
    strength = np.linalg.norm(edges[near], axis=1)
    return Photograph(smooth, logit, shown / (1 + np.exp(-logit)), edge_scale, edges, near, strength, shown, close_up.K)


def _edges(smooth_rgb: Array) -> tuple[float, Array]:
    """Return `edge_scale` and `edges` of a `Photograph`, by the structure tensor of its colours."""
    d_x, d_y = (cv2.Sobel(smooth_rgb, cv2.CV_32F, *order, scale=1 / 8) for order in ((1, 0), (0, 1)))
    xx, xy, yy = ((a * b).sum(axis=2) for a, b in ((d_x, d_x), (d_x, d_y), (d_y, d_y)))
    length = np.hypot(xx - yy, 2 * xy)
    gradient = np.sqrt((xx + yy + length) / 2)
    scale = float(np.median(gradient)) + _LEAST_EDGE
    strength = gradient / (gradient + _CLEAR_EDGE * scale) / np.maximum(length, 1e-9)
    return scale, np.stack([(xx - yy) * strength, 2 * xy * strength], axis=2)


def _colour_logit(close_up: CloseUp) -> Array:
    """Return the logarithm (S,S) f32 of how much more often a pixel's colour is inside of the mask than outside."""
    mask = close_up.mask
    bins = (cv2.GaussianBlur(close_up.rgb, (3, 3), 0) // (256 // COLOUR_BINS)).astype(np.int32)
    index = (bins[..., 0] * COLOUR_BINS + bins[..., 1]) * COLOUR_BINS + bins[..., 2]
    outside = (cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0) & close_up.shown
    if not (mask.any() and outside.any()):
        return np.zeros(mask.shape, np.float32)
    odds = (_colour_shares(index[mask]) + _RARE) / (_colour_shares(index[outside]) + _RARE)
    logit = np.log(odds).clip(-MAX_COLOUR_LOGIT, MAX_COLOUR_LOGIT).astype(np.float32)
    return np.asarray(logit[index])


def _colour_shares(index: Array) -> Array:
    """Return the shares (bins^3,) of the colours of pixels, smoothed over neighbouring colours."""
    counts = np.bincount(index, minlength=COLOUR_BINS**3).reshape((COLOUR_BINS,) * 3).astype(np.float64)
    for axis in range(3):
        padded = np.moveaxis(np.pad(counts, [(int(a == axis),) * 2 for a in range(3)], mode="edge"), axis, 0)
        counts = np.moveaxis(0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:], 0, axis)
    return counts.ravel() / len(index)


def _mask_logit(mask: Array) -> Array:
    """Return by how much (S,S) f32 a detector's mask says that a pixel shows the object."""
    inside = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 3)
    area = max(int(mask.sum()), 1)
    off = distance[1:-1, 1:-1] / (MASK_STD * np.sqrt(area))
    return np.asarray(off.clip(-MAX_MASK_LOGIT, MAX_MASK_LOGIT).astype(np.float32))


def search_contour(photo: Photograph, contour: Contour, how: SearchRound) -> tuple[Array, Array]:
    """Return how far (N,) px along their normals the photograph shows a contour's points, and standard deviations."""
    offsets = np.arange(-np.ceil(how.range_sides * photo.side_px), np.ceil(how.range_sides * photo.side_px) + 1)
    score = how.edge_weight * np.log1p(_gradients(photo, contour, offsets) / photo.edge_scale)
    outline = contour.is_outline
    score[outline] += how.colour_weight * _colours(photo, contour.uv[outline], contour.normal[outline], offsets)
    score -= score.max(axis=1, keepdims=True)
    probability = np.exp(score)
    probability /= probability.sum(axis=1, keepdims=True)
    # the mean near the most probable place: there may be several
    from_best = offsets - offsets[score.argmax(axis=1), None]
    near = probability * np.exp(-0.5 * np.square(from_best / (len(offsets) / 4 + 1)))
    mean = (near @ offsets) / near.sum(axis=1)
    variance = (probability * np.square(offsets - mean[:, None])).sum(axis=1)
    return mean, np.sqrt(variance + MIN_STD_PX**2)


def _gradients(photo: Photograph, contour: Contour, offsets: Array) -> Array:
    """Return the photograph's gradient (N,K) f32 along the normals of N points, K offsets from them in px."""
    step = offsets[1] - offsets[0]
    beyond = np.concatenate([[offsets[0] - step], offsets, [offsets[-1] + step]])
    colours = _along_normals(photo.smooth_rgb, contour.uv, contour.normal, beyond)
    change = (colours[:, 2:] - colours[:, :-2]) / np.float32(2 * step)
    return np.asarray(np.sqrt(np.square(change).sum(axis=2)))


def _colours(photo: Photograph, uv: Array, normal: Array, offsets: Array) -> Array:
    """Return the log likelihood (N,K) of the colours along N normals with the outline at each of K offsets."""
    logit = _along_normals(photo.object_logit, uv, normal, offsets)
    before = np.cumsum(logit, axis=1) - logit / 2
    return np.asarray(2 * before - logit.sum(axis=1, keepdims=True))


def _along_normals(image: Array, uv: Array, normal: Array, offsets: Array) -> Array:
    """Return the values (N,K,...) of an image (S,S,...) at K offsets from N points along their normals."""
    if not len(uv):
        return np.zeros((0, len(offsets), *image.shape[2:]), np.float32)
    at = (uv[:, None] + offsets[:, None] * normal[:, None] - 0.5).astype(np.float32)
    return np.asarray(cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def is_shown(photo: Photograph, contour: Contour) -> Array:
    """Return which points (N,) of a contour are inside of the image."""
    cols, rows = np.clip(np.floor(contour.uv).astype(int), 0, photo.side_px - 1).T
    return np.asarray(photo.shown[rows, cols])


def contour_agreement(photo: Photograph, depth_m: Array, contour: Contour) -> float:
    """Return in [0, 1] how well a render with `depth_m` (S,S) and its contour agree with the photograph.

    The geometric mean of three shares: of the contour, where the photograph has an edge of the same direction; of the
    photograph's edges in the mask, near which there is a contour; of the silhouette and the region of the object's
    colours, their overlap.
    """
    points = is_shown(photo, contour)
    if not points.any():
        return 0.0
    uv, normal = contour.uv[points], contour.normal[points]
    offsets = np.arange(-AGREEING_PX, AGREEING_PX + 0.5, 0.5)
    edges = _along_normals(photo.edges, uv, normal, offsets)
    x, y = normal.T
    same_direction = edges[..., 0] * (x * x - y * y)[:, None] + edges[..., 1] * (2 * x * y)[:, None]
    found = float(same_direction.max(axis=1).clip(0).mean())
    return float(np.cbrt(found * _explained(photo, contour) * _overlap(photo, depth_m > 0)))


def _explained(photo: Photograph, contour: Contour) -> float:
    """Return the share of the photograph's edges in the mask and close to it that are near the contour."""
    elsewhere = np.ones(photo.shown.shape, np.uint8)
    cols, rows = np.clip(np.floor(contour.uv).astype(int), 0, photo.side_px - 1).T
    elsewhere[rows, cols] = 0
    distance = cv2.distanceTransform(elsewhere, cv2.DIST_L2, 3)[photo.near_mask]
    near = np.exp(-0.5 * np.square(distance / EXPLAINED_PX))
    return float((photo.near_strength * near).sum() / max(photo.near_strength.sum(), 1e-9))


def _overlap(photo: Photograph, inside: Array) -> float:
    """Return the intersection over union of a silhouette (S,S) with the probability that a pixel shows the object."""
    silhouette = inside & photo.shown
    common = photo.probability[silhouette].sum()  # of minima of both; the sum of maxima has the rest
    return float(common / max(np.count_nonzero(silhouette) + photo.probability.sum() - common, 1e-9))
