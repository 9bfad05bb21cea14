"""RandomDraws a scene, or a part of it: objects behind each other, lit, with shadows, before a background."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.rendering.rasteriser import Window, place_mesh, rasterise_both
from picopose_cli.synthesis.lighting import colour_samples, light_mesh
from picopose_cli.synthesis.scenes import PlacedObject, Scene, shadow_outline

NOBODY = -1
"""Owner of a sample that shows the background."""
_TABLE_PICTURE_DIAMETERS = (3.0, 9.0)


@dataclass(frozen=True)
class SceneImage:
    """A drawn part of an image.

    `rgb` (h,w,3) u8 of `window`; `owner` (h s, w s) i8 index of the object that each of s x s samples a pixel shows;
    `depth_m` (h s, w s) f32 of the samples, 0 in the background; `counts` (N,) samples that each object would show
    within the window if it stood there alone.
    """

    rgb: Array
    owner: Array
    depth_m: Array
    counts: Array
    window: Window
    samples: int

    def visible(self, index: int) -> Array:
        """Return the mask (h,w) bool of an object: pixels of which it shows at least half."""
        shown = (self.owner == index).astype(np.uint8)
        if self.samples == 1:
            return np.asarray(shown, bool)
        share = cv2.resize(shown * np.uint8(252), self.rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(share >= 126)

    def visible_share(self, index: int) -> float:
        """Return which part of an object's samples is seen."""
        return float((self.owner == index).sum() / max(self.counts[index], 1))


def draw_scene(scene: Scene, window: Window, samples: int, background: Array) -> SceneImage:
    """Draw the pixels of `window` with `samples` x `samples` colours each, over the picture `background` (H,W,3) u8."""
    height, width = (samples * side for side in window.size_hw)
    colours = np.zeros((height, width, 3), np.uint8)
    depth_m = np.full((height, width), np.inf, np.float32)
    owner = np.full((height, width), NOBODY, np.int8)
    counts = np.zeros(len(scene.placed), np.int64)
    for index, placed in enumerate(scene.placed):
        counts[index] = _draw_object(placed, index, scene, window, samples, (colours, depth_m, owner))
    depth_m[owner == NOBODY] = 0
    rgb = _over(colours, owner, _draw_background(scene, window, background), samples)
    return SceneImage(rgb, owner, depth_m, counts, window, samples)


def _draw_object(
    placed: PlacedObject, index: int, scene: Scene, window: Window, samples: int, canvas: tuple[Array, Array, Array]
) -> int:
    """Draw one object where it is nearer than what is there; return how many samples it covers."""
    K = np.diag([samples, samples, 1.0]) @ scene.K
    fine = Window(*(samples * side for side in (window.x0, window.y0, window.x1, window.y1)))
    lit = placed.item.lit
    mesh = light_mesh(lit, scene.light, placed.T_cam_from_obj, placed.paint_rgb)
    view = place_mesh(mesh, K, placed.T_cam_from_obj, fine)
    if view is None:
        return 0
    attributes, depth_m = rasterise_both(view)
    colours, nearest, owner = (array[view.window.slices_in(fine)] for array in canvas)
    covered = depth_m > 0
    shown = covered & (depth_m < nearest)
    if shown.any():
        rgb = colour_samples(lit, attributes, placed.T_cam_from_obj, K[0, 0] / placed.T_cam_from_obj[2, 3])
        mask = shown.view(np.uint8)
        for source, target in ((rgb, colours), (depth_m, nearest)):
            cv2.copyTo(source, mask, target)
        owner[shown] = index
    return int(covered.sum())


def _over(colours: Array, owner: Array, behind: Array, samples: int) -> Array:
    """Lay samples (black where nobody is) over a background (h,w,3): a pixel at an edge mixes both."""
    covered = (owner != NOBODY).view(np.uint8) * np.uint8(255)
    size_wh = behind.shape[1::-1]
    if samples > 1:
        colours, covered = (cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) for image in (colours, covered))
    left = cv2.cvtColor(255 - covered, cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.add(colours, cv2.multiply(behind, left, scale=1 / 255)))


def _draw_background(scene: Scene, window: Window, background: Array) -> Array:
    rng = np.random.default_rng(scene.picture_seed)
    height, width = window.size_hw
    if scene.plain:
        colour = background.reshape(-1, 3)[int(rng.integers(background.shape[0] * background.shape[1]))]
        return np.asarray(cv2.resize(np.ascontiguousarray(colour[None, None]), (width, height)))
    if scene.T_cam_from_table is None:
        return _warp(background, _wall_from_picture(rng, background, scene), window)
    picture = _draw_table(rng, scene, window, background)
    for placed in scene.placed:
        outline = shadow_outline(placed, scene)
        if outline is not None:
            _darken(picture, outline - (window.x0, window.y0), scene)
    return picture


def _wall_from_picture(rng: np.random.Generator, background: Array, scene: Scene) -> Array:
    """Return the homography (3,3) that hangs the picture behind the scene: turned, larger or smaller, a bit slanted."""
    side = background.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    scale = np.exp(rng.uniform(np.log(0.4), np.log(2.5))) * scene.size_hw[1] / side
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    H = np.eye(3)
    H[:2, :2] = turn
    H[:2, 2] = np.array(scene.size_hw[::-1]) / 2 - turn @ np.full(2, side * rng.uniform(0.3, 0.7))
    H[2, :2] = rng.normal(0, 0.15 / side, 2)
    return H


def _draw_table(rng: np.random.Generator, scene: Scene, window: Window, background: Array) -> Array:
    """Draw the table to its horizon; above it the same picture hangs as a wall, out of focus."""
    T = scene.T_cam_from_table
    assert T is not None
    size_m = scene.placed[0].item.diameter_m * rng.uniform(*_TABLE_PICTURE_DIAMETERS)
    table_from_picture = np.diag([size_m / background.shape[0], size_m / background.shape[0], 1.0])
    table_from_picture[:2, 2] = rng.uniform(-0.7, -0.3, 2) * size_m
    table = _warp(background, scene.K @ T[:3, [0, 1, 3]] @ table_from_picture, window)
    # A pixel's ray meets the table before the camera where it points down at it: linear in x and y.
    x = np.arange(window.x0, window.x1) + 0.5
    y = np.arange(window.y0, window.y1)[:, None] + 0.5
    slope = T[:3, 2] @ np.linalg.inv(scene.K) * np.sign(T[:3, 2] @ T[:3, 3])
    below = slope[0] * x + slope[1] * y + slope[2] > 0.02
    if not below.all():
        wall = cv2.blur(_warp(background, _wall_from_picture(rng, background, scene), window), (9, 9))
        table[~below] = wall[~below]
    return table


def _warp(picture: Array, H_image_from_picture: Array, window: Window) -> Array:
    shift = np.array([[1.0, 0, -window.x0], [0, 1, -window.y0], [0, 0, 1]])
    height, width = window.size_hw
    return np.asarray(
        cv2.warpPerspective(picture, shift @ H_image_from_picture, (width, height), borderMode=cv2.BORDER_REFLECT)
    )


def _darken(picture: Array, outline: Array, scene: Scene) -> None:
    """Darken a picture (h,w,3) within the hull of points (N,2) px, softly."""
    shadow = np.zeros(picture.shape[:2], np.uint8)
    points = np.clip(outline, -4000, 4000).astype(np.int32)
    low, high = points.min(axis=0), points.max(axis=0)
    if (high < 0).any() or (low > picture.shape[1::-1]).any():
        return
    strength = 0.75 * (1 - scene.light.ambient)
    cv2.fillConvexPoly(shadow, cv2.convexHull(points), int(255 * strength), cv2.LINE_AA)
    width = max(int(0.08 * (high - low).max()) | 1, 3)
    soft = cv2.blur(cv2.blur(shadow, (width, width)), (width, width))
    cv2.multiply(picture, cv2.cvtColor(255 - soft, cv2.COLOR_GRAY2RGB), picture, scale=1 / 255)
