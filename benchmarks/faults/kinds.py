"""The kinds of input file, how each is damaged, the commands that read it, and which results it may change."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from faults import mutations
from faults.folder import RESULT, TRUTH

Touched = Callable[[int, int], bool]
"""Whether a damaged file may change the result of an image and object (im_id, obj_id)."""
SCENE = "bop/toy/test/000001"
JOURNAL = f"begun/{RESULT}.journal"
SHARDS = tuple(f"shards/{RESULT.replace('.csv', f'_{index}of2.csv')}" for index in (1, 2))
_BYTES = (mutations.change_bytes,) * 5 + (mutations.change_file,)


def _infer(output: str = f"out/{RESULT}", **changes: str) -> list[str]:
    options = {
        "dataset": "toy", "weights": "tiny.safetensors", "detections": "bop/toy/detections.json", "hypotheses": "1",
        "batch-size": "1", "device": "cpu", "output": output,
    } | changes  # fmt: skip
    return ["infer", *(part for name, value in options.items() for part in (f"--{name}", value))]


COMMANDS: dict[str, list[str]] = {
    "infer": _infer(),
    "infer paper": _infer(rules="paper"),
    # A detection hides parts of others: refined, those may change with it.
    "infer unrefined": _infer(refine="0"),
    "infer gz": _infer(detections="bop/toy/detections.json.gz", refine="0"),
    "infer masks": _infer(detections="bop/toy/masks", refine="0"),
    "infer table": _infer(detections="bop/toy/table", refine="0"),
    "infer gt": _infer(detections="gt", refine="0"),
    "infer .pth": _infer(weights="tiny.pth"),
    "infer .ckpt": _infer(weights="tiny.ckpt"),
    "infer journal": _infer(f"begun/{RESULT}"),
    "shard 1": _infer(SHARDS[0], shard="1/2"),
    "shard 2": _infer(SHARDS[1], shard="2/2"),
    "merge": ["merge", f"out/{RESULT}", *SHARDS],
    "score": ["score", TRUTH, "--output", "out/scores.json", "--workers", "1", "--per-object"],
    "score bop24": ["score", TRUTH, "--output", "out/scores.json", "--workers", "1", "--targets", "bop24"],
    "check": ["check", TRUTH],
    "check detections": ["check", "bop/toy/detections.json", "--dataset", "toy"],
    "render": ["render-templates", "--dataset", "shapes", "--renderer", "software", "--workers", "1"],
}
"""Batches of one detection, so that a detection that is lost changes no other one's last bits."""


@dataclass(frozen=True)
class Kind:
    """A kind of input file.

    `files` are patterns below the prepared folder, `commands` names of COMMANDS. `has_checksum`: damaged bytes must be
    noticed; without a checksum they may be another valid number, which only the touched results may show.
    """

    name: str
    files: Sequence[str]
    changes: Sequence[mutations.Change]
    commands: Sequence[str]
    touched: Callable[[Path, Path], Touched]
    has_checksum: bool = False


def all_touched(_before: Path, _after: Path) -> Touched:
    return lambda _im_id, _obj_id: True


def none_touched(_before: Path, _after: Path) -> Touched:
    return lambda _im_id, _obj_id: False


def image_of_name(before: Path, _after: Path) -> Touched:
    """Of 000002.png or 000002_000000.png."""
    return lambda im_id, _obj_id: im_id == int(before.stem.partition("_")[0])


def object_of_name(before: Path, _after: Path) -> Touched:
    """Of obj_000001.ply or obj_000001.features-0123.h5."""
    return lambda _im_id, obj_id: obj_id == int(before.name[4:10])


def mask_of_name(before: Path, _after: Path) -> Touched:
    """Of 000001_000002_000001_0.png or 2-1.png."""
    numbers = [int(part) for part in before.stem.replace("-", "_").split("_")]
    place = numbers[1:3] if len(numbers) > 2 else numbers
    return lambda im_id, obj_id: [im_id, obj_id] == place


def _contents(before: Path, after: Path) -> tuple[Any, Any]:
    def read(path: Path) -> Any:
        try:
            data = path.read_bytes()
            return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        except (OSError, ValueError, EOFError, RecursionError, zlib.error):
            return None

    return read(before), read(after)


def _changed_keys(before: Path, after: Path) -> set[str] | None:
    one, other = _contents(before, after)
    if not isinstance(one, dict) or not isinstance(other, dict):
        return None
    return {key for key in {*one, *other} if json.dumps(one.get(key, "")) != json.dumps(other.get(key, ""))}


def images_of_keys(before: Path, after: Path) -> Touched:
    """Of a scene's JSON file: the images whose entries differ."""
    keys = _changed_keys(before, after)
    return lambda im_id, _obj_id: keys is None or str(im_id) in keys


def objects_of_keys(before: Path, after: Path) -> Touched:
    """Of models_info.json: the objects whose entries differ."""
    keys = _changed_keys(before, after)
    return lambda _im_id, obj_id: keys is None or str(obj_id) in keys


def entries(before: Path, after: Path) -> Touched:
    """Of detections and targets: image and object of the entries that differ, as they were and as they are."""
    one, other = _contents(before, after)
    if not isinstance(one, list) or not isinstance(other, list):
        return all_touched(before, after)
    texts = [[json.dumps(entry) for entry in content] for content in (one, other)]
    changed = [entry for entry, text in zip(one, texts[0], strict=True) if text not in texts[1]]
    changed += [entry for entry, text in zip(other, texts[1], strict=True) if text not in texts[0]]
    changed += [entry for entry, text in zip(other, texts[1], strict=True) if texts[1].count(text) > 1]
    places = {_place(entry) for entry in changed if isinstance(entry, dict)}
    return lambda im_id, obj_id: (im_id, obj_id) in places


def _place(entry: dict[str, Any]) -> tuple[Any, Any]:
    ids = (entry.get("image_id", entry.get("im_id")), entry.get("category_id", entry.get("obj_id")))
    return tuple(int(one) if isinstance(one, (int, str)) and str(one).isdigit() else str(one) for one in ids)  # type: ignore[return-value]


def lines(before: Path, after: Path) -> Touched:
    """Of a CSV table of masks: the images and objects of the lines that differ."""
    texts = [path.read_text(errors="replace").split("\n") if path.is_file() else [] for path in (before, after)]
    if texts[0][0] not in texts[1][:1]:
        return all_touched(before, after)
    changed = [line for line in texts[0] if line not in texts[1]] + [line for line in texts[1] if line not in texts[0]]
    changed += [line for line in texts[1] if texts[1].count(line) > 1]
    places = {tuple(line.split(",")[2:4]) for line in changed}
    return lambda im_id, obj_id: (str(im_id), str(obj_id)) in places


def change_record(path: Path, rng: Random) -> str:
    """Change a value in a line of a journal and give the line a valid checksum."""
    records = path.read_bytes().splitlines()
    index = rng.randrange(len(records))
    text, what = mutations.changed_json("{" + records[index].decode().partition('", ')[2], rng)
    rest = text[1:].encode() + b"\n"
    records[index] = b'{"crc32": "%08x", ' % zlib.crc32(rest) + rest[:-1]
    path.unlink()
    path.write_bytes(b"\n".join(records) + b"\n")
    return f"line {index + 1}: {what}"


def records(before: Path, after: Path) -> Touched:
    """Of a journal: the images of the lines that differ and have a valid checksum."""
    changed = set()
    data = after.read_bytes().split(b"\n") if after.is_file() else []
    for im_id, line in enumerate(data[1:]):
        rest = line[22:] + b"\n"
        if line not in before.read_bytes() and line[:22] == b'{"crc32": "%08x", ' % zlib.crc32(rest):
            changed.add(im_id)
    return lambda im_id, _obj_id: im_id in changed


def change_gzipped_json(path: Path, rng: Random) -> str:
    """Change a value of a gzipped JSON file."""
    text, what = mutations.changed_json(gzip.decompress(path.read_bytes()).decode(), rng)
    path.unlink()
    path.write_bytes(gzip.compress(text.encode()))
    return what


def _both(*changes: mutations.Change) -> tuple[mutations.Change, ...]:
    """Return as many damages of bytes as changes of content."""
    return (*_BYTES, *(changes * (len(_BYTES) // len(changes))))


_JSON, _WORDS = _both(mutations.change_json), _both(mutations.change_words)
KINDS: tuple[Kind, ...] = (
    Kind("scene_camera", (f"{SCENE}/scene_camera.json",), _JSON, ("infer", "score"), images_of_keys),
    Kind("scene_gt", (f"{SCENE}/scene_gt.json",), _JSON, ("score", "infer gt", "score bop24"), images_of_keys),
    Kind("scene_gt_info", (f"{SCENE}/scene_gt_info.json",), _JSON, ("score", "infer gt", "score bop24"),
         images_of_keys),
    Kind("models_info", ("bop/toy/models/models_info.json",), _JSON, ("score", "infer"), objects_of_keys),
    Kind("models_info, render", ("bop/shapes/models/models_info.json",), _JSON, ("render",), objects_of_keys),
    Kind("targets", ("bop/toy/test_targets_bop19.json",), _JSON, ("infer", "score", "check"), entries),
    Kind("detections JSON", ("bop/toy/detections.json",), _JSON,
         ("infer unrefined", "infer unrefined", "check detections"), entries),
    Kind("detections .json.gz", ("bop/toy/detections.json.gz",), _both(change_gzipped_json), ("infer gz",), entries,
         True),
    Kind("mask folder", ("bop/toy/masks/*.png",), _BYTES, ("infer masks",), mask_of_name, True),
    Kind("mask table", ("bop/toy/table/*.csv",), _WORDS, ("infer table",), lines),
    Kind("mask_visib PNG", (f"{SCENE}/mask_visib/*.png",), _BYTES, ("infer gt",), image_of_name, True),
    Kind("depth PNG", (f"{SCENE}/depth/*.png",), _BYTES, ("score",), image_of_name, True),
    Kind("image PNG", (f"{SCENE}/rgb/*.png",), _BYTES, ("infer",), image_of_name, True),
    Kind("image JPEG", (f"{SCENE}/rgb/*.jpg",), _BYTES, ("infer",), image_of_name),
    Kind("image TIFF", (f"{SCENE}/rgb/*.tif",), _BYTES, ("infer",), image_of_name),
    Kind("mesh PLY, text", ("bop/toy/models/*.ply",), _WORDS, ("score", "infer"), object_of_name),
    Kind("mesh PLY, binary", ("bop/shapes/models/obj_000001.ply",), _BYTES, ("render",), object_of_name),
    Kind("mesh OBJ, MTL", ("bop/shapes/models/*.obj", "bop/shapes/models/*.mtl"), _WORDS, ("render",), object_of_name),
    Kind("mesh GLB", ("bop/shapes/models/*.glb",), _BYTES, ("render",), object_of_name),
    Kind("texture", ("bop/shapes/models/*.png", "bop/shapes/models/*.jpg"), _BYTES, ("render",), object_of_name),
    Kind("bank", ("bop/toy/templates/obj_00000?.h5",), _both(mutations.change_hdf5), ("infer", "infer paper"),
         object_of_name, True),
    Kind("feature file", ("bop/toy/templates/*.features-*.h5",), _both(mutations.change_hdf5), ("infer",),
         object_of_name, True),
    Kind("weights .safetensors", ("tiny.safetensors",), _both(mutations.change_safetensors), ("infer",), all_touched,
         True),
    Kind("weights .pth", ("tiny.pth",), _both(mutations.change_pickle), ("infer .pth",), all_touched, True),
    Kind("weights .ckpt", ("tiny.ckpt",), _both(mutations.change_pickle), ("infer .ckpt",), all_touched, True),
    Kind("result CSV", (TRUTH,), _WORDS, ("score", "check", "score bop24"), all_touched),
    Kind("journal", (JOURNAL,), _both(change_record), ("infer journal",), records, True),
    Kind("shard CSV", SHARDS, _WORDS, ("merge",), none_touched, True),
    Kind("report", tuple(name.replace(".csv", ".json") for name in SHARDS), _JSON, ("merge",), none_touched),
)  # fmt: skip


def files_of(kind: Kind, root: Path) -> list[Path]:
    """Return the files of a kind in the prepared folder, sorted."""
    return sorted(path for pattern in kind.files for path in root.glob(pattern))
