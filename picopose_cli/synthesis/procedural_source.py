"""The endless source: samples of random scenes, each reproducible by its number.

Scene number s of a worker is made from (seed, worker, s) alone: its objects and backgrounds are a window that slides
along two endless rows of them. So any sample can be made without those before it, and a consumer resumes exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Array
from picopose_cli.synthesis.mesh_folder import MeshFolder
from picopose_cli.synthesis.objects import SyntheticObject, make_procedural_object
from picopose_cli.synthesis.observe import observe_scene
from picopose_cli.synthesis.samples import Sample
from picopose_cli.synthesis.scenes import Difficulty, random_scene
from picopose_cli.synthesis.seeds import BACKGROUNDS, OBJECTS, SCENES
from picopose_cli.synthesis.textures import paint_background


@dataclass(frozen=True)
class ProceduralOptions:
    """Content and difficulty of the samples."""

    seed: int = 0
    objects: Path | None = None
    """Folder of meshes that are used besides the procedural ones."""
    folder_share: float = 0.3
    """Share of objects from the folder, where there is one."""
    level_start: float = 0.0
    level_end: float = 1.0
    ramp_samples: int = 400_000
    """Number of samples, of all workers together, over which the level of difficulty rises from its start to its
    end."""
    pool: int = 16
    """Number of objects in use at a time, in each worker."""
    samples_per_object: int = 32
    """After this many samples the oldest object of a worker's pool is replaced."""
    samples_per_scene: int = 4

    def __post_init__(self) -> None:
        levels_fit = 0 <= self.level_start <= 1 and 0 <= self.level_end <= 1 and 0 <= self.folder_share <= 1
        if not levels_fit or min(self.pool, self.samples_per_object, self.samples_per_scene) < 1:
            raise PicoPoseError("levels and shares must be within [0, 1], counts at least 1", where="procedural source")

    def level(self, samples_so_far: int) -> float:
        """Return the level of difficulty after this many samples of all workers together."""
        share = min(samples_so_far / self.ramp_samples, 1.0) if self.ramp_samples > 0 else 1.0
        return self.level_start + (self.level_end - self.level_start) * share


class ProceduralSource:
    """Samples of procedural objects and of a folder's meshes; see `SampleSource`."""

    def __init__(self, options: ProceduralOptions) -> None:
        """List the folder's meshes where there is one; raises PicoPoseError when it cannot be used."""
        self.options = options
        self.folder = None if options.objects is None else MeshFolder(options.objects)

    @property
    def skipped(self) -> Counter[str]:
        """The meshes of the folder that could not be used so far."""
        problems = {} if self.folder is None else self.folder.problems
        return Counter(f"{path.name}: {error.what}" for path, error in problems.items())

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        """Yield the samples of share `worker` of `workers`, from its sample number `start` on."""
        window = _SlidingWindow(self.options, self.folder, worker)
        per_scene = self.options.samples_per_scene
        skipped = start % per_scene
        for scene in count(start // per_scene):
            level = self.options.level(scene * per_scene * workers)
            yield from islice(self._scene_samples(window, worker, scene, level), skipped, per_scene)
            skipped = 0

    def _scene_samples(self, window: _SlidingWindow, worker: int, number: int, level: float) -> Iterator[Sample]:
        """Yield samples of one scene after another, without end: a scene may have fewer visible objects than needed."""
        rng = np.random.default_rng([self.options.seed, SCENES, worker, number])
        pool = window.objects(number * self.options.samples_per_scene)
        while True:
            # Some samples stay easier, at every level.
            difficulty = Difficulty.at(level * (1.0 if rng.random() < 0.7 else rng.random()))
            scene = random_scene(rng, pool, difficulty, backgrounds=_SlidingWindow.BACKGROUNDS)
            yield from observe_scene(rng, scene, window.background(number, scene.background_index), difficulty)


class _SlidingWindow:
    """The objects and backgrounds in use by a worker; each is made when first needed and dropped when left behind."""

    BACKGROUNDS = 8
    _SCENES_PER_BACKGROUND = 16

    def __init__(self, options: ProceduralOptions, folder: MeshFolder | None, worker: int) -> None:
        self._options, self._folder, self._worker = options, folder, worker
        self._objects: dict[int, SyntheticObject] = {}
        self._backgrounds: dict[int, Array] = {}

    def objects(self, sample: int) -> list[SyntheticObject]:
        """Return the pool of objects for a sample number."""
        first = sample // self._options.samples_per_object
        needed = range(first, first + self._options.pool)
        self._objects = {i: self._objects[i] if i in self._objects else self._make_object(i) for i in needed}
        return list(self._objects.values())

    def background(self, scene: int, index: int) -> Array:
        """Return background (h,w,3) u8 number `index` of those in use for a scene number."""
        first = scene // self._SCENES_PER_BACKGROUND
        self._backgrounds = {i: image for i, image in self._backgrounds.items() if i >= first}
        number = first + index
        if number not in self._backgrounds:
            rng = np.random.default_rng([self._options.seed, BACKGROUNDS, self._worker, number])
            self._backgrounds[number] = paint_background(rng)
        return self._backgrounds[number]

    def _make_object(self, index: int) -> SyntheticObject:
        seed = [self._options.seed, OBJECTS, self._worker, index]
        key = f"w{self._worker}-{index}"
        from_folder = np.random.default_rng(seed).random() < self._options.folder_share
        if self._folder is not None and from_folder:
            return self._folder.make_object([*seed, 1], key)
        return make_procedural_object([*seed, 1], key)
