"""Objects made from a seed: shape, size and appearance, with the template views of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from picopose_cli.base.types import Array, Mesh
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.appearance import (
    WRONG_CADS,
    ChangeLook,
    coloured_part,
    grey_cad,
    one_colour_cad,
    plain_look,
    random_gloss,
)
from picopose_cli.synthesis.lighting import LitMesh, Material, make_lit_mesh
from picopose_cli.synthesis.parts import LOPSIDED_KINDS, random_part
from picopose_cli.synthesis.samples import CropView
from picopose_cli.synthesis.shapes import Tile, centred, distinct_shape, random_shape, random_size_m
from picopose_cli.synthesis.solids import joined
from picopose_cli.synthesis.textures import paint_object, solid_colours
from picopose_cli.templates.build import make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

TEXTURE_PX = 384
_MIN_CONTRAST = 18.0
"""Standard deviation of a texture, in levels of 255, below which it counts as plain."""
_PART_SHARE, _TEXTURED_SHARE, _VERTEX_COLOURED_SHARE = 0.27, 0.55, 0.08
"""Shares of procedural objects that are machine parts in plain colours, have a texture, or colours at the vertices; the
others, of any shape, have no colour. More than a third without texture, as in T-LESS, ITODD and half of LM-O."""
_CHANGED_LOOK_SHARE, _GREY_PART_SHARE = 0.35, 0.75
"""Shares of coloured objects whose CAD model looks different, and of parts whose CAD model is grey. With the objects
without colour, whose templates are grey and whose observations are not, that is half of all: CAD models of users have
other colours, or none, as often as not, and a network that never saw it matches colours in place of shapes."""
_GLOSSY_SHARE = 0.15


@dataclass(frozen=True)
class SyntheticObject:
    """An object: its mesh, centred in its frame, and everything derived from it, computed on first use.

    Images show `mesh`, made of `material` (None: matt, or glossy where the scene's light is). Templates show `cad`, the
    same surface with other colours or none; None: the mesh itself.
    """

    key: str
    mesh: Mesh
    cad: Mesh | None = None
    material: Material | None = None
    _templates: dict[int, CropView] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def diameter_m(self) -> float:
        """Diagonal of the axis-aligned bounding box."""
        return mesh_diameter_m(self.mesh)

    @cached_property
    def lit_mesh(self) -> LitMesh:
        """The mesh prepared for lighting."""
        return make_lit_mesh(self.mesh)

    @cached_property
    def poses(self) -> Array:
        """T_tmpl_from_obj (162,4,4) f64, metres, of the template views."""
        return place_views(self.diameter_m)

    @cached_property
    def _renderer(self) -> SoftwareRenderer:
        return SoftwareRenderer(self.cad or self.mesh, template_camera(), TEMPLATE_SIZE_HW)

    def template(self, view_id: int) -> CropView:
        """Return a template as `render-templates` renders it; each is rendered once."""
        if view_id not in self._templates:
            K, T = template_camera(), self.poses[view_id]
            template = make_template(self._renderer.render(T))
            affine = template.A_crop_from_image.astype(np.float64)
            self._templates[view_id] = CropView(template.crop_rgb, template.mask, template.depth_centre_m, K, affine, T)
        return self._templates[view_id]


def make_distinct_mesh(seed: int | Sequence[int], size_m: tuple[float, float], texture_px: int) -> Mesh:
    """Return a textured mesh without symmetries, its longest side within `size_m`.

    For evaluation: a pose of an object with undeclared symmetries would count as wrong half of the time. Shapes that
    may be symmetric (bodies of revolution, balls) are left out, and one texture covers the whole object.
    """
    rng = np.random.default_rng(seed)
    shape = centred(distinct_shape(rng), float(np.exp(rng.uniform(*np.log(size_m)))))
    texture = paint_with_contrast(rng, shape.tiles, texture_px)
    return Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture)


def paint_with_contrast(rng: np.random.Generator, tiles: Sequence[Tile], texture_px: int) -> Array:
    """Return a texture (h,w,3) u8 that is not plain: a plain one hides the object's rotation."""
    while True:
        texture = paint_object(rng, tiles, texture_px)
        if has_contrast(texture):
            return texture


def has_contrast(texture_rgb: Array) -> bool:
    """Return whether the colours of a texture (h,w,3) u8 vary enough not to count as plain."""
    return float(texture_rgb[::4, ::4].astype(np.float32).std(axis=(0, 1)).max()) > _MIN_CONTRAST


def make_procedural_object(seed: int | Sequence[int], key: str, *, texture_px: int = TEXTURE_PX) -> SyntheticObject:
    """Return the object of a seed, of random shape, size and appearance; the same seed gives the same object."""
    rng = np.random.default_rng(seed)
    appearance = rng.random()
    if appearance < _PART_SHARE:
        return _make_part(rng, key)
    textured = appearance < _PART_SHARE + _TEXTURED_SHARE
    coloured = appearance < _PART_SHARE + _TEXTURED_SHARE + _VERTEX_COLOURED_SHARE
    change_look = _choose_change(rng) if coloured else None
    # Without colours only the shape distinguishes the sides, so it must not be a body of revolution.
    shape_tells = not coloured or change_look in (grey_cad, one_colour_cad)
    shape = centred(distinct_shape(rng), random_size_m(rng)) if shape_tells else random_shape(rng)
    if textured:
        texture = paint_with_contrast(rng, shape.tiles, texture_px)
        mesh = Mesh(shape.vertices, shape.faces, uv=shape.uv, texture_rgb=texture)
    else:
        vertex_rgb = colour_vertices(rng, shape.vertices) if coloured else None
        mesh = Mesh(shape.vertices, shape.faces, vertex_rgb=vertex_rgb)
    material = random_gloss(rng) if rng.random() < _GLOSSY_SHARE else None
    return SyntheticObject(key, mesh, change_look and change_look(rng, mesh), material)


def _make_part(rng: np.random.Generator, key: str) -> SyntheticObject:
    """Return a part in one or two colours, its CAD model mostly grey."""
    solids = random_part(rng, LOPSIDED_KINDS)
    shape = centred(joined(solids), random_size_m(rng))
    colours, material = plain_look(rng)
    mesh = Mesh(shape.vertices, shape.faces, vertex_rgb=coloured_part(rng, solids, colours))
    return SyntheticObject(key, mesh, grey_cad(rng, mesh) if rng.random() < _GREY_PART_SHARE else None, material)


def _choose_change(rng: np.random.Generator) -> ChangeLook | None:
    return WRONG_CADS[int(rng.integers(len(WRONG_CADS)))] if rng.random() < _CHANGED_LOOK_SHARE else None


def colour_vertices(rng: np.random.Generator, vertices: Array) -> Array:
    """Return colours (N,3) u8 of vertices (N,3) about the origin, as of a solid material such as marble."""
    return solid_colours(rng, vertices / max(float(np.abs(vertices).max()), 1e-9))
