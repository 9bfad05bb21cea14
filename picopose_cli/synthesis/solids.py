"""Simple closed solids that machine parts are made of: bars, tubes, turned bodies, bent rods, ribs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.holed import plate
from picopose_cli.synthesis.shapes import Shape, join, surface_grid

CIRCLE_STEPS = 32
_AXES = {"x": np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]), "y": np.array([[0, 1.0, 0], [0, 0, 1], [1, 0, 0]])}
"""Rotations that take the z axis to another one."""


def circle(radius: float, centre: Sequence[float] = (0, 0), steps: int = CIRCLE_STEPS, phase_rad: float = 0) -> Array:
    """Return a circle or, with few steps, a regular polygon (steps,2)."""
    angle = np.linspace(0, 2 * np.pi, steps, endpoint=False) + phase_rad
    return np.asarray(centre + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1))


def rectangle(width: float, height: float, radius: float = 0.0, centre: Sequence[float] = (0, 0)) -> Array:
    """Return a rectangle (N,2), its corners rounded by a `radius` of at most half of its shorter side: a slot."""
    corners = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]])
    if radius <= 0:
        return np.asarray(centre + corners * (width / 2, height / 2))
    radius = min(radius, width / 2, height / 2)
    arc = np.linspace(0, np.pi / 2, 7)
    middles = corners * (width / 2 - radius, height / 2 - radius)
    angles = np.array([-np.pi / 2, 0, np.pi / 2, np.pi])[:, None] + arc
    ring = middles[:, None] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ring = ring.reshape(-1, 2)
    apart = np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1) > 1e-9
    return np.asarray(centre + ring[apart])


def bar(size: Sequence[float], base: Sequence[float], radius: float = 0.0) -> Shape:
    """Return a box of a size (3,) that stands on the middle `base` (3,) of its lower side, upright edges rounded."""
    return moved(plate(rectangle(size[0], size[1], radius), [], size[2]), base)


def rod(radius: float, height: float, base: Sequence[float], *, bore: float = 0.0, steps: int = CIRCLE_STEPS) -> Shape:
    """Return a cylinder or prism along z from `base` (3,), with a bore of a radius, 0 for none."""
    return moved(plate(circle(radius, steps=steps), [circle(bore)] if bore else [], height), base)


def turned(profile: Array) -> Shape:
    """Return the body of a closed profile (N,2) of radius and height, counter-clockwise, turned about z."""
    angle = np.linspace(0, 2 * np.pi, CIRCLE_STEPS * 3 // 2 + 1)
    angle[-1] = 0  # the same point to the last bit, so that the surface is closed
    closed = np.concatenate([profile, profile[:1]])
    xyz = np.stack([closed[:, :1] * np.cos(angle), closed[:, :1] * np.sin(angle), closed[:, 1:] + 0 * angle], axis=-1)
    return surface_grid(xyz)


def bent_rod(path: Array, radius: float) -> Shape:
    """Return a round rod along a path (N,3) in the plane y = 0, with flat ends."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    across = np.cross((0.0, 1.0, 0.0), tangent)
    angle = np.linspace(0, 2 * np.pi, CIRCLE_STEPS // 2 + 1)
    angle[-1] = 0
    around = np.cos(angle)[:, None] * across[:, None] + np.sin(angle)[:, None] * np.array([0.0, 1.0, 0.0])
    rings = path[:, None] + radius * around
    ends = [np.repeat(path[at][None, None], len(angle), axis=1) for at in (0, -1)]
    return surface_grid(np.concatenate([ends[0], rings, ends[1]]))


def moved(shape: Shape, offset: Sequence[float], axis: str = "z", turn_rad: float = 0.0) -> Shape:
    """Return a shape turned about z, then with z along another axis, then moved by an offset (3,)."""
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    R = _AXES.get(axis, np.eye(3)) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    return Shape(shape.vertices @ R.T + np.asarray(offset), shape.faces, shape.uv, shape.tiles)


def mirrored(shape: Shape, axis: int) -> Shape:
    """Return a shape mirrored at the plane through the origin that is normal to an axis."""
    signs = np.ones(3)
    signs[axis] = -1
    return Shape(shape.vertices * signs, np.ascontiguousarray(shape.faces[:, ::-1]), shape.uv, shape.tiles)


def joined(shapes: Sequence[Shape]) -> Shape:
    """Return shapes as one."""
    return join(shapes, columns=3)
