"""Random textures for objects and backgrounds: patterns, prints with text and logos, labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.shapes import Tile

Painter = Callable[[np.random.Generator, int, int, Array], Array]
"""Makes an image (h,w,3) u8, of a height and a width, from a palette (P,3) f32 in [0, 255]."""

_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789%&+-!?"))
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


def random_palette(rng: np.random.Generator, colours: int = 5) -> Array:
    """Return colours (P,3) f32 in [0, 255] of one hue, of two or of random hues; some of them dark, pale or grey."""
    hue = rng.uniform(0, 180) + rng.choice([0, 0, 90, 60]) * rng.integers(0, 2, colours) + rng.normal(0, 12, colours)
    if rng.random() < 0.3:
        hue = rng.uniform(0, 180, colours)
    a, b = (1.5, 1.2) if rng.random() < 0.75 else (1.0, 6.0)
    saturation = 255 * rng.beta(a, b, colours)
    value = 255 * rng.beta(1.6, 1.0, colours)
    value[0], value[1] = max(value[0], 120), min(value[1], 90)  # every palette has contrast
    hsv = np.stack([hue % 180, saturation, value], axis=-1).astype(np.uint8)[None]
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0].astype(np.float32))


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 4) -> Array:
    """Return noise (h,w) f32 in [0, 1]: the weighted sum of interpolated random grids of increasing resolution."""
    total = np.zeros((height, width), np.float32)
    gain = rng.uniform(0.4, 0.75)
    for octave in range(octaves):
        size = np.maximum(np.array([cells, cells * height / width]) * 2**octave, 2).astype(int)
        if size.max() > max(height, width):
            break
        values = rng.random((int(size[1]), int(size[0])), np.float32)
        total += gain**octave * cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _ramp(values: Array, palette: Array, *, hard: bool) -> Array:
    """Return the colours (h,w,3) u8 of values (h,w) in [0, 1]: a gradient through the palette, or `hard` steps."""
    steps = np.arange(256) / 255 * (len(palette) - 1)
    if hard:
        table = palette[np.rint(steps).astype(int)]
    else:
        table = np.stack([np.interp(steps, np.arange(len(palette)), palette[:, c]) for c in range(3)], axis=-1)
    return np.asarray(table.astype(np.uint8)[(values * 255).clip(0, 255).astype(np.uint8)])


def paint_plain(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint one colour with slight variations."""
    dirt = smooth_noise(rng, height, width, rng.uniform(2, 12))[..., None] - 0.5
    return np.asarray((palette[0] + dirt * rng.uniform(0, 30)).clip(0, 255).astype(np.uint8))


def paint_gradient(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint a linear or radial gradient through several colours."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    values = x * np.cos(angle) + y * np.sin(angle) if rng.random() < 0.6 else np.hypot(x - rng.random(), y - 0.5)
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    return _ramp(values, palette[: int(rng.integers(2, len(palette) + 1))], hard=False)


def paint_noise(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint noise such as clouds, marble or camouflage."""
    values = smooth_noise(rng, height, width, rng.uniform(2, 16), int(rng.integers(2, 6)))
    if rng.random() < 0.3:
        values = 0.5 + 0.5 * np.sin(values * rng.uniform(10, 40))
    return _ramp(values, palette, hard=rng.random() < 0.3)


def paint_stripes(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint stripes or checks of uneven widths at a random angle, straight or wavy."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    angle = rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if rng.random() < 0.3:
        along += 0.03 * np.sin(across * rng.uniform(5, 40))
    index = _band(rng, along)
    if rng.random() < 0.4:
        index = index + _band(rng, across)
    return np.asarray(palette.astype(np.uint8)[index % len(palette)])


def _band(rng: np.random.Generator, position: Array) -> Array:
    """Return the index of the stripe, of random widths, that contains each position."""
    edges = np.cumsum(rng.uniform(0.2, 1.8, 64)) / rng.uniform(3, 30) - 1.5
    return np.searchsorted(edges, position)


def paint_voronoi(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint irregular cells, of one colour or darker towards their borders."""
    seeds = np.full((height // 2, width // 2), 255, np.uint8)
    count = int(rng.integers(8, 120))
    seeds[rng.integers(0, seeds.shape[0], count), rng.integers(0, seeds.shape[1], count)] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    colours = palette[rng.integers(0, len(palette), count + 2)] + rng.normal(0, 12, (count + 2, 3))
    image = colours[label.clip(0, count + 1)]
    if rng.random() < 0.5:
        image = image * (1 - rng.uniform(0.2, 0.8) * distance / max(distance.max(), 1))[..., None]
    return np.asarray(cv2.resize(image.clip(0, 255).astype(np.uint8), (width, height)))


def paint_print(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint the side of a package: a background, logos, words, lines of small text, a bar code."""
    image = _choose_painter(rng, ((paint_plain, 5), (paint_gradient, 3), (paint_noise, 1), (paint_stripes, 1)))(
        rng, height, width, palette
    )
    for _ in range(int(rng.integers(1, 4))):
        _draw_logo(rng, image, palette)
    for _ in range(int(rng.integers(1, 4))):
        _draw_words(rng, image, palette, rng.uniform(0.08, 0.3))
    if rng.random() < 0.6:
        _draw_small_text(rng, image, palette)
    if rng.random() < 0.5:
        _draw_code(rng, image)
    return image


def paint_sticker(rng: np.random.Generator, height: int, width: int, palette: Array) -> Array:
    """Paint a plain or patterned background with one to four printed labels."""
    image = _choose_painter(rng, ((paint_plain, 4), (paint_gradient, 1), (paint_noise, 2)))(rng, height, width, palette)
    for _ in range(int(rng.integers(1, 5))):
        rows, cols = int(height * rng.uniform(0.15, 0.5)), int(width * rng.uniform(0.15, 0.5))
        top, left = int(rng.integers(0, height - rows)), int(rng.integers(0, width - cols))
        label = paint_print(rng, max(rows, 8), max(cols, 8), random_palette(rng))
        image[top : top + rows, left : left + cols] = label[:rows, :cols]
    return image


def _draw_words(rng: np.random.Generator, image: Array, palette: Array, size: float) -> None:
    height, width = image.shape[:2]
    text = "".join(rng.choice(_LETTERS, int(rng.integers(2, 10))))
    font = _FONTS[int(rng.integers(len(_FONTS)))]
    scale = size * height / 24
    thickness = max(1, round(scale * rng.uniform(0.8, 3)))
    (wide, _), _ = cv2.getTextSize(text, font, scale, thickness)
    if wide > 0.95 * width:
        scale *= 0.95 * width / wide
    origin = (int(rng.uniform(0.0, 0.4) * width), int(rng.uniform(0.15, 0.95) * height))
    cv2.putText(image, text, origin, font, scale, _ink(rng, palette), thickness, cv2.LINE_AA)


def _draw_small_text(rng: np.random.Generator, image: Array, palette: Array) -> None:
    height, width = image.shape[:2]
    x, y = rng.uniform(0.02, 0.5) * width, rng.uniform(0.3, 0.8) * height
    ink, step = _ink(rng, palette), max(height * rng.uniform(0.03, 0.06), 4)
    for line in range(int(rng.integers(3, 8))):
        text = "".join(rng.choice(_LETTERS, int(rng.integers(8, 22))))
        origin = (int(x), int(y + line * step))
        cv2.putText(image, text, origin, cv2.FONT_HERSHEY_SIMPLEX, step / 32, ink, 1, cv2.LINE_AA)


def _draw_logo(rng: np.random.Generator, image: Array, palette: Array) -> None:
    """Draw one or two shapes of a logo: discs, rings, bars or polygons."""
    height, width = image.shape[:2]
    size = min(height, width)
    for _ in range(int(rng.integers(1, 3))):
        centre = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height])
        radius = rng.uniform(0.08, 0.35) * size
        ink, kind = _ink(rng, palette), rng.random()
        if kind < 0.35:
            thickness = -1 if rng.random() < 0.6 else max(2, int(radius * 0.2))
            axes = (int(radius), int(radius * rng.uniform(0.4, 1)))
            cv2.ellipse(
                image, centre.astype(int).tolist(), axes, rng.uniform(0, 180), 0, 360, ink, thickness, cv2.LINE_AA
            )
        elif kind < 0.6:
            corner = (centre - radius * np.array([rng.uniform(0.5, 3), rng.uniform(0.2, 1)])).astype(int)
            cv2.rectangle(image, corner.tolist(), (2 * centre - corner).astype(int).tolist(), ink, -1)
        else:
            angle = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
            reach = radius * rng.uniform(0.4, 1.2, len(angle))[:, None]
            points = centre + reach * np.stack([np.cos(angle), np.sin(angle)], -1)
            cv2.fillPoly(image, [points.astype(np.int32)], ink, cv2.LINE_AA)


def _draw_code(rng: np.random.Generator, image: Array) -> None:
    """Draw a bar code or a square code on white, upright or rotated by 90 degrees."""
    height, width = image.shape[:2]
    side = max(int(min(height, width) * rng.uniform(0.15, 0.35)), 10)
    if rng.random() < 0.5:
        code = np.repeat(rng.integers(0, 2, (1, 40)), 22, axis=0)
    else:
        code = rng.integers(0, 2, (21, 21))
        for row, col in ((0, 0), (0, 14), (14, 0)):
            code[row : row + 7, col : col + 7] = 1
            code[row + 1 : row + 6, col + 1 : col + 6] = 0
            code[row + 2 : row + 5, col + 2 : col + 5] = 1
    code = np.pad(np.rot90(code, int(rng.integers(0, 2))), 2)
    shape = (side, int(side * code.shape[0] / code.shape[1]))
    tile = cv2.resize((255 * (1 - code)).astype(np.uint8), shape, interpolation=cv2.INTER_NEAREST)[:height, :width]
    top, left = (int(rng.integers(0, max(a - b, 0) + 1)) for a, b in zip((height, width), tile.shape, strict=True))
    image[top : top + tile.shape[0], left : left + tile.shape[1]] = tile[..., None]


def _ink(rng: np.random.Generator, palette: Array) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in palette[int(rng.integers(len(palette)))])
    return red, green, blue


def _choose_painter(rng: np.random.Generator, painters: Sequence[tuple[Painter, float]]) -> Painter:
    share = np.array([weight for _, weight in painters])
    return painters[int(rng.choice(len(painters), p=share / share.sum()))][0]


_OBJECT_PAINTERS: tuple[tuple[Painter, float], ...] = (
    (paint_print, 5),
    (paint_sticker, 3),
    (paint_noise, 2),
    (paint_voronoi, 1.5),
    (paint_stripes, 1.5),
    (paint_gradient, 0.7),
)
_BACKGROUND_PAINTERS: tuple[tuple[Painter, float], ...] = (
    (paint_noise, 4),
    (paint_plain, 2),
    (paint_gradient, 2),
    (paint_stripes, 1.5),
    (paint_voronoi, 1),
    (paint_sticker, 1.5),
    (paint_print, 0.5),
)


_CALM_PAINTERS: tuple[tuple[Painter, float], ...] = (
    (paint_noise, 3),
    (paint_plain, 3),
    (paint_gradient, 1),
    (paint_sticker, 1),
    (paint_voronoi, 0.5),
)


def paint_object(rng: np.random.Generator, tiles: Sequence[Tile], size_px: int = 384) -> Array:
    """Return a texture (h,w,3) u8, v = 0 at the bottom row: one image for the whole, or one for each tile."""
    palette = random_palette(rng)
    painter = _choose_painter(rng, _OBJECT_PAINTERS)
    image = painter(rng, size_px, size_px, palette)
    if len(tiles) == 1 or rng.random() < 0.15:
        return image
    for tile in tiles:
        rows, columns = pixels_of_tile(tile, size_px)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(width, height) < 8:
            continue
        tile_painter = painter if rng.random() < 0.7 else _choose_painter(rng, (*_OBJECT_PAINTERS, (paint_plain, 3)))
        colours = palette if rng.random() < 0.85 else random_palette(rng)
        image[rows, columns] = tile_painter(rng, height, width, rng.permutation(colours))
    return image


def pixels_of_tile(tile: Tile, size_px: int) -> tuple[slice, slice]:
    """Return the rows and columns of a texture that a tile covers, with a margin of a pixel for filtering."""
    u0, v0, u1, v1 = tile
    left, right = max(round(u0 * size_px) - 1, 0), min(round(u1 * size_px) + 1, size_px)
    top, bottom = max(round((1 - v1) * size_px) - 1, 0), min(round((1 - v0) * size_px) + 1, size_px)
    return slice(top, bottom), slice(left, right)


def paint_bands(rng: np.random.Generator, tiles: Sequence[Tile], size_px: int) -> Array:
    """Return a texture (h,w,3) u8 that is constant along its rows: bands or a gradient for each tile."""
    palette = random_palette(rng)
    image = np.zeros((size_px, size_px, 3), np.uint8)
    for tile in tiles:
        rows, columns = pixels_of_tile(tile, size_px)
        position = np.linspace(0, 1, rows.stop - rows.start)
        colours = rng.permutation(palette)
        if rng.random() < 0.75:
            of_row = colours.astype(np.uint8)[_band(rng, position) % len(colours)]
        else:
            of_row = _ramp(position[:, None], colours, hard=False)[:, 0]
        image[rows, columns] = of_row[:, None]
    return image


def paint_background(rng: np.random.Generator, size_px: int = 512, *, calm: bool = False) -> Array:
    """Return a background (size,size,3) u8: walls, cloth, posters, wood-like and plain surfaces.

    `calm` excludes strong colours and patterns.
    """
    palette = random_palette(rng)
    if calm or rng.random() < 0.6:  # rooms are less colourful than packages
        palette = palette.mean(axis=1, keepdims=True) * 0.7 + palette * 0.3
    if calm:
        palette = palette.mean(axis=0) * 0.5 + palette * 0.5
    image = _choose_painter(rng, _CALM_PAINTERS if calm else _BACKGROUND_PAINTERS)(rng, size_px, size_px, palette)
    if rng.random() < 0.5:
        grain = rng.normal(0, rng.uniform(2, 10), (size_px, size_px, 1))
        image = (image + grain).clip(0, 255).astype(np.uint8)
    return image


def solid_colours(rng: np.random.Generator, points: Array) -> Array:
    """Return colours (N,3) u8 of points (N,3) in [-1, 1]: a sum of waves in space, as in marble."""
    palette = random_palette(rng)
    value = np.zeros(len(points))
    for _ in range(5):
        value += np.sin(points @ rng.normal(0, 6, 3) + rng.uniform(0, 2 * np.pi))
    value = (value - value.min()) / max(float(np.ptp(value)), 1e-6)
    return np.asarray(_ramp(value[:, None], palette, hard=rng.random() < 0.4)[:, 0])
