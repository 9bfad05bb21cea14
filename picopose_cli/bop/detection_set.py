"""The detections of a run, by image, whatever they are read from."""

from __future__ import annotations

from dataclasses import dataclass, field

from picopose_cli.base.types import Detection

UNKNOWN_TIME_S = -1.0
"""The detector's time where a file has none."""


@dataclass(frozen=True)
class DetectionSet:
    """Detections by (scene_id, im_id), in the order of their file, and the entries that cannot be used."""

    by_image: dict[tuple[int, int], list[Detection]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
