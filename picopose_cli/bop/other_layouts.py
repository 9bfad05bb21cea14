"""Copies of data sets in layouts that are recognised but not read, with what to do about each."""

from __future__ import annotations

from pathlib import Path

from picopose_cli.base.errors import PicoPoseError

_HOT3D_CONVERTER = "hot3d/clips/bop_format_converters/hot3d_clips_to_bop_scenewise.py"
_SCENEWISE = "take the copy in scene folders (SPLIT/000001/scene_camera.json), as it is at huggingface.co/bop-benchmark"


def other_layout_error(root: Path, split: str | None = None) -> PicoPoseError | None:
    """Return what to do with a data set, or only its folder `split`, in another layout than scene folders, else None.

    Those are HOT3D's clips (clip-003365.tar), and BOP's webdataset (shard-000000.tar) and imagewise formats
    (000001_000000.rgb.jpg beside 000001_000000.camera.json).
    """
    for folder in _folders(root, split):
        if _has(folder, "clip-*.tar"):
            fix = f"convert them: {_HOT3D_CONVERTER} --split {folder.name} of github.com/facebookresearch/hot3d"
            return PicoPoseError("the images are in HOT3D's clips (clip-*.tar)", where=folder, fix=fix)
        if _has(folder, "shard-*.tar"):
            fix = f"{_SCENEWISE}; for training, picopose train --source megapose reads MegaPose's shards"
            return PicoPoseError("the images are in BOP's webdataset format (shard-*.tar)", where=folder, fix=fix)
        if _has(folder, "*.camera.json"):
            fix = f"{_SCENEWISE}: the toolkit's converters lead to this format only, not back"
            return PicoPoseError("the images are in BOP's imagewise format (*.camera.json)", where=folder, fix=fix)
    return None


def _folders(root: Path, split: str | None) -> list[Path]:
    try:
        return sorted(
            folder for folder in root.iterdir() if folder.is_dir() and (split is None or folder.name.startswith(split))
        )
    except OSError:
        return []


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None
