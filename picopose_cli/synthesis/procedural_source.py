"""The endless source: scenes made from a seed, cut into samples without ever drawing more than the crops need.

Scene number s of a worker is made from (seed, worker, s) alone: its objects and backgrounds are a window that slides
along two endless rows of them. So any sample can be asked for without those before it, and a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import CROP_PX, GRID_CELLS, Array
from picopose_cli.rendering.rasteriser import Window, place_mesh, rasterise_depth
from picopose_cli.synthesis.compose import SceneImage, draw_scene
from picopose_cli.synthesis.objects import MeshFolder, SyntheticObject, make_procedural_object, nearest_views
from picopose_cli.synthesis.roughen import roughen_mask
from picopose_cli.synthesis.samples import CropView, Sample
from picopose_cli.synthesis.scenes import Difficulty, PlacedObject, Scene, image_box, random_scene
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.synthesis.textures import paint_background
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask, square_box

MIN_VISIBLE_PX, MIN_VISIBLE_SHARE = 1024, 0.3
NEAREST_VIEWS = 5
_MARGIN_PX = 6
"""Of image around a crop, so that blur has something to draw on."""
_FINE_BOX_PX = 200
"""Objects up to this size are drawn with 2 x 2 samples a pixel; larger ones are shrunk on their way into the crop."""
_OBJECTS, _SCENES, _PICTURES = 0, 1, 2
"""Kinds of things that are made from a seed: each has a stream of its own."""


@dataclass(frozen=True)
class ProceduralOptions:
    """What the source makes: see each field."""

    seed: int = 0
    objects: Path | None = None
    """Folder of meshes to mix with the procedural ones."""
    folder_share: float = 0.3
    """Share of objects from the folder, where there is one."""
    level_start: float = 0.0
    level_end: float = 1.0
    ramp_samples: int = 400_000
    """Samples, of all workers together, over which the level of difficulty rises from its start to its end."""
    pool: int = 16
    """Objects in use at a time, in each worker."""
    samples_per_object: int = 32
    """After this many samples the oldest object of a worker's pool is replaced."""
    samples_per_scene: int = 4

    def __post_init__(self) -> None:
        levels_fit = 0 <= self.level_start <= 1 and 0 <= self.level_end <= 1 and 0 <= self.folder_share <= 1
        if not levels_fit or min(self.pool, self.samples_per_object, self.samples_per_scene) < 1:
            raise PicoPoseError("levels and shares lie in [0, 1], counts from 1 on", where="training data")

    def level(self, samples_so_far: int) -> float:
        """Return the level of difficulty after this many samples of all workers together."""
        share = min(samples_so_far / self.ramp_samples, 1.0) if self.ramp_samples > 0 else 1.0
        return self.level_start + (self.level_end - self.level_start) * share


class ProceduralSource:
    """Samples of procedural objects and of a folder's meshes; see `SampleSource`."""

    def __init__(self, options: ProceduralOptions) -> None:
        """List the folder's meshes where there is one; raises PicoPoseError when that cannot be used."""
        self.options = options
        self.folder = None if options.objects is None else MeshFolder(options.objects)

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        """Yield the samples of share `worker` of `workers` from number `start` on, for ever."""
        shelf = _Shelf(self.options, self.folder, worker)
        per_scene = self.options.samples_per_scene
        skipped = start % per_scene
        for scene in count(start // per_scene):
            level = self.options.level(scene * per_scene * workers)
            yield from islice(self._scene_samples(shelf, worker, scene, level), skipped, per_scene)
            skipped = 0

    def _scene_samples(self, shelf: _Shelf, worker: int, scene: int, level: float) -> Iterator[Sample]:
        """Yield samples of scene after scene without end; the caller takes as many as it wants."""
        rng = np.random.default_rng([self.options.seed, _SCENES, worker, scene])
        pool = shelf.objects(scene * self.options.samples_per_scene)
        while True:
            # Easier ones stay in the mix: they hold the gradient of what is learnt last.
            difficulty = Difficulty.at(level * (1.0 if rng.random() < 0.7 else rng.random()))
            drawn = random_scene(rng, pool, difficulty, pictures=_Shelf.PICTURES)
            background = shelf.background(scene, drawn.picture)
            yield from cut_samples(rng, drawn, background, difficulty)


class _Shelf:
    """The objects and backgrounds that a worker has in use; each made when it is needed, kept while in the window."""

    PICTURES = 8
    _SCENES_PER_PICTURE = 16

    def __init__(self, options: ProceduralOptions, folder: MeshFolder | None, worker: int) -> None:
        self._options, self._folder, self._worker = options, folder, worker
        self._objects: dict[int, SyntheticObject] = {}
        self._pictures: dict[int, Array] = {}

    def objects(self, sample: int) -> list[SyntheticObject]:
        """Return the pool of objects at a sample's number."""
        first = sample // self._options.samples_per_object
        wanted = range(first, first + self._options.pool)
        self._objects = {i: self._objects[i] if i in self._objects else self._make(i) for i in wanted}
        return list(self._objects.values())

    def background(self, scene: int, picture: int) -> Array:
        """Return picture number `picture` of those in use at a scene."""
        first = scene // self._SCENES_PER_PICTURE
        self._pictures = {i: image for i, image in self._pictures.items() if i >= first}
        index = first + picture
        if index not in self._pictures:
            rng = np.random.default_rng([self._options.seed, _PICTURES, self._worker, index])
            self._pictures[index] = paint_background(rng)
        return self._pictures[index]

    def _make(self, index: int) -> SyntheticObject:
        seed = [self._options.seed, _OBJECTS, self._worker, index]
        key = f"w{self._worker}-{index}"
        from_folder = np.random.default_rng(seed).random() < self._options.folder_share
        if self._folder is not None and from_folder:
            return self._folder.make_object([*seed, 1], key)
        return make_procedural_object([*seed, 1], key)


def cut_samples(rng: np.random.Generator, scene: Scene, background: Array, difficulty: Difficulty) -> Iterator[Sample]:
    """Draw as much of a scene as is needed and yield a sample for each wanted object that is seen well enough."""
    boxes = [image_box(placed, scene.K) for placed in scene.placed[: scene.wanted]]
    window = _needed_window(boxes, scene.size_hw)
    if window.is_empty:
        return
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in boxes]
    picture = draw_scene(scene, window, 2 if max(sides) <= _FINE_BOX_PX else 1, background)
    for index, placed in enumerate(scene.placed[: scene.wanted]):
        mask = picture.visible(index)
        if mask.sum() < MIN_VISIBLE_PX or picture.visible_share(index) < MIN_VISIBLE_SHARE:
            continue
        observation = _observe(rng, scene, picture, index, mask, difficulty)
        poses = placed.item.poses
        view_id = int(rng.choice(nearest_views(poses, placed.T_cam_from_obj, NEAREST_VIEWS)))
        yield Sample(placed.item.key, placed.item.diameter_m, observation, placed.item.template(view_id))


def _needed_window(boxes: list[Array], size_hw: tuple[int, int]) -> Window:
    """Return the part of the image in which every square crop around the boxes (4,) must lie."""
    reach = [0.75 * max(box[2] - box[0], box[3] - box[1]) + _MARGIN_PX for box in boxes]
    low = np.min([box[:2] - margin for box, margin in zip(boxes, reach, strict=True)], axis=0)
    high = np.max([box[2:] + margin for box, margin in zip(boxes, reach, strict=True)], axis=0)
    x0, y0 = np.floor(np.clip(low, 0, size_hw[::-1])).astype(int).tolist()
    x1, y1 = np.ceil(np.clip(high, 0, size_hw[::-1])).astype(int).tolist()
    return Window(x0, y0, x1, y1)


def _observe(
    rng: np.random.Generator, scene: Scene, picture: SceneImage, index: int, mask: Array, difficulty: Difficulty
) -> CropView:
    """Return the observation of one object: the crop around its mask (h,w) bool, as a camera would have taken it."""
    seen = roughen_mask(rng, mask) if rng.random() < difficulty.rough_share else mask
    in_image = np.zeros(scene.size_hw, bool)
    in_image[picture.window.slices_in(Window(0, 0, *scene.size_hw[::-1]))] = seen
    r0, r1, c0, c1 = square_box(in_image)
    crop = Window(c0, r0, c1, r1)
    around = Window(c0 - _MARGIN_PX, r0 - _MARGIN_PX, c1 + _MARGIN_PX, r1 + _MARGIN_PX).clipped_to(picture.window)
    photo = photograph(rng, picture.rgb[around.slices_in(picture.window)], difficulty.sensor)
    rows, cols = crop.clipped_to(around).slices_in(around)
    colour = crop_colour(photo, (rows.start, rows.stop, cols.start, cols.stop))
    A = crop_affine((r0, r1, c0, c1)).astype(np.float64)
    return CropView(
        crop_rgb=np.asarray(cv2.convertScaleAbs(colour, None, 255)),
        mask=crop_mask(in_image, (r0, r1, c0, c1)),
        depth_centre_m=_depth_at_centres(scene.placed[index], index, scene, picture, A),
        K=scene.K,
        A_crop_from_image=A,
        T_cam_from_obj=scene.placed[index].T_cam_from_obj,
    )


def _depth_at_centres(
    placed: PlacedObject, index: int, scene: Scene, picture: SceneImage, A_crop_from_image: Array
) -> Array:
    """Return the object's depth (64,64) f32 exactly at the cells' centres, 0 where another object hides it.

    A cell is a pixel of a camera that looks through the crop, and pixels are sampled at their centres.
    """
    grid_from_crop = np.diag([GRID_CELLS / CROP_PX, GRID_CELLS / CROP_PX, 1.0])
    K = grid_from_crop @ A_crop_from_image @ scene.K
    depth_m = np.zeros((GRID_CELLS, GRID_CELLS), np.float32)
    grid = Window(0, 0, GRID_CELLS, GRID_CELLS)
    view = place_mesh(placed.item.lit.raster_mesh, K, placed.T_cam_from_obj, grid)
    if view is not None:
        depth_m[view.window.slices_in(grid)] = rasterise_depth(view)
    centre = np.arange(GRID_CELLS) + 0.5
    image_from_grid = np.linalg.inv(grid_from_crop @ A_crop_from_image)
    x = image_from_grid[0, 0] * centre + image_from_grid[0, 2] - picture.window.x0
    y = image_from_grid[1, 1] * centre + image_from_grid[1, 2] - picture.window.y0
    rows, cols = np.floor(y * picture.samples).astype(int), np.floor(x * picture.samples).astype(int)
    depth_m[picture.owner[np.ix_(rows, cols)] != index] = 0
    return depth_m
