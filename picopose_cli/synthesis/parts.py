"""Machine parts without texture, of random kind and proportions: plates, housings, brackets, wheels, fittings.

A part consists of closed solids that touch or overlap, the first of which is its body; each may have its own colour.
Its size is about 1, its place arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.holed import plate
from picopose_cli.synthesis.shapes import Shape, distinct_shape
from picopose_cli.synthesis.solids import (
    bar,
    bent_rod,
    circle,
    joined,
    mirrored,
    moved,
    rectangle,
    rod,
    turned,
)

PartKind = Callable[[np.random.Generator], list[Shape]]
"""Makes the solids of a part."""


def random_part(rng: np.random.Generator, kinds: Sequence[PartKind] | None = None) -> list[Shape]:
    """Return the solids of a random part of one of `kinds` (None: of all), or the only one of `distinct_shape`."""
    kinds = kinds or PART_KINDS
    if rng.random() < 1 / (1 + len(kinds)):
        return [distinct_shape(rng)]
    return kinds[int(rng.integers(len(kinds)))](rng)


def mounting_plate(rng: np.random.Generator) -> list[Shape]:
    """Return a plate with holes near its corners, a large opening or a socket, standoffs and ribs."""
    width, depth, thick = 1.0, rng.uniform(0.5, 1.0), rng.uniform(0.06, 0.16)
    bore = rng.uniform(0.03, 0.055)
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (width / 2 - 0.11, depth / 2 - 0.11)
    kept = corners[rng.permutation(4)[: int(rng.integers(2, 5))]]
    holes = [circle(bore, corner) for corner in kept]
    middle = (rng.uniform(-0.15, 0.15), 0.0)
    reach = depth / 2 - 0.22
    solids = []
    if rng.random() < 0.5:
        holes.append(rectangle(rng.uniform(0.5, 1.4) * reach, 1.2 * reach, rng.choice([0, 0.05, reach]), middle))
    else:
        radius, height = rng.uniform(0.7, 1.1) * reach, rng.uniform(0.2, 0.6)
        solids.append(rod(radius, height, (*middle, thick - 0.01), bore=radius * rng.uniform(0.45, 0.75)))
        if rng.random() < 0.5:
            solids.append(rod(radius * 1.25, 0.25 * height, (*middle, thick - 0.01), bore=radius * 0.8))
    for _ in range(int(rng.integers(0, 3))):
        side = rng.choice([-1, 1])
        size = (rng.uniform(0.05, 0.12), depth * rng.uniform(0.4, 0.8), rng.uniform(0.1, 0.35))
        solids.append(bar(size, (side * rng.uniform(0.3, 0.45), 0, thick - 0.01)))
    left = [corner for corner in corners if not (kept == corner).all(axis=1).any()]
    solids += [rod(2 * bore, rng.uniform(0.15, 0.3), (*corner, thick - 0.01), bore=bore) for corner in left]
    return [plate(rectangle(width, depth, rng.uniform(0.02, 0.2)), holes, thick), *solids]


def housing(rng: np.random.Generator) -> list[Shape]:
    """Return a box-like housing with openings in its top, ribs on its sides and a round socket on an end."""
    width, depth, height = 1.0, rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.6)
    radius = rng.uniform(0.02, 0.12)
    count = int(rng.integers(1, 5))
    pitch = 0.8 * width / count
    round_openings = rng.random() < 0.5
    opening = min(0.36 * pitch, 0.3 * depth)
    places = (np.arange(count) - (count - 1) / 2) * pitch
    if round_openings:
        holes = [circle(opening, (x, 0)) for x in places]
    else:
        holes = [rectangle(2 * opening, min(2.4 * opening, 0.7 * depth), 0.2 * opening, (x, 0)) for x in places]
    deep = rng.uniform(0.08, 0.2)
    solids = [bar((width, depth, height), (0, 0, 0), radius)]
    solids.append(moved(plate(rectangle(width, depth, radius), holes, deep), (0, 0, height - 0.001)))
    ribs = int(rng.integers(0, 6))
    for x in np.linspace(-0.38, 0.38, ribs) if ribs > 1 else ():
        solids += [bar((0.05, 0.06, 0.8 * height), (x, side * depth / 2, 0.1 * height)) for side in (-1, 1)]
    if rng.random() < 0.75:
        socket = 0.5 * min(depth, height) * rng.uniform(0.5, 0.85)
        at = (width / 2 - 0.02, rng.uniform(-0.1, 0.1), height / 2)
        solids.append(moved(rod(socket, rng.uniform(0.12, 0.35), (0, 0, 0), bore=0.6 * socket), at, "x"))
    if rng.random() < 0.5:
        ears = plate(rectangle(width + 0.4, depth * 0.5, 0.12), [circle(0.06, (x, 0)) for x in (-0.58, 0.58)], 0.08)
        solids.append(moved(ears, (0, 0, -0.02)))
    return solids


def turned_part(rng: np.random.Generator) -> list[Shape]:
    """Return a stepped shaft, bush or nozzle with a bore and chamfers, sometimes with a flange or a hexagon."""
    steps = int(rng.integers(2, 5))
    radii, lengths = rng.uniform(0.16, 0.45, steps), rng.uniform(0.12, 0.5, steps)
    heights = np.concatenate([[0], np.cumsum(lengths)])
    bore, chamfer = rng.uniform(0.3, 0.7) * radii.min(), 0.025
    outer = []
    for step in range(steps):
        low, high = heights[step], heights[step + 1]
        ends = [(radii[step], low), (radii[step], high - chamfer), (radii[step] - chamfer, high)]
        outer += ends if step else [(radii[0] - chamfer, 0), (radii[0], chamfer), *ends[1:]]
    profile = np.array([*outer, (bore, heights[-1]), (bore, 0)])
    solids = [turned(profile)]
    if rng.random() < 0.5:
        reach, count = radii.max() + rng.uniform(0.2, 0.3), int(rng.choice([2, 3, 4, 6]))
        ring = circle((reach + radii.max()) / 2, steps=count)
        holes = [circle(0.075, centre) for centre in ring] + [circle(radii.max() * 0.8)]
        at = float(heights[int(rng.integers(steps))])
        outline = (
            circle(reach) if rng.random() < 0.6 else circle(reach * 1.08, steps=2 * count, phase_rad=np.pi / count)
        )
        solids.append(moved(plate(outline, holes, 0.08), (0, 0, at + 0.01)))
    elif rng.random() < 0.6:
        solids.append(rod(radii.max() * 1.35, 0.22, (0, 0, float(heights[-2])), bore=bore, steps=6))
    return solids


def bracket(rng: np.random.Generator) -> list[Shape]:
    """Return two plates with holes at a right angle, mostly with gussets."""
    width, thick = rng.uniform(0.4, 0.9), rng.uniform(0.05, 0.12)
    lengths = np.array([1.0, rng.uniform(0.45, 0.9)])
    solids = []
    for length in lengths:
        holes = []
        for x in np.linspace(-1, 1, int(rng.integers(1, 4))) * (width / 2 - 0.13):
            far = length * rng.uniform(0.5, 0.7)
            long = rng.random() < 0.4 and length > 0.6
            holes.append(rectangle(0.1, 0.26, 0.05, (x, far - 0.06)) if long else circle(0.06, (x, far)))
        outline = rectangle(width, length, 0.0, (0, length / 2))
        if rng.random() < 0.5:
            cut = rng.uniform(0.08, 0.18) * width
            outline = np.array(
                [(-width / 2, 0), (width / 2, 0), (width / 2, length - cut), (width / 2 - cut, length),
                 (cut - width / 2, length), (-width / 2, length - cut)]
            )  # fmt: skip
        apart = len(holes) < 2 or width - 0.26 > 0.14 * (len(holes) - 1)
        solids.append(plate(outline, holes if apart else holes[:1], thick))
    upright = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    shrunk = (0.99, 1, 1)  # or surfaces of both would coincide, and colours with them
    standing = solids[1].vertices @ upright.T * shrunk + (0, thick, 0.005)
    solids[1] = Shape(standing, solids[1].faces, solids[1].uv, solids[1].tiles)
    reach = rng.uniform(0.5, 0.9) * (lengths - thick)
    triangle = np.array([(0, 0), (reach[0], 0), (0, reach[1])])
    gusset = moved(plate(triangle, [], 0.06), (0, 0, 0), "z")
    turn = np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])
    for x in ((), (0,), (-1, 1), (-1,))[int(rng.integers(4))]:
        place = (x * (width / 2 - 0.06) - 0.03, thick, thick)
        solids.append(Shape(gusset.vertices @ turn.T + place, gusset.faces, gusset.uv, gusset.tiles))
    return solids


def wheel(rng: np.random.Generator) -> list[Shape]:
    """Return a gear, sprocket or knob: a rim with teeth or flutes, openings between spokes, a hub with a bore."""
    teeth = int(rng.choice([6, 8, 12]))
    thick = rng.uniform(0.1, 0.35)
    height = rng.uniform(0.08, 0.12)
    angle = np.arange(4 * teeth) * (2 * np.pi / (4 * teeth))
    radius = 0.5 - np.tile([0, 0, height, height], teeth) * (0.6 if rng.random() < 0.3 else 1.0)
    outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    bore = rng.uniform(0.06, 0.12)
    holes = [circle(bore)]
    spokes = int(rng.choice([0, 3, 4, 5, 6]))
    if spokes:
        opening = min(0.08, 0.6 * np.sin(np.pi / spokes) * 0.29)
        holes += [circle(opening, centre) for centre in circle(0.29, steps=spokes)]
    solids = [plate(outline, holes, thick)]
    if rng.random() < 0.8:
        solids.append(rod(bore * 1.7, thick + rng.uniform(0.1, 0.35), (0, 0, 0.01), bore=bore))
    if rng.random() < 0.4:  # a grip or a pin beside the middle
        solids.append(
            rod(0.06, rng.uniform(0.2, 0.45), (0.38 if not spokes else 0.0, 0.36 if spokes else 0, thick - 0.01))
        )
    return solids


def rail(rng: np.random.Generator) -> list[Shape]:
    """Return a length of an extruded profile: slotted, U, H or angle, sometimes with a stop on it."""
    length = rng.uniform(0.5, 1.2)
    wall = rng.uniform(0.07, 0.12)
    kind = int(rng.integers(4))
    if kind == 0:
        slot, deep = 0.08, 0.16
        quarter = np.array(
            [(0.25, -0.25), (0.25, -slot / 2), (0.25 - deep, -slot), (0.25 - deep, slot), (0.25, slot / 2)]
        )
        turns = [np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        outline, holes = np.concatenate([quarter @ turn.T for turn in turns]), [circle(0.045)]
    elif kind == 1:
        outline, holes = _mirror_outline([(wall, 0.5), (wall, wall), (0.35, wall), (0.35, 0)], 0.35), []
    elif kind == 2:
        outline, holes = (
            _mirror_outline(
                [(0.3, 0.5), (0.3, 0.5 - wall), (wall / 2, 0.5 - wall), (wall / 2, wall), (0.3, wall), (0.3, 0)], 0
            ),
            [],
        )
    else:
        outline, holes = np.array([(0, 0), (0.5, 0), (0.5, wall), (wall, wall), (wall, 0.35), (0, 0.35)]), []
    solids = [moved(plate(outline, holes, length), (0, 0, 0))]
    if rng.random() < 0.5:
        middle, span = (outline.min(axis=0) + outline.max(axis=0)) / 2, np.ptp(outline, axis=0)
        solids.append(
            bar(
                (*(span * rng.uniform(1.1, 1.4, 2)), rng.uniform(0.08, 0.2)),
                (*middle, rng.uniform(0.1, 0.6) * length),
                0.03,
            )
        )
    return solids


def _mirror_outline(right: list[tuple[float, float]], shift: float) -> Array:
    """Return an outline (N,2) symmetric about x = 0 from the corners of its right half, from top to bottom."""
    half = np.array(right)[::-1]
    if shift:  # a U: open at the top, its inner corners first
        wall = half[-1, 0]
        inner = np.array([(shift - wall, 0.5), (shift - wall, wall)])
        half = np.array([(shift, 0), (shift, 0.5), *inner])
    left = half[::-1] * (-1, 1)
    return np.concatenate([half, left])


def fitting(rng: np.random.Generator) -> list[Shape]:
    """Return a pipe fitting: two or three sockets at right angles about a block or a ball, with collars."""
    radius, wall = rng.uniform(0.14, 0.22), rng.uniform(0.65, 0.85)
    size = 2.2 * radius
    solids = [bar((size, size, size), (0, 0, -size / 2), rng.uniform(0.0, 0.3) * radius)]
    for axis in ("x", "y", "z")[: int(rng.integers(2, 4))]:
        for sign in (1, -1)[: int(rng.integers(1, 3))]:
            scale, reach = rng.uniform(0.8, 1.0), rng.uniform(0.3, 0.6)
            tube = [rod(radius * scale, reach, (0, 0, radius), bore=radius * scale * wall)]
            if rng.random() < 0.5:
                tube.append(rod(radius * scale * 1.3, 0.08, (0, 0, radius + reach - 0.08), bore=radius * scale * wall))
            whole = moved(joined(tube), (0, 0, 0), axis)
            solids.append(whole if sign > 0 else mirrored(whole, "xyz".index(axis)))
    return solids


def handle(rng: np.random.Generator) -> list[Shape]:
    """Return a bow handle or hook: a bent rod on one or two feet with holes."""
    width, height, radius = 1.0, rng.uniform(0.25, 0.6), rng.uniform(0.04, 0.09)
    bend = rng.uniform(0.4, 0.95) * min(height, width / 2)
    arc = np.linspace(0, np.pi / 2, 9)
    left = np.stack([bend * (1 - np.cos(arc)), height - bend + bend * np.sin(arc)], axis=-1) - (width / 2, 0)
    whole = np.concatenate([[(-width / 2, 0)], left, left[::-1] * (-1, 1), [(width / 2, 0)]])
    hook = rng.random() < 0.4
    flat = whole[:-1] if hook else whole
    flat = flat[np.linalg.norm(np.diff(flat, axis=0, prepend=[(9, 9)]), axis=1) > 1e-6]
    path = np.stack([flat[:, 0], 0 * flat[:, 0], flat[:, 1]], axis=-1)
    solids = [bent_rod(path, radius)]
    foot_size = np.array([rng.uniform(0.18, 0.3), rng.uniform(0.3, 0.5)])
    holes = [circle(0.045, (0, side * (foot_size[1] / 2 - 0.08))) for side in (-1, 1)]
    foot = plate(rectangle(foot_size[0], foot_size[1], rng.uniform(0, 0.09)), holes, 0.07)
    feet = (-width / 2, width / 2)[: 1 if hook else 2]
    return [*solids, *(moved(foot, (x, 0, -0.06)) for x in feet)]


def terminal(rng: np.random.Generator) -> list[Shape]:
    """Return a terminal block: like cells side by side on a rail foot, with partitions and an opening in each."""
    cells, pitch = int(rng.integers(2, 6)), rng.uniform(0.18, 0.26)
    depth, height, step = rng.uniform(0.5, 0.8), rng.uniform(0.25, 0.45), rng.uniform(0.1, 0.25)
    length = cells * pitch
    places = (np.arange(cells) - (cells - 1) / 2) * pitch
    opening = 0.34 * pitch
    at = rng.uniform(0.05, 0.2) * depth
    holes = [circle(opening, (x, at)) for x in places]
    solids = [bar((length, depth, height), (0, 0, 0))]
    top = rectangle(length, 0.6 * depth, 0.0, (0, at))
    solids.append(moved(plate(top, holes, step), (0, 0, height - 0.001)))
    solids += [
        bar((0.035, depth * 0.98, height + step + 0.06), (x, 0, 0.0)) for x in (*(places - pitch / 2), length / 2)
    ]
    if rng.random() < 0.7:
        solids += [bar((0.5 * pitch, 0.14, 0.1), (x, -depth / 2, 0.15)) for x in places]
    solids.append(bar((length * 0.9, depth * rng.uniform(0.4, 0.9), 0.12), (0, rng.uniform(-0.1, 0.1), -0.11)))
    return solids


PART_KINDS: tuple[PartKind, ...] = (
    mounting_plate, housing, turned_part, bracket, wheel, rail, fitting, handle, terminal,
)  # fmt: skip
LOPSIDED_KINDS: tuple[PartKind, ...] = (mounting_plate, housing, bracket, fitting, handle, terminal)
"""Parts that look different after a rotation in the image plane, from nearly everywhere: pairs for training need that,
for which only one pose is right."""
