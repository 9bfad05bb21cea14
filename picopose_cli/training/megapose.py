"""Ready-made training images: MegaPose's GSO and ShapeNetCore as BOP web-dataset shards, with our template banks.

A folder holds `shard-000000.tar` and so on, `key_to_shard.json` and `gso_models.json` or `shapenet_models.json`. For
each key, such as 000001_000042, a tar holds `KEY.rgb.jpg`, `.depth.png`, `.camera.json`, `.gt.json`, `.gt_info.json`
and `.mask_visib.json` (run lengths by the instance's number). Poses are in mm; the banks, one an object, in metres.
"""

from __future__ import annotations

import json
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T
from picopose_cli.base.grid import cell_centre_pixels
from picopose_cli.base.json_numbers import finite_numbers, whole_number
from picopose_cli.base.types import Array, Rle, TemplateBank
from picopose_cli.bop.json_files import read_json_list, read_json_object
from picopose_cli.bop.rle import decode_rle
from picopose_cli.synthesis.samples import MIN_VISIBLE_PX, MIN_VISIBLE_SHARE, CropView, Sample, choose_template
from picopose_cli.synthesis.sensor import photograph
from picopose_cli.templates.bank import bank_path, read_bank
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask, square_box

_LOG = logging.getLogger(__name__)

MODEL_LISTS = ("gso_models.json", "shapenet_models.json")
_SHARD = re.compile(r"shard-\d{6}\.tar")
_PARTS = ("rgb.jpg", "depth.png", "camera.json", "gt.json", "gt_info.json", "mask_visib.json")
_BANKS_KEPT = 16
"""In memory, in each worker: a bank takes some 35 MB."""


@dataclass(frozen=True)
class ShardOptions:
    """Where the shards and the banks (`obj_000001.h5`, from `render-templates`) lie, and how they are mixed."""

    folder: Path
    templates: Path
    seed: int = 0
    shuffle: int = 200
    """Instances in the buffer from which the next one is drawn."""
    colour_share: float = 0.8
    """Share of the observations whose colours are changed as another camera and light would, as in the recipe."""


@dataclass(frozen=True)
class _Instance:
    """An object in an image that has not been decoded yet."""

    key: str
    parts: dict[str, bytes] = field(repr=False)
    gt_id: int
    obj_id: int


class ShardSource:
    """Samples from tar shards; see `SampleSource`.

    Worker w of n reads shards w, w + n, ... of each epoch's order, or every n-th image where there are too few shards.
    An entry that cannot be used is logged and counted in `problems`, and its place is taken by the next: a sample's
    number stays its place in the stream, so that a run resumes exactly.
    """

    def __init__(self, options: ShardOptions) -> None:
        """Check that the folder is complete; raises PicoPoseError when it is not."""
        self.options = options
        self.problems: Counter[str] = Counter()
        self.shards = sorted(path for path in _listing(options.folder) if _SHARD.fullmatch(path.name))
        if not self.shards:
            raise PicoPoseError("holds no shard-000000.tar", where=options.folder, fix="check the download")
        _check_key_list(options.folder, self.shards)
        self.object_names = _read_models(options.folder)
        self._banks: dict[int, TemplateBank] = {}
        self._has: dict[int, bool] = {}

    def samples(self, worker: int, workers: int, start: int) -> Iterator[Sample]:
        """Yield the samples of share `worker` of `workers` from number `start` on, for ever.

        Raises PicoPoseError when a shard cannot be read or an epoch holds nothing that can be used.
        """
        failures = 0
        for number, instance in enumerate(self._shuffled(worker, workers)):
            if number < start:
                continue
            sample = self._decode(instance, np.random.default_rng([self.options.seed, 1, worker, number]))
            failures = 0 if sample is not None else failures + 1
            if failures > max(10 * self.options.shuffle, 1000):
                raise self._nothing_usable()
            if sample is not None:
                for _ in range(start, number + 1):  # the places of what could not be used before it, and its own
                    yield sample
                start = number + 1

    def _shuffled(self, worker: int, workers: int) -> Iterator[_Instance]:
        rng = np.random.default_rng([self.options.seed, 0, worker, workers])
        buffer: list[_Instance] = []
        for instance in self._in_order(worker, workers):
            buffer.append(instance)
            if len(buffer) > self.options.shuffle:
                index = int(rng.integers(len(buffer)))
                buffer[index], buffer[-1] = buffer[-1], buffer[index]
                yield buffer.pop()

    def _in_order(self, worker: int, workers: int) -> Iterator[_Instance]:
        """Yield usable instances shard by shard, epoch by epoch."""
        share_shards = len(self.shards) >= workers
        for epoch in count():
            order = np.random.default_rng([self.options.seed, 2, epoch]).permutation(len(self.shards))
            found, position = 0, 0
            for shard in order[worker::workers] if share_shards else order:
                for key, parts in read_shard(self.shards[int(shard)]):
                    position += 1
                    if not share_shards and position % workers != worker:
                        continue
                    for instance in self._usable(key, parts):
                        found += 1
                        yield instance
            if not found:
                raise self._nothing_usable()

    def _usable(self, key: str, parts: dict[str, bytes]) -> Iterator[_Instance]:
        """Yield the instances of an image that are seen well enough and have templates."""
        missing = [name for name in _PARTS if name not in parts]
        if missing:
            self._skip(key, f"{missing[0]} is missing")
            return
        try:
            truths, infos = json.loads(parts["gt.json"]), json.loads(parts["gt_info.json"])
            seen = [_is_seen(info) for info in infos]
            ids = [whole_number(truth["obj_id"]) for truth in truths]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._skip(key, f"the annotations are broken ({type(error).__name__})")
            return
        if len(seen) != len(ids):
            self._skip(key, "gt.json and gt_info.json differ in length")
            return
        for gt_id, (obj_id, is_seen) in enumerate(zip(ids, seen, strict=True)):
            if is_seen and obj_id is not None and self._has_bank(obj_id):
                yield _Instance(key, parts, gt_id, obj_id)

    def _has_bank(self, obj_id: int) -> bool:
        if obj_id not in self._has:
            self._has[obj_id] = bank_path(self.options.templates, obj_id).is_file()
            if not self._has[obj_id]:
                self._skip(f"obj_{obj_id:06d}", "no template bank")
        return self._has[obj_id]

    def _bank(self, obj_id: int) -> TemplateBank:
        """Return an object's bank, one of the few that are kept; raises PicoPoseError when it cannot be read."""
        if obj_id not in self._banks:
            while len(self._banks) >= _BANKS_KEPT:
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
        view_id = choose_template(rng, bank.T_tmpl_from_obj, observation.T_cam_from_obj)
        key = self.object_names.get(instance.obj_id, f"obj_{instance.obj_id:06d}")
        if rng.random() < self.options.colour_share:
            observation = replace(observation, crop_rgb=photograph(rng, observation.crop_rgb, strength=1.0))
        return Sample(key, bank.diameter_m, observation, _template(bank, view_id))

    def _skip(self, key: str, reason: str) -> None:
        self.problems[reason] += 1
        _LOG.warning("%s: %s is left out: %s", self.options.folder.name, key, reason)

    def _nothing_usable(self) -> PicoPoseError:
        reasons = ", ".join(f"{reason} ({times}x)" for reason, times in self.problems.most_common(3)) or "none is seen"
        return PicoPoseError(
            f"no usable instance in the shards: {reasons}",
            where=self.options.folder,
            fix="check --templates: banks are named obj_000001.h5",
        )


def read_shard(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {part: file contents}) of a tar shard in its order; the parts of a key stand together.

    Raises PicoPoseError when the file is missing, truncated or no tar.
    """
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(path, "r|") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                name, _, part = Path(member.name).name.partition(".")
                if name != key and parts:
                    yield key, parts
                    parts = {}
                stream = archive.extractfile(member)
                assert stream is not None
                key, parts[part] = name, stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PicoPoseError(f"the shard cannot be read ({error})", where=path, fix="download it again") from error
    if parts:
        yield key, parts


def decode_observation(parts: dict[str, bytes], gt_id: int) -> CropView:
    """Return the crop around one instance of an image; raises PicoPoseError when something of it is broken."""
    try:
        camera, truth = json.loads(parts["camera.json"]), json.loads(parts["gt.json"])[gt_id]
        entry = json.loads(parts["mask_visib.json"])[str(gt_id)]
        K = finite_numbers(camera["cam_K"], 9)
        R, t_mm = finite_numbers(truth["cam_R_m2c"], 9), finite_numbers(truth["cam_t_m2c"], 3)
        counts = entry["counts"]
        height, width = entry["size"]
        mm_per_unit = float(camera.get("depth_scale", 1.0))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise PicoPoseError(f"the annotations are broken ({type(error).__name__})") from error
    if K is None or R is None or t_mm is None or not np.isfinite(mm_per_unit):
        raise PicoPoseError("the camera or the pose is no matrix of numbers")
    if not isinstance(counts, (str, list)):
        raise PicoPoseError("the mask is no run lengths")
    rgb = _decode_image(parts["rgb.jpg"], cv2.IMREAD_COLOR)
    depth = _decode_image(parts["depth.png"], cv2.IMREAD_UNCHANGED)
    encoded = counts.encode("ascii", "replace") if isinstance(counts, str) else tuple(counts)
    mask = decode_rle(Rle((height, width), encoded))
    if depth.ndim != 2 or not rgb.shape[:2] == depth.shape == mask.shape:
        raise PicoPoseError("image, depth and mask differ in size")
    T_cam_from_obj = make_T(R.reshape(3, 3), t_mm / 1000)
    depth_m = depth.astype(np.float32) * np.float32(mm_per_unit / 1000)
    return crop_observation(rgb[..., ::-1], depth_m, mask, K.reshape(3, 3), T_cam_from_obj)


def crop_observation(rgb: Array, depth_m: Array, mask: Array, K: Array, T_cam_from_obj: Array) -> CropView:
    """Return the crop of an image (H,W,3) u8 with depth (H,W) f32 around the visible mask (H,W) bool of an object."""
    box = square_box(mask)
    A = crop_affine(box).astype(np.float64)
    at_centres = cell_centre_pixels(box)
    return CropView(
        crop_rgb=np.rint(crop_colour(rgb, box) * 255).astype(np.uint8),
        mask=crop_mask(mask, box),
        depth_centre_m=np.where(mask[at_centres], depth_m[at_centres], 0).astype(np.float32),
        K=K,
        A_crop_from_image=A,
        T_cam_from_obj=T_cam_from_obj,
    )


def _template(bank: TemplateBank, view_id: int) -> CropView:
    return CropView(
        crop_rgb=bank.crops_rgb[view_id],
        mask=bank.masks[view_id],
        depth_centre_m=bank.depth_centre_m[view_id],
        K=np.asarray(bank.K, np.float64),
        A_crop_from_image=bank.A_crop_from_image[view_id].astype(np.float64),
        T_cam_from_obj=np.asarray(bank.T_tmpl_from_obj[view_id], np.float64),
    )


def _is_seen(info: dict[str, Any]) -> bool:
    return bool(info["px_count_visib"] >= MIN_VISIBLE_PX and float(info["visib_fract"]) >= MIN_VISIBLE_SHARE)


def _decode_image(data: bytes, flags: int) -> Array:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise PicoPoseError(f"an image cannot be decoded ({error.err})") from error
    if image is None:
        raise PicoPoseError("an image cannot be decoded")
    return np.asarray(image)


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        reason = error.strerror or str(error)
        raise PicoPoseError(
            f"cannot be listed ({reason})", where=folder, fix="pass the folder of the shards"
        ) from error


def _check_key_list(folder: Path, shards: list[Path]) -> None:
    """Compare the list of keys with the shards that are there: a download may lack some."""
    path = folder / "key_to_shard.json"
    if not path.is_file():
        return
    numbers = {whole_number(shard) for shard in read_json_object(path).values()}
    present = {int(shard.stem.removeprefix("shard-")) for shard in shards}
    missing = sorted(number for number in numbers if number is not None and number not in present)
    if missing:
        _LOG.warning("%s: %d of %d shards are not here, such as %06d", folder, len(missing), len(numbers), missing[0])


def _read_models(folder: Path) -> dict[int, str]:
    """Return the objects' names by id, from the list of models; raises PicoPoseError when there is no list."""
    for name in MODEL_LISTS:
        if (folder / name).is_file():
            prefix = name.removesuffix("_models.json")
            models = [entry for entry in read_json_list(folder / name) if isinstance(entry, dict)]
            return {entry["obj_id"]: f"{prefix}-{entry['obj_id']}" for entry in models if "obj_id" in entry}
    raise PicoPoseError(f"holds neither {MODEL_LISTS[0]} nor {MODEL_LISTS[1]}", where=folder, fix="download it, too")
