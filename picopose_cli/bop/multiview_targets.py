"""Multi-view target files (test_targets_multiview_bop25.json), of which single images are taken.

An entry lists the views of a scene that a method may combine: `im_id` is a list of image ids, or of [sensor, image id].
Each image of the sensor in use is estimated by itself, as a target of the detection task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from picopose_cli.base.errors import PicoPoseError

_VIEWS = ("im_id", "im_ids")


def has_views(entries: Sequence[Any]) -> bool:
    """Return whether the entries of a target file list several views each."""
    return any(
        isinstance(entry, dict) and any(isinstance(entry.get(name), list) for name in _VIEWS) for entry in entries
    )


def single_images(entries: Sequence[Any], sensors: Collection[str], path: Path) -> list[dict[str, Any]]:
    """Return the images of multi-view targets as entries of a BOP24 file: those of `sensors`, where these are named.

    Raises PicoPoseError when an entry is invalid or there is no image of the sensors.
    """
    images, others = [], set()
    for index, entry in enumerate(entries):
        views = next((entry[name] for name in _VIEWS if name in entry), None) if isinstance(entry, dict) else None
        if not isinstance(views, list):
            raise PicoPoseError(f"entry {index} has no list of views", where=path, fix="correct the file")
        for view in views:
            sensor, im_id = view if isinstance(view, list) and len(view) == 2 else (None, view)
            if sensor is None or sensor in sensors:
                images.append({"scene_id": entry.get("scene_id"), "im_id": im_id})
            else:
                others.add(str(sensor))
    if not images:
        wanted, found = " or ".join(sorted(sensors)) or "in use", ", ".join(sorted(others)) or "none"
        what = f"there is no view of the sensor {wanted} (found: {found})"
        raise PicoPoseError(what, where=path, fix="ask for one of them with --sensor")
    return images


def views_text(sensors: Collection[str]) -> str:
    """Return what is taken of multi-view targets, for the user."""
    of = f" of {' or '.join(sorted(sensors))}" if sensors else ""
    return f"multi-view targets: each image{of} is estimated by itself, no views are combined"
