"""The layout of a BOP folder on disk: split, image folder, annotation suffix and models.

The row of the table of known data sets is used where it matches the folder, else the layout is found from the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import MESH_SUFFIXES
from picopose_cli.bop.known_datasets import KnownSplit, toolkit_split

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MODELS_FOLDERS = ("models", "models_cad", "models_reconst")
"""Folders of meshes for templates, preferred first."""
_SCENE_DIGITS = 6
_CAMERA_STEM = "scene_camera"


@dataclass(frozen=True)
class ImageLayout:
    """Folders and file extensions of a split's images inside each scene, and the suffix of its annotation files."""

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
    """Return the split's folder: `wanted`, else that of the table, else the only test or val split on disk.

    `wanted` may omit the type: `test` finds `test_primesense`. Raises PicoPoseError that lists the splits on disk.
    """
    present = split_folders(root)
    if wanted is not None:
        return _match_split(root, wanted, present, rows)
    for row in rows:
        if row.split in present:
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
    raise _no_split(root, "no split with scenes", present)


def _match_split(root: Path, wanted: str, present: list[str], rows: tuple[KnownSplit, ...]) -> str:
    if wanted in present:
        return wanted
    if toolkit_split(wanted)[1] is None:
        preferred = [row.split for row in rows if row.split in present and toolkit_split(row.split)[0] == wanted]
        typed = preferred[:1] or [name for name in present if toolkit_split(name)[0] == wanted]
        if len(typed) == 1:
            return typed[0]
    raise _no_split(root, f"there is no split {wanted!r}", present)


def _no_split(root: Path, what: str, present: list[str]) -> PicoPoseError:
    if present:
        return PicoPoseError(what, where=root, fix=f"pass --split with one of {', '.join(present)}")
    fix = "unpack the test images so that it has SPLIT/000001/scene_camera.json"
    return PicoPoseError(f"{what} in this folder (found: {_names(list_folders(root))})", where=root, fix=fix)


def find_image_layout(split_dir: Path, row: KnownSplit | None) -> ImageLayout:
    """Return the layout of a split's scenes, taken from the first with images and a scene_camera file.

    A split without images (scores need only ground truth and depth) gets the names of the table, or BOP's usual ones.
    """
    scenes = [split_dir / scene for scene in scene_folders(split_dir)]
    for scene_dir in scenes:
        pair = _known_pair(scene_dir, row) or _find_pair(scene_dir)
        if pair is not None:
            return _complete(scene_dir, *pair, row)
    row_pair = ("rgb", "") if row is None else (row.image_folder, row.suffix)
    for scene_dir in scenes:
        for suffix in (row_pair[1], ""):
            if _has_cameras(scene_dir, suffix):
                return _complete(scene_dir, row_pair[0], suffix, row)
    return ImageLayout(*row_pair)


def _complete(scene_dir: Path, folder: str, suffix: str, row: KnownSplit | None) -> ImageLayout:
    depth_folder = next((name for name in (f"depth{suffix}", "depth") if (scene_dir / name).is_dir()), "depth")
    image_ext = _first_extension(scene_dir / folder) or (row.image_ext if row else ".png")
    depth_ext = _first_extension(scene_dir / depth_folder) or (row.depth_ext if row else ".png")
    return ImageLayout(folder, image_ext, suffix, depth_folder, depth_ext)


def _known_pair(scene_dir: Path, row: KnownSplit | None) -> tuple[str, str] | None:
    if row is not None and (scene_dir / row.image_folder).is_dir() and _has_cameras(scene_dir, row.suffix):
        return row.image_folder, row.suffix
    return None


def _find_pair(scene_dir: Path) -> tuple[str, str] | None:
    """Return the first image folder, colour before grey, with a scene_camera file, and the file's suffix."""
    folders = list_folders(scene_dir)
    ordered = [name for kind in ("rgb", "gray") for name in folders if name.startswith(kind)]
    for folder in ordered:
        _, _, sensor = folder.partition("_")
        for suffix in (f"_{sensor}" if sensor else "", f"_{folder}", ""):
            if _has_cameras(scene_dir, suffix):
                return folder, suffix
    return None


def _has_cameras(scene_dir: Path, suffix: str) -> bool:
    return (scene_dir / f"{_CAMERA_STEM}{suffix}.json").is_file()


def _first_extension(folder: Path) -> str | None:
    if not folder.is_dir():
        return None
    names = (entry.suffix for entry in folder.iterdir() if entry.suffix.lower() in IMAGE_EXTENSIONS)
    return next(names, None)


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
    return [name for name in list_folders(root) if name.startswith("models")]


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
