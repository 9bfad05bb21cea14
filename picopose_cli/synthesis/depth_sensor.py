"""What a depth camera makes of exact depth: noise, holes, quantisation, shadows, and edges that bleed.

Two kinds of sensor, with the faults that each is known for. Structured light measures the shift of a pattern from a
projector beside the camera: it errs with the square of the distance in whole steps of the shift, sees nothing where the
projector does not shine, and takes depth at an edge from either side. Time of flight errs by about the same everywhere
and a little with the distance itself, and mixes both sides of an edge into points that fly between them.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.scenes import Scene

MeasureDepth = Callable[[np.random.Generator, Array, Array], Array]
"""Takes exact depth (H,W) in metres, 0 for nothing, and K (3,3) px; returns what is measured, 0 for nothing."""

BASELINE_M = 0.075
_SHIFT_PX_M = 43.0
"""Focal length times baseline of the sensor's own camera: shift in its pixels = this / depth."""
_SHIFT_NOISE_PX, _SHIFT_STEP_PX = 0.1, 1 / 8
_EDGE_JITTER_PX = 1.0
_FLIGHT_NOISE_M, _FLIGHT_NOISE_PER_M = 0.002, 0.001
_WIGGLE_M, _WIGGLE_PERIOD_M = 0.003, 1.5
"""Systematic error of time of flight: a sine of the distance."""
_FLIGHT_STEP_M = 0.001
_FLYING_SHARE = 0.5
"""Of points between two surfaces, those that the sensor does not filter out."""
_STEEPEST = np.tan(np.deg2rad(78))
_HOLE_SHARES = (0.0, 0.25)
"""Range over images of the share that is lost in patches: shiny, dark, or too bright."""
_SPECKLE_SHARE = 0.01
_WALL_RATIOS = (1.1, 1.6)
"""Distance of the wall behind objects without a table, in distances of the farthest object."""


def with_background(rng: np.random.Generator, depth_m: Array, scene: Scene) -> Array:
    """Return the exact depth (H,W) of a scene's objects, 0 outside of them, with its table, or with a wall behind."""
    height, width = depth_m.shape
    grid = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    rays = np.concatenate([grid, np.ones((height, width, 1))], axis=-1) @ np.linalg.inv(scene.K).T
    farthest_m = max(placed.T_cam_from_obj[2, 3] for placed in scene.placed)
    wall_m = farthest_m * rng.uniform(*_WALL_RATIOS)
    tilt = rng.normal(0, 0.2, 2)
    behind = _plane_depth(rays, np.array([*tilt, 1.0]), wall_m)
    T = scene.T_cam_from_table
    if T is not None:
        table = _plane_depth(rays, T[:3, 2], float(T[:3, 2] @ T[:3, 3]))
        behind = np.where((table > 0) & (table < 3 * wall_m), table, 3 * wall_m)
    return np.where(depth_m > 0, depth_m, behind.clip(0, 4 * farthest_m))


def _plane_depth(rays: Array, normal: Array, offset_m: float) -> Array:
    """Return the depth (H,W) of the plane normal . x = offset along rays (H,W,3) of z = 1, 0 behind the camera."""
    with np.errstate(divide="ignore"):
        depth_m = offset_m / (rays @ normal)
    return np.asarray(np.where(np.isfinite(depth_m) & (depth_m > 0), depth_m, 0.0))


def structured_light(rng: np.random.Generator, depth_m: Array, K: Array) -> Array:
    """Return what structured light measures of exact depth (H,W) metres; the projector is to the left."""
    lost = _in_shadow(depth_m, K) | _lost(rng, depth_m, K)
    height, width = depth_m.shape
    jitter = _EDGE_JITTER_PX * _smooth_noise(rng, (2, height, width), 1.0)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    seen = np.asarray(
        cv2.remap(
            depth_m.astype(np.float32),
            (x + jitter[0]).astype(np.float32),
            (y + jitter[1]).astype(np.float32),
            cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.float64,
    )
    shift = _SHIFT_PX_M / np.maximum(seen, 1e-3) + _SHIFT_NOISE_PX * _smooth_noise(rng, (1, height, width), 0.8)[0]
    shift = np.round(shift / _SHIFT_STEP_PX) * _SHIFT_STEP_PX
    return np.where(lost | (seen <= 0), 0.0, _SHIFT_PX_M / np.maximum(shift, _SHIFT_STEP_PX))


def time_of_flight(rng: np.random.Generator, depth_m: Array, K: Array) -> Array:
    """Return what time of flight measures of exact depth (H,W) metres."""
    lost = _lost(rng, depth_m, K)
    mixed = np.asarray(cv2.GaussianBlur(depth_m, (5, 5), 0.8))
    between = np.abs(mixed - depth_m) > 0.01
    lost |= between & (rng.random(depth_m.shape) > _FLYING_SHARE)
    phase = rng.uniform(0, 2 * np.pi)
    wiggle = _WIGGLE_M * np.sin(2 * np.pi * depth_m / _WIGGLE_PERIOD_M + phase)
    std_m = _FLIGHT_NOISE_M + _FLIGHT_NOISE_PER_M * mixed**2
    measured = mixed + wiggle + std_m * _smooth_noise(rng, (1, *depth_m.shape), 0.5)[0]
    return np.where(lost | (depth_m <= 0), 0.0, np.round(measured / _FLIGHT_STEP_M) * _FLIGHT_STEP_M)


DEPTH_SENSORS: dict[str, MeasureDepth] = {"structured-light": structured_light, "time-of-flight": time_of_flight}


def _in_shadow(depth_m: Array, K: Array) -> Array:
    """Return which pixels (H,W) bool the projector's light does not reach: what is to their left is in its way."""
    shift = K[0, 0] * BASELINE_M / np.where(depth_m > 0, depth_m, np.inf)
    column = np.arange(depth_m.shape[1]) + shift  # in the projector's image, up to a constant
    return np.asarray(column < np.maximum.accumulate(column, axis=1) - 1.0)


def _lost(rng: np.random.Generator, depth_m: Array, K: Array) -> Array:
    """Return the pixels (H,W) bool without a measurement: surfaces that are too steep, patches and speckles."""
    steep = np.zeros(depth_m.shape)
    for axis, focal_px in ((1, K[0, 0]), (0, K[1, 1])):
        step = np.abs(np.diff(depth_m, axis=axis, prepend=np.take(depth_m, [0], axis)))
        other = np.abs(np.diff(depth_m, axis=axis, append=np.take(depth_m, [-1], axis)))
        steep += (focal_px * np.minimum(step, other) / np.maximum(depth_m, 1e-3)) ** 2
    share = rng.uniform(*_HOLE_SHARES) ** 2 / _HOLE_SHARES[1]  # most images lose little
    patches = _smooth_noise(rng, (1, *depth_m.shape), 6.0)[0]
    in_patch = patches > np.quantile(patches, 1 - share)
    return np.asarray((steep > _STEEPEST**2) | in_patch | (rng.random(depth_m.shape) < _SPECKLE_SHARE))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_px: float) -> Array:
    """Return normal noise (C,H,W) of standard deviation 1 that is smooth over some pixels."""
    white = rng.normal(0, 1, shape)
    smooth = np.stack([cv2.GaussianBlur(one, (0, 0), sigma_px) for one in white])
    return np.asarray(smooth / smooth.std(axis=(1, 2), keepdims=True))
