"""The layout of a BOP folder on disk: split, image folder, annotation suffix and models.

The row of the table of known data sets is used where it matches the folder, else the layout is found from the folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import MESH_SUFFIXES
from picopose_cli.bop.known_datasets import KnownSplit, rows_of_scene, toolkit_split
from picopose_cli.bop.other_layouts import other_layout_error

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MODELS_FOLDERS = ("models", "models_cad", "models_reconst", "object_models")
"""Folders of meshes for templates, preferred first."""
_SCENE_DIGITS = 6
_LONGEST_ID = 15
_CAMERA_STEM = "scene_camera"
_CLASSIC_PAIRS = (("rgb", ""), ("gray", ""))


@dataclass(frozen=True)
class ImageLayout:
    """Folders and file extensions of the images inside a scene, and the suffix of its annotation files."""

    image_folder: str = "rgb"
    image_ext: str = ".png"
    suffix: str = ""
    depth_folder: str = "depth"
    depth_ext: str = ".png"


def list_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders inside `folder`; empty when it cannot be listed."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def scene_folders(split_dir: Path) -> list[str]:
    """Return the sorted names of the scenes of a split: folders of six digits."""
    return [name for name in list_folders(split_dir) if len(name) == _SCENE_DIGITS and _is_number(name)]


def split_folders(root: Path) -> list[str]:
    """Return the folders of a data set that have scenes: folders of six digits with annotations in the first."""
    found = []
    for name in list_folders(root):
        scenes = scene_folders(root / name)
        if scenes and any((root / name / scenes[0]).glob("scene_*.json")):
            found.append(name)
    return found


def find_split(root: Path, wanted: str | None, rows: tuple[KnownSplit, ...]) -> str:
    """Return the split: `wanted`, else that of the table, else the only test or val split on disk.

    `wanted` may omit the type: `test` finds `test_primesense`. A split that is downloaded in parts (see `split_dirs`)
    needs no folder of its own. Raises PicoPoseError that lists the splits on disk.
    """
    present = split_folders(root)
    if wanted is not None:
        return _match_split(root, wanted, present, rows)
    for row in rows:
        if row.split in present or _parts(present, rows):
            return row.split
    for candidates in (
        [name for name in present if name == "test"],
        [name for name in present if toolkit_split(name)[0] == "test"],
        [name for name in present if toolkit_split(name)[0] == "val"],
        present,
    ):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise PicoPoseError(
                f"there are several splits: {', '.join(candidates)}", where=root, fix="choose one with --split"
            )
    raise _no_split(root, "no split with scenes", present, None)


def _parts(present: Sequence[str], rows: Sequence[KnownSplit]) -> list[str]:
    """Return the folders on disk that are parts of the data set's split."""
    return [name for name in present if any(row.parts is not None and name.startswith(row.parts) for row in rows)]


def _match_split(root: Path, wanted: str, present: list[str], rows: tuple[KnownSplit, ...]) -> str:
    if wanted in present or (wanted in {row.split for row in rows} and _parts(present, rows)):
        return wanted
    if toolkit_split(wanted)[1] is None:
        preferred = [row.split for row in rows if row.split in present and toolkit_split(row.split)[0] == wanted]
        typed = preferred[:1] or [name for name in present if toolkit_split(name)[0] == wanted]
        if len(typed) == 1:
            return typed[0]
    raise _no_split(root, f"there is no split {wanted!r}", present, wanted)


def _no_split(root: Path, what: str, present: list[str], wanted: str | None) -> PicoPoseError:
    other = other_layout_error(root, wanted)
    if other is not None:
        return other
    if present:
        return PicoPoseError(what, where=root, fix=f"pass --split with one of {', '.join(present)}")
    fix = "unpack the test images so that it has SPLIT/000001/scene_camera.json"
    return PicoPoseError(f"{what} in this folder (found: {_names(list_folders(root))})", where=root, fix=fix)


def find_scenes(root: Path, split: str, rows: Sequence[KnownSplit]) -> dict[int, Path]:
    """Return the folders of a split's scenes by their ids: of its own folder, else of the parts it is downloaded in."""
    own = root / split
    folders = [own] if own.is_dir() else []
    if not scene_folders(own) and split in {row.split for row in rows}:
        folders = [root / name for name in _parts(split_folders(root), rows)] or folders
    scenes: dict[int, Path] = {}
    for folder in folders:
        for name in scene_folders(folder):
            scenes.setdefault(int(name), folder / name)
    return dict(sorted(scenes.items()))


def find_image_layouts(
    scenes: Mapping[int, Path], rows: Sequence[KnownSplit], sensor: str | None = None
) -> tuple[ImageLayout, dict[int, ImageLayout]]:
    """Return the layout of a split and those of its scenes, which may have different sensors.

    `rows` are those of the data set, the split's first. The split's layout is that of its first scene with images and
    a scene_camera file; it serves for scenes without (scores need only ground truth and depth). Where BOP scores one of
    several sensors, another one is not taken unless it is asked for by `sensor`: its poses would be in another frame.
    """
    pairs = {
        scene_id: _pair(scene_dir, rows_of_scene(rows, scene_id), sensor) for scene_id, scene_dir in scenes.items()
    }
    row = rows[0] if rows else None
    layouts = {scene_id: _complete(scenes[scene_id], *pair, row) for scene_id, pair in pairs.items() if pair}
    if layouts:
        return next(iter(layouts.values())), layouts
    row_pair = ("rgb", "") if row is None else (row.image_folder, row.suffix)
    if sensor is not None:
        row_pair = (f"{row_pair[0].partition('_')[0]}_{sensor}", f"_{sensor}")
    for scene_dir in scenes.values():
        for suffix in (row_pair[1], ""):
            if _has_cameras(scene_dir, suffix):
                return _complete(scene_dir, row_pair[0], suffix, row), {}
    return ImageLayout(row_pair[0], suffix=row_pair[1]), {}


def require_sensor(
    scenes: Mapping[int, Path], layout: ImageLayout, layouts: Mapping[int, ImageLayout], sensor: str | None
) -> None:
    """Raise PicoPoseError when a split has images of other sensors than of the one that is needed, and of that none.

    That is `sensor`, else the one that BOP scores.
    """
    if layouts or not layout.suffix:
        return
    for scene_dir in scenes.values():
        pairs = _all_pairs(scene_dir)
        if not pairs or _has_cameras(scene_dir, layout.suffix):
            continue
        if sensor is not None:
            names = ", ".join(suffix.removeprefix("_") for _, suffix in pairs if suffix) or "none that has a name"
            what, fix = f"there are no images of the sensor {sensor!r} (found: {names})", "check --sensor"
            raise PicoPoseError(what, where=scene_dir, fix=fix)
        needed = f"{layout.image_folder}/ and {_CAMERA_STEM}{layout.suffix}.json"
        found = ", ".join(folder for folder, _ in pairs)
        raise PicoPoseError(
            f"there are no images of the sensor that BOP scores ({needed}), only {found}",
            where=scene_dir,
            fix="unpack those images: poses of another sensor would be in another frame; --sensor asks for one",
        )


def sensors_of(scenes: Mapping[int, Path]) -> set[str]:
    """Return the names of the sensors that scenes have images of."""
    return {suffix.removeprefix("_") for scene_dir in scenes.values() for _, suffix in _all_pairs(scene_dir) if suffix}


def _complete(scene_dir: Path, folder: str, suffix: str, row: KnownSplit | None) -> ImageLayout:
    depth_folder = next((name for name in (f"depth{suffix}", "depth") if (scene_dir / name).is_dir()), "depth")
    image_ext = _first_extension(scene_dir / folder) or (row.image_ext if row else ".png")
    depth_ext = _first_extension(scene_dir / depth_folder) or (row.depth_ext if row else ".png")
    return ImageLayout(folder, image_ext, suffix, depth_folder, depth_ext)


def _pair(scene_dir: Path, rows: Sequence[KnownSplit], sensor: str | None) -> tuple[str, str] | None:
    """Return the image folder of a scene and the suffix of its annotations, as a row of the table has them or else."""
    if sensor is not None:
        return next((pair for pair in _all_pairs(scene_dir) if pair[1] == f"_{sensor}"), None)
    for row in rows:
        if (scene_dir / row.image_folder).is_dir() and _has_cameras(scene_dir, row.suffix):
            return row.image_folder, row.suffix
    pairs = _all_pairs(scene_dir)
    if rows and rows[0].suffix:  # training images have names without a sensor
        pairs = [pair for pair in pairs if pair in _CLASSIC_PAIRS]
    return pairs[0] if pairs else None


def _all_pairs(scene_dir: Path) -> list[tuple[str, str]]:
    """Return the image folders, colour before grey, with the suffix of their scene_camera file."""
    folders = list_folders(scene_dir)
    pairs = []
    for folder in (name for kind in ("rgb", "gray") for name in folders if name.startswith(kind)):
        _, _, sensor = folder.partition("_")
        suffixes = (f"_{sensor}" if sensor else "", f"_{folder}", "")
        suffix = next((one for one in suffixes if _has_cameras(scene_dir, one)), None)
        if suffix is not None:
            pairs.append((folder, suffix))
    return pairs


def _has_cameras(scene_dir: Path, suffix: str) -> bool:
    return (scene_dir / f"{_CAMERA_STEM}{suffix}.json").is_file()


def _first_extension(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    names = (entry.suffix for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_EXTENSIONS)
    return next(names, None)


def images_by_id(folder: Path) -> dict[int, Path]:
    """Return the images of a folder by the number that their names are, in any case and with any number of digits."""
    try:
        changed_ns = folder.stat().st_mtime_ns
    except OSError:
        return {}
    return _images_by_id(folder, changed_ns)


@lru_cache(maxsize=64)
def _images_by_id(folder: Path, changed_ns: int) -> dict[int, Path]:  # noqa: ARG001 - part of the key: a folder changes
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if _is_number(path.stem) and len(path.stem) <= _LONGEST_ID and path.suffix.lower() in IMAGE_EXTENSIONS:
            found.setdefault(int(path.stem), path)
    return found


def find_models(root: Path, wanted: str | None, preferred: tuple[str, ...]) -> Path:
    """Return the folder of meshes: `wanted`, else the first of `preferred` that has meshes.

    Without any, the first preferred folder is returned although it is missing: only some commands read meshes.
    Raises PicoPoseError when `wanted` does not exist.
    """
    if wanted is not None:
        if not (root / wanted).is_dir():
            found = _names(models_folders(root))
            raise PicoPoseError(
                f"there is no models folder {wanted!r} (found: {found})", where=root, fix="check --models"
            )
        return root / wanted
    for name in (*preferred, *models_folders(root)):
        if mesh_files(root / name):
            return root / name
    return root / preferred[0]


def models_folders(root: Path) -> list[str]:
    """Return the sorted names of a data set's folders of meshes."""
    return [name for name in list_folders(root) if name.startswith(("models", "object_models"))]


def mesh_files(folder: Path) -> dict[int, Path]:
    """Return the meshes obj_{id}.{ply,obj,glb} of a folder by object id, PLY first where there are several."""
    found: dict[int, Path] = {}
    if not folder.is_dir():
        return found
    for suffix in MESH_SUFFIXES:
        for path in sorted(folder.glob(f"obj_*{suffix}")):
            digits = path.stem.removeprefix("obj_")
            if _is_number(digits):
                found.setdefault(int(digits), path)
    return dict(sorted(found.items()))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:12]) or "nothing"
    return f"{shown}, ..." if len(names) > 12 else shown
