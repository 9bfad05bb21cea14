"""Draw a scene, or a window of its image: lit objects that occlude each other, shadows, and a background."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.rendering.rasteriser import Window, place_mesh, rasterise_both
from picopose_cli.synthesis.lighting import colour_samples, light_mesh
from picopose_cli.synthesis.scenes import PlacedObject, Scene, shadow_outline

BACKGROUND_OWNER = -1
"""Owner of a sample that shows the background."""
_TABLE_TEXTURE_DIAMETERS = (3.0, 9.0)
"""Side of the table's texture, in diameters of the first object."""


@dataclass(frozen=True)
class SceneImage:
    """The drawn window of a scene's image.

    `rgb` (h,w,3) u8. With s = `supersampling`, each pixel has s x s samples: `owner` (h s, w s) i8, the index of the
    object that the sample shows, and `depth_m` (h s, w s) f32, 0 in the background. `counts` (N,) is the number of
    samples that each object would cover within the window without the others.
    """

    rgb: Array
    owner: Array
    depth_m: Array
    counts: Array
    window: Window
    supersampling: int

    def visible_mask(self, index: int) -> Array:
        """Return the visible mask (h,w) bool of an object: the pixels of which it covers at least half."""
        shown = (self.owner == index).astype(np.uint8)
        if self.supersampling == 1:
            return np.asarray(shown, bool)
        share = cv2.resize(shown * np.uint8(252), self.rgb.shape[1::-1], interpolation=cv2.INTER_AREA)
        return np.asarray(share >= 126)

    def visible_share(self, index: int) -> float:
        """Return the share of an object's samples that is not occluded."""
        return float((self.owner == index).sum() / max(self.counts[index], 1))


def draw_scene(scene: Scene, window: Window, supersampling: int, background_rgb: Array) -> SceneImage:
    """Return the image of `window`, with `supersampling` squared samples per pixel.

    `background_rgb` (H,W,3) u8 is the texture of the table and of the wall behind the scene.
    """
    height, width = (supersampling * side for side in window.size_hw)
    colours = np.zeros((height, width, 3), np.uint8)
    depth_m = np.full((height, width), np.inf, np.float32)
    owner = np.full((height, width), BACKGROUND_OWNER, np.int8)
    counts = np.zeros(len(scene.placed), np.int64)
    for index, placed in enumerate(scene.placed):
        counts[index] = _draw_object(placed, index, scene, window, supersampling, (colours, depth_m, owner))
    depth_m[owner == BACKGROUND_OWNER] = 0
    rgb = _composite(colours, owner, _draw_background(scene, window, background_rgb), supersampling)
    return SceneImage(rgb, owner, depth_m, counts, window, supersampling)


def _draw_object(
    placed: PlacedObject,
    index: int,
    scene: Scene,
    window: Window,
    supersampling: int,
    canvas: tuple[Array, Array, Array],
) -> int:
    """Draw one object where it is nearer than what is drawn already; return the number of samples it covers.

    `canvas` holds the colours, depths and owners of all samples of the window, and is changed in place.
    """
    K = np.diag([supersampling, supersampling, 1.0]) @ scene.K
    fine = Window(*(supersampling * side for side in (window.x0, window.y0, window.x1, window.y1)))
    lit_mesh = placed.item.lit_mesh
    mesh = light_mesh(lit_mesh, scene.light, placed.T_cam_from_obj, placed.paint_rgb, placed.item.material)
    view = place_mesh(mesh, K, placed.T_cam_from_obj, fine)
    if view is None:
        return 0
    attributes, depth_m = rasterise_both(view)
    colours, nearest, owner = (array[view.window.slices_in(fine)] for array in canvas)
    covered = depth_m > 0
    shown = covered & (depth_m < nearest)
    if shown.any():
        rgb = colour_samples(lit_mesh, attributes, placed.T_cam_from_obj, K[0, 0] / placed.T_cam_from_obj[2, 3])
        mask = shown.view(np.uint8)
        for source, target in ((rgb, colours), (depth_m, nearest)):
            cv2.copyTo(source, mask, target)
        owner[shown] = index
    return int(covered.sum())


def _composite(colours: Array, owner: Array, background: Array, supersampling: int) -> Array:
    """Return samples (black without an object) over a background (h,w,3): pixels at an edge mix both."""
    covered = (owner != BACKGROUND_OWNER).view(np.uint8) * np.uint8(255)
    size_wh = background.shape[1::-1]
    if supersampling > 1:
        colours, covered = (cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) for image in (colours, covered))
    uncovered = cv2.cvtColor(255 - covered, cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.add(colours, cv2.multiply(background, uncovered, scale=1 / 255)))


def _draw_background(scene: Scene, window: Window, texture: Array) -> Array:
    """Return the background (h,w,3) u8 of a window: one colour, a wall, or a table with shadows before a wall."""
    rng = np.random.default_rng(scene.background_seed)
    height, width = window.size_hw
    if scene.plain_background:
        colour = texture.reshape(-1, 3)[int(rng.integers(texture.shape[0] * texture.shape[1]))]
        return np.asarray(cv2.resize(np.ascontiguousarray(colour[None, None]), (width, height)))
    if scene.T_cam_from_table is None:
        return _warp(texture, _wall_homography(rng, texture, scene), window)
    image = _draw_table(rng, scene, window, texture)
    for placed in scene.placed:
        outline = shadow_outline(placed, scene)
        if outline is not None:
            _draw_shadow(image, outline - (window.x0, window.y0), scene)
    return image


def _wall_homography(rng: np.random.Generator, texture: Array, scene: Scene) -> Array:
    """Return H_image_from_texture (3,3) of a wall behind the scene: randomly rotated, scaled and slightly slanted."""
    side = texture.shape[0]
    angle = rng.uniform(0, 2 * np.pi)
    scale = np.exp(rng.uniform(np.log(0.4), np.log(2.5))) * scene.size_hw[1] / side
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    H = np.eye(3)
    H[:2, :2] = rotation
    H[:2, 2] = np.array(scene.size_hw[::-1]) / 2 - rotation @ np.full(2, side * rng.uniform(0.3, 0.7))
    H[2, :2] = rng.normal(0, 0.15 / side, 2)
    return H


def _draw_table(rng: np.random.Generator, scene: Scene, window: Window, texture: Array) -> Array:
    """Return the table (h,w,3) u8 up to its horizon, above it a wall of the same texture, out of focus."""
    T = scene.T_cam_from_table
    assert T is not None
    size_m = scene.placed[0].item.diameter_m * rng.uniform(*_TABLE_TEXTURE_DIAMETERS)
    A_table_from_texture = np.diag([size_m / texture.shape[0], size_m / texture.shape[0], 1.0])
    A_table_from_texture[:2, 2] = rng.uniform(-0.7, -0.3, 2) * size_m
    table = _warp(texture, scene.K @ T[:3, [0, 1, 3]] @ A_table_from_texture, window)
    # A pixel's ray meets the table in front of the camera where it points down at it: linear in x and y.
    x = np.arange(window.x0, window.x1) + 0.5
    y = np.arange(window.y0, window.y1)[:, None] + 0.5
    slope = T[:3, 2] @ np.linalg.inv(scene.K) * np.sign(T[:3, 2] @ T[:3, 3])
    below = slope[0] * x + slope[1] * y + slope[2] > 0.02
    if not below.all():
        wall = cv2.blur(_warp(texture, _wall_homography(rng, texture, scene), window), (9, 9))
        table[~below] = wall[~below]
    return table


def _warp(texture: Array, H_image_from_texture: Array, window: Window) -> Array:
    """Return the window (h,w,3) of the image of a texture, mirrored beyond its border."""
    shift = np.array([[1.0, 0, -window.x0], [0, 1, -window.y0], [0, 0, 1]])
    height, width = window.size_hw
    return np.asarray(
        cv2.warpPerspective(texture, shift @ H_image_from_texture, (width, height), borderMode=cv2.BORDER_REFLECT)
    )


def _draw_shadow(image: Array, outline: Array, scene: Scene) -> None:
    """Darken an image (h,w,3) within the convex hull of points (N,2) px, with a soft border, in place."""
    shadow = np.zeros(image.shape[:2], np.uint8)
    points = np.clip(outline, -4000, 4000).astype(np.int32)
    low, high = points.min(axis=0), points.max(axis=0)
    if (high < 0).any() or (low > image.shape[1::-1]).any():
        return
    strength = 0.75 * (1 - scene.light.ambient)
    cv2.fillConvexPoly(shadow, cv2.convexHull(points), int(255 * strength), cv2.LINE_AA)
    width = max(int(0.08 * (high - low).max()) | 1, 3)
    soft = cv2.blur(cv2.blur(shadow, (width, width)), (width, width))
    cv2.multiply(image, cv2.cvtColor(255 - soft, cv2.COLOR_GRAY2RGB), image, scale=1 / 255)
