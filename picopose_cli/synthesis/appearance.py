"""Looks of objects without texture, and CAD models that look different from the objects in images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from picopose_cli.base.types import Array, Mesh
from picopose_cli.synthesis.lighting import Material
from picopose_cli.synthesis.shapes import Shape

_TWO_COLOURS_SHARE = 0.4
_METALS_RGB = np.array(
    [(200, 202, 205), (170, 172, 175), (130, 132, 136), (208, 178, 110), (196, 128, 92), (235, 235, 238)]
)
"""Aluminium, steel, cast iron, brass, copper, chrome."""


def plain_look(rng: np.random.Generator) -> tuple[Array, Material]:
    """Return two colours (2,3) f64 in [0, 255] and the material of a part: metal, glossy or matt plastic, paint."""
    kind = rng.random()
    if kind < 0.35:
        colours = _METALS_RGB[rng.choice(len(_METALS_RGB), 2, replace=False)] * rng.uniform(0.75, 1.05)
        material = Material(rng.uniform(0.15, 0.5), rng.uniform(15, 60), rng.uniform(0.4, 0.85))
    else:
        colours = np.stack([_pigment(rng), _pigment(rng)])
        glossy = kind < 0.75
        material = random_gloss(rng) if glossy else Material(0.0, 1.0, 0.0)
    return colours.clip(5, 250), material


def random_gloss(rng: np.random.Generator) -> Material:
    """Return the material of glossy plastic, lacquer or film."""
    return Material(rng.uniform(0.15, 0.55), rng.uniform(12, 60), 0.1)


def _pigment(rng: np.random.Generator) -> Array:
    """Return the colour (3,) of plastic or paint: dark, white, grey or, mostly, a hue."""
    if rng.random() < 0.4:
        return np.asarray(rng.choice([28.0, 60.0, 128.0, 190.0, 232.0]) + rng.normal(0, 6) + rng.normal(0, 3, 3))
    hsv = np.array([[[rng.uniform(0, 180), rng.uniform(60, 210), rng.uniform(70, 225)]]], np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], np.float64)


def coloured_part(rng: np.random.Generator, solids: Sequence[Shape], colours: Array) -> Array:
    """Return the colours (N,3) u8 of the vertices of a part: one of `colours` (2,3), or the second for some solids."""
    second = np.zeros(len(solids), bool)
    if rng.random() < _TWO_COLOURS_SHARE:
        second[1:] = rng.random(len(solids) - 1) < 0.7
    counts = [len(solid.vertices) for solid in solids]
    return np.repeat(np.rint(colours[second.astype(int)]).astype(np.uint8), counts, axis=0)


def grey_cad(rng: np.random.Generator, mesh: Mesh) -> Mesh:  # noqa: ARG001
    """Return a mesh without its colours."""
    return Mesh(mesh.vertices_m, mesh.faces)


def one_colour_cad(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Return a mesh in one colour, which says nothing about the object."""
    colour = np.rint(_pigment(rng)).clip(5, 250).astype(np.uint8)
    return Mesh(mesh.vertices_m, mesh.faces, vertex_rgb=np.tile(colour, (len(mesh.vertices_m), 1)))


def recoloured_cad(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Return a mesh with its own pattern in other colours: channels exchanged, other contrast, half of them negative.

    A mesh without colours stays without.
    """
    table = _wrong_tones(rng)
    order = rng.permutation(3)
    if mesh.texture_rgb is not None:
        return replace(mesh, texture_rgb=np.ascontiguousarray(cv2.LUT(mesh.texture_rgb, table)[..., order]))
    if mesh.vertex_rgb is not None:
        return replace(mesh, vertex_rgb=np.ascontiguousarray(cv2.LUT(mesh.vertex_rgb[None], table)[0][..., order]))
    return mesh


def _wrong_tones(rng: np.random.Generator) -> Array:
    """Return the lookup table (1,256,3) u8 of a wrong tone curve for each channel."""
    level = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.5, 3))
    level = 1 - level if rng.random() < 0.5 else level
    low = rng.uniform(0, 0.3, 3)
    return np.asarray((255 * (low + level * rng.uniform(0.5, 0.7, 3))).clip(0, 255).astype(np.uint8)[None])


ChangeLook = Callable[[np.random.Generator, Mesh], Mesh]
"""Makes a mesh of the same surface that looks different."""
WRONG_CADS: tuple[ChangeLook, ...] = (grey_cad, one_colour_cad, recoloured_cad)
"""Ways in which a CAD model looks different from its object."""


def wrong_cad(rng: np.random.Generator, mesh: Mesh) -> Mesh:
    """Return a mesh of the same surface that looks different: without colours, in one, or in other colours."""
    return WRONG_CADS[int(rng.integers(len(WRONG_CADS)))](rng, mesh)
