"""MegaPose's training images of GSO or ShapeNetCore objects, in shards, combined with template banks.

A folder contains `shard-000000.tar` and so on, `key_to_shard.json` and `gso_models.json` or `shapenet_models.json`. For
each key, such as 000001_000042, a tar contains `KEY.rgb.jpg`, `.depth.png`, `.camera.json`, `.gt.json`, `.gt_info.json`
and `.mask_visib.json` (run lengths by the instance's number). Poses are in mm; there is one bank per object.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import move_origin
from picopose_cli.base.json_numbers import whole_number
from picopose_cli.base.types import Array, TemplateBank
from picopose_cli.bop.json_files import read_json_list, read_json_object
from picopose_cli.synthesis.samples import MIN_VISIBLE_PX, MIN_VISIBLE_SHARE, CropView, Sample, choose_template
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.templates.bank import bank_path, read_bank
from picopose_cli.training.megapose_files import decode_observation, read_shard

Item = TypeVar("Item")
_LOG = logging.getLogger(__name__)

MODEL_LISTS = ("gso_models.json", "shapenet_models.json")
_SHARD = re.compile(r"shard-\d{6}\.tar")
_PARTS = ("rgb.jpg", "depth.png", "camera.json", "gt.json", "gt_info.json", "mask_visib.json")
_ANNOTATIONS = ("gt.json", "gt_info.json")
"""The parts that tell which instances are usable."""
_MAX_BANKS = 16
"""Number of banks that a worker has in memory; one takes about 35 MB."""
_MIN_FAILURES = 1000
"""Number of consecutive unusable instances after which a source gives up, at least ten times the buffer."""


@dataclass(frozen=True)
class ShardOptions:
    """Folders of the shards and of the banks (`obj_000001.h5`, from `render-templates`), and how samples are drawn."""

    folder: Path
    templates: Path
    seed: int = 0
    shuffle: int = 200
    """Number of instances in the buffer from which the next one is drawn."""
    colour_share: float = 0.8
    """Share of the observations with random sensor effects."""


@dataclass(frozen=True)
class _Instance:
    """An object in an image that is not decoded yet."""

    key: str
    parts: dict[str, bytes] = field(repr=False)
    gt_id: int
    obj_id: int


class ShardSource:
    """Samples from tar shards; see `SampleSource`.

    Worker w of n reads shards w, w + n, ... of each epoch's order, or every n-th image where there are fewer shards
    than workers. An entry that cannot be used is logged, counted in `skipped` and replaced by the next one: the number
    of a sample is its place in the stream, so that a run resumes exactly. The instances before the place where it
    resumes are counted once per shard, from the annotations alone.
    """

    def __init__(self, options: ShardOptions) -> None:
        """List the shards; raises PicoPoseError when the folder has none or cannot be read."""
        self.options = options
        self.skipped: Counter[str] = Counter()
        self._is_resuming = False
        self.shards = sorted(path for path in _listing(options.folder) if _SHARD.fullmatch(path.name))
        if not self.shards:
            raise PicoPoseError("contains no shard-000000.tar", where=options.folder, fix="check the download")
        _check_key_list(options.folder, self.shards)
        self.object_names = _read_models(options.folder)
        self._banks: dict[int, TemplateBank] = {}
        self._bank_exists: dict[int, bool] = {}
        self._counts: dict[tuple[int, int], tuple[int, int]] = {}

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        """Yield the samples of share `worker` of `workers`, from its sample number `start` on.

        Raises PicoPoseError when a shard cannot be read or an epoch has no usable instance.
        """
        failures = 0
        for number, instance in enumerate(self._shuffled(worker, workers, start), start):
            sample = self._decode(instance, np.random.default_rng([self.options.seed, 1, worker, number]))
            failures = 0 if sample is not None else failures + 1
            if failures > max(10 * self.options.shuffle, _MIN_FAILURES):
                raise self._nothing_usable()
            if sample is not None:
                for _ in range(start, number + 1):  # its own place and those of unusable ones before it
                    yield sample
                start = number + 1

    def _shuffled(self, worker: int, workers: int, start: int) -> Iterator[_Instance]:
        """Yield instances in random order, drawn from a buffer, from draw number `start` on."""
        rng = np.random.default_rng([self.options.seed, 0, worker, workers])
        numbers = list(range(self.options.shuffle)) if start else []
        end = len(numbers) + start
        for number in range(len(numbers), end):  # the draws before, of the instances' numbers
            numbers.append(number)
            _draw(rng, numbers)
        first = min([*numbers, end - 1]) if start else 0
        instances = self._in_order(worker, workers, first)
        buffer = self._refill(instances, numbers, range(first, end))
        for instance in instances:
            buffer.append(instance)
            if len(buffer) > self.options.shuffle:
                yield _draw(rng, buffer)

    def _refill(self, instances: Iterator[_Instance], numbers: Sequence[int], read: range) -> list[_Instance]:
        """Return the instances with these numbers; `read` are the numbers of the next ones, up to where a run ended."""
        wanted = set(numbers)
        self._is_resuming = True
        kept = {number: instance for number, instance in zip(read, instances, strict=False) if number in wanted}
        self._is_resuming = False
        return [kept[number] for number in numbers]

    def _in_order(self, worker: int, workers: int, first: int = 0) -> Iterator[_Instance]:
        """Yield usable instances shard by shard, epoch by epoch, from number `first` on."""
        share_shards = len(self.shards) >= workers
        part = slice(worker, None, workers) if share_shards else slice(None)
        modulus, remainder = (1, 0) if share_shards else (workers, worker)
        for epoch in count():
            order = np.random.default_rng([self.options.seed, 2, epoch]).permutation(len(self.shards))
            found, position = 0, 0
            for shard in order[part].tolist():
                if first:
                    images, usable = self._count(shard, modulus, (remainder - position) % modulus)
                    if usable < first:
                        first, found, position = first - usable, found + usable, position + images
                        continue
                for key, parts in read_shard(self.shards[shard]):
                    position += 1
                    for instance in self._usable(key, parts) if position % modulus == remainder else ():
                        found += 1
                        if first:
                            first -= 1
                        else:
                            yield instance
            if not found:
                raise self._nothing_usable()

    def _count(self, shard: int, modulus: int, remainder: int) -> tuple[int, int]:
        """Return the numbers of images of a shard, and of usable instances of every image whose number has a remainder.

        Images are numbered from 1.
        """
        if (shard, remainder) not in self._counts:
            images = usable = 0
            for key, parts in read_shard(self.shards[shard], _ANNOTATIONS):
                images += 1
                if images % modulus == remainder:
                    usable += sum(1 for _ in self._usable(key, parts))
            self._counts[shard, remainder] = images, usable
        return self._counts[shard, remainder]

    def _usable(self, key: str, parts: dict[str, bytes]) -> Iterator[_Instance]:
        """Yield the instances of an image that are visible enough and have a template bank."""
        missing = [name for name in _PARTS if name not in parts]
        if missing:
            self._skip(key, f"{missing[0]} is missing")
            return
        try:
            truths, infos = json.loads(parts["gt.json"]), json.loads(parts["gt_info.json"])
            visible = [_is_visible(info) for info in infos]
            ids = [whole_number(truth["obj_id"]) for truth in truths]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._skip(key, f"the annotations are broken ({type(error).__name__})")
            return
        if len(visible) != len(ids):
            self._skip(key, "gt.json and gt_info.json differ in length")
            return
        for gt_id, (obj_id, is_visible) in enumerate(zip(ids, visible, strict=True)):
            if is_visible and obj_id is not None and self._has_bank(obj_id):
                yield _Instance(key, parts, gt_id, obj_id)

    def _has_bank(self, obj_id: int) -> bool:
        if obj_id not in self._bank_exists:
            self._bank_exists[obj_id] = bank_path(self.options.templates, obj_id).is_file()
            if not self._bank_exists[obj_id]:
                self._skip(f"obj_{obj_id:06d}", "no template bank")
        return self._bank_exists[obj_id]

    def _bank(self, obj_id: int) -> TemplateBank:
        """Return an object's bank, from memory if possible; raises PicoPoseError when it cannot be read."""
        if obj_id not in self._banks:
            while len(self._banks) >= _MAX_BANKS:
                del self._banks[next(iter(self._banks))]
            self._banks[obj_id] = read_bank(bank_path(self.options.templates, obj_id))
        return self._banks[obj_id]

    def _decode(self, instance: _Instance, rng: np.random.Generator) -> Sample | None:
        try:
            bank = self._bank(instance.obj_id)
            observation = decode_observation(instance.parts, instance.gt_id)
        except PicoPoseError as error:
            self._skip(instance.key, error.what)
            return None
        # about the centre that the templates show, as in inference
        observation = replace(observation, T_cam_from_obj=move_origin(observation.T_cam_from_obj, bank.centre_m))
        T_tmpl_from_centre = move_origin(bank.T_tmpl_from_obj, bank.centre_m)
        view_id = choose_template(rng, T_tmpl_from_centre, observation.T_cam_from_obj)
        key = self.object_names.get(instance.obj_id, f"obj_{instance.obj_id:06d}")
        if rng.random() < self.options.colour_share:
            observation = replace(observation, crop_rgb=photograph(rng, observation.crop_rgb, strength=1.0))
        return Sample(key, bank.diameter_m, observation, _template(bank, view_id, T_tmpl_from_centre[view_id]))

    def _skip(self, key: str, reason: str) -> None:
        if self._is_resuming:  # counted by the run before
            return
        self.skipped[reason] += 1
        _LOG.warning("%s: %s is skipped: %s", self.options.folder.name, key, reason)

    def _nothing_usable(self) -> PicoPoseError:
        frequent = [f"{reason} ({times}x)" for reason, times in self.skipped.most_common(3)]
        reasons = ", ".join(frequent) or "no object is visible enough"
        return PicoPoseError(
            f"no usable instance in the shards: {reasons}",
            where=self.options.folder,
            fix="check that --templates contains banks named obj_000001.h5",
        )


def _draw(rng: np.random.Generator, buffer: list[Item]) -> Item:
    """Remove a random element of a list and return it; the last one takes its place."""
    index = int(rng.integers(len(buffer)))
    buffer[index], buffer[-1] = buffer[-1], buffer[index]
    return buffer.pop()


def _template(bank: TemplateBank, view_id: int, T_tmpl_from_centre: Array) -> CropView:
    return CropView(
        crop_rgb=bank.crops_rgb[view_id],
        mask=bank.masks[view_id],
        depth_centre_m=bank.depth_centre_m[view_id],
        K=np.asarray(bank.K, np.float64),
        A_crop_from_image=bank.A_crop_from_image[view_id].astype(np.float64),
        T_cam_from_obj=T_tmpl_from_centre,
    )


def _is_visible(info: dict[str, Any]) -> bool:
    return bool(info["px_count_visib"] >= MIN_VISIBLE_PX and float(info["visib_fract"]) >= MIN_VISIBLE_SHARE)


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        reason = error.strerror or str(error)
        raise PicoPoseError(
            f"cannot be listed ({reason})", where=folder, fix="pass the folder of the shards"
        ) from error


def _check_key_list(folder: Path, shards: list[Path]) -> None:
    """Warn of shards that the list of keys names but the folder lacks, as after an incomplete download."""
    path = folder / "key_to_shard.json"
    if not path.is_file():
        return
    numbers = {whole_number(shard) for shard in read_json_object(path).values()}
    present = {int(shard.stem.removeprefix("shard-")) for shard in shards}
    missing = sorted(number for number in numbers if number is not None and number not in present)
    if missing:
        _LOG.warning("%s: %d of %d shards are missing, such as %06d", folder, len(missing), len(numbers), missing[0])


def _read_models(folder: Path) -> dict[int, str]:
    """Return the objects' names by obj_id from the list of models; raises PicoPoseError when there is no list."""
    for name in MODEL_LISTS:
        if (folder / name).is_file():
            prefix = name.removesuffix("_models.json")
            models = [entry for entry in read_json_list(folder / name) if isinstance(entry, dict)]
            return {entry["obj_id"]: f"{prefix}-{entry['obj_id']}" for entry in models if "obj_id" in entry}
    raise PicoPoseError(f"contains neither {MODEL_LISTS[0]} nor {MODEL_LISTS[1]}", where=folder, fix="download it too")
