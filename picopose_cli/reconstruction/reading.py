"""Read an object's photographs from any of the folders that are understood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.reconstruction.bop_scenes import read_scenes, sequences_of
from picopose_cli.reconstruction.photo_files import PhotoFolder, load_photograph
from picopose_cli.reconstruction.plain_folder import CAMERAS_FILE, is_plain_folder, read_plain_folder
from picopose_cli.reconstruction.views import ReferenceView, crop_view

MOST_VIEWS = 120
"""Of more photographs, so many are used, evenly spread: an onboarding video has hundreds that are alike."""


def find_photographs(folder: Path, obj_id: int | None, masks: str) -> PhotoFolder:
    """Return the photographs of an object in a folder; `masks` is `auto`, `files` or `alpha`.

    Raises PicoPoseError when the folder is none that is understood, its files are damaged, or the object is not clear.
    """
    if not folder.is_dir():
        raise PicoPoseError("the folder of photographs does not exist", where=folder, fix="check the path")
    if is_plain_folder(folder):
        return read_plain_folder(folder, 1 if obj_id is None else obj_id, masks)
    if masks == "alpha":
        raise PicoPoseError(
            f"there is no {CAMERAS_FILE}; scenes of BOP have masks in files", where=folder, fix="drop --masks"
        )
    found, scenes = sequences_of(folder, obj_id)
    if not scenes:
        what = (
            f"has neither {CAMERAS_FILE} nor scene_camera.json with scene_gt.json, nor folders obj_000001_up of these"
        )
        raise PicoPoseError(what, where=folder, fix="see the README for the layout of reference images")
    return read_scenes(scenes, found)


def load_views(
    found: PhotoFolder, on_progress: Callable[[int], None], *, use_depth: bool = False
) -> tuple[list[ReferenceView], dict[str, str]]:
    """Return the views of photographs, at most `MOST_VIEWS`, and those that cannot be used, each with the reason.

    `on_progress(n)` is called with the number of photographs read since the last call.
    """
    problems = dict(found.problems)
    views = []
    chosen = np.linspace(0, len(found.photos) - 1, min(len(found.photos), MOST_VIEWS)).round().astype(int)
    for index in chosen:
        file = found.photos[index]
        try:
            views.append(crop_view(load_photograph(file, use_depth=use_depth)))
        except PicoPoseError as error:
            problems[file.name] = str(error)
        on_progress(1)
    return views, problems
