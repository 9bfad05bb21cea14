"""Scenes turned into samples: only the part of the image that the crops need is drawn."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from picopose_cli.base.grid import BoxYyxx
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array
from picopose_cli.rendering.rasteriser import Window, depth_in_window, place_mesh
from picopose_cli.synthesis.compose import SceneImage, draw_scene
from picopose_cli.synthesis.roughen import roughen_mask
from picopose_cli.synthesis.samples import MIN_VISIBLE_PX, MIN_VISIBLE_SHARE, CropView, Sample, choose_template
from picopose_cli.synthesis.scenes import Difficulty, Scene, image_box
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask, square_box

_MARGIN_PX = 6
"""Image pixels around a crop that are drawn, too, as input of the blur."""
_SUPERSAMPLED_BOX_PX = 200
"""Objects up to this size are drawn with 2 x 2 samples per pixel; larger ones are shrunk in the crop anyway."""


def observe_scene(
    rng: np.random.Generator, scene: Scene, background_rgb: Array, difficulty: Difficulty
) -> Iterator[Sample]:
    """Yield a sample for each target object of a scene that is visible enough; `background_rgb` (h,w,3) u8."""
    boxes = [image_box(placed, scene.K) for placed in scene.placed[: scene.target_count]]
    window = _needed_window(boxes, scene.size_hw)
    if window.is_empty:
        return
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in boxes]
    image = draw_scene(scene, window, 2 if max(sides) <= _SUPERSAMPLED_BOX_PX else 1, background_rgb)
    for index, placed in enumerate(scene.placed[: scene.target_count]):
        mask = image.visible_mask(index)
        if mask.sum() < MIN_VISIBLE_PX or image.visible_share(index) < MIN_VISIBLE_SHARE:
            continue
        observation = _observe_object(rng, scene, image, index, mask, difficulty)
        view_id = choose_template(rng, placed.item.poses, placed.T_cam_from_obj)
        yield Sample(placed.item.key, placed.item.diameter_m, observation, placed.item.template(view_id))


def _needed_window(boxes: list[Array], size_hw: tuple[int, int]) -> Window:
    """Return the part of the image that contains every square crop around the boxes (4,)."""
    reach = [0.75 * max(box[2] - box[0], box[3] - box[1]) + _MARGIN_PX for box in boxes]
    low = np.min([box[:2] - margin for box, margin in zip(boxes, reach, strict=True)], axis=0)
    high = np.max([box[2:] + margin for box, margin in zip(boxes, reach, strict=True)], axis=0)
    x0, y0 = np.floor(np.clip(low, 0, size_hw[::-1])).astype(int).tolist()
    x1, y1 = np.ceil(np.clip(high, 0, size_hw[::-1])).astype(int).tolist()
    return Window(x0, y0, x1, y1)


def _observe_object(
    rng: np.random.Generator, scene: Scene, image: SceneImage, index: int, mask: Array, difficulty: Difficulty
) -> CropView:
    """Return the observation of one object: the crop around its visible mask (h,w) bool, with sensor effects."""
    detected = roughen_mask(rng, mask) if rng.random() < difficulty.rough_mask_share else mask
    in_image = np.zeros(scene.size_hw, bool)
    in_image[image.window.slices_in(Window(0, 0, *scene.size_hw[::-1]))] = detected
    box_yyxx = square_box(in_image)
    A = crop_affine(box_yyxx).astype(np.float64)
    return CropView(
        crop_rgb=_photographed_crop(rng, image, box_yyxx, difficulty),
        mask=crop_mask(in_image, box_yyxx),
        depth_centre_m=_depth_at_centres(scene, image, index, A),
        K=scene.K,
        A_crop_from_image=A,
        T_cam_from_obj=scene.placed[index].T_cam_from_obj,
    )


def _photographed_crop(rng: np.random.Generator, image: SceneImage, box_yyxx: BoxYyxx, difficulty: Difficulty) -> Array:
    """Return the crop (224,224,3) u8 with sensor effects, which are applied to the box and a margin around it."""
    r0, r1, c0, c1 = box_yyxx
    crop = Window(c0, r0, c1, r1)
    around = Window(c0 - _MARGIN_PX, r0 - _MARGIN_PX, c1 + _MARGIN_PX, r1 + _MARGIN_PX).clipped_to(image.window)
    photo = photograph(rng, image.rgb[around.slices_in(image.window)], difficulty.sensor_strength)
    rows, cols = crop.clipped_to(around).slices_in(around)
    colour = crop_colour(photo, (rows.start, rows.stop, cols.start, cols.stop))
    return np.asarray(cv2.convertScaleAbs(colour, None, 255))


def _depth_at_centres(scene: Scene, image: SceneImage, index: int, A_crop_from_image: Array) -> Array:
    """Return the object's depth (64,64) f32 m exactly at the cells' centres, 0 where another object occludes it.

    Cells are the pixels of a camera whose image is the crop, and pixels are sampled at their centres.
    """
    placed = scene.placed[index]
    A_grid_from_image = np.diag([GRID_CELLS / CROP_PX, GRID_CELLS / CROP_PX, 1.0]) @ A_crop_from_image
    grid = Window(0, 0, GRID_CELLS, GRID_CELLS)
    view = place_mesh(placed.item.lit_mesh.raster_mesh, A_grid_from_image @ scene.K, placed.T_cam_from_obj, grid)
    depth_m = depth_in_window(view, grid)
    centre = np.arange(GRID_CELLS) + 0.5
    A_image_from_grid = np.linalg.inv(A_grid_from_image)
    x = A_image_from_grid[0, 0] * centre + A_image_from_grid[0, 2] - image.window.x0
    y = A_image_from_grid[1, 1] * centre + A_image_from_grid[1, 2] - image.window.y0
    rows, cols = (np.floor(at * image.supersampling).astype(int) for at in (y, x))
    depth_m[image.owner[np.ix_(rows, cols)] != index] = 0
    return depth_m
