"""Groups of consecutive images that go through the network together, and their shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from picopose_cli.base.tasks import ImageTask

ImageGroup = tuple[ImageTask, ...]
"""Consecutive whole images that go through the network together."""


def plan_groups(tasks: Iterable[ImageTask], batch_size: int) -> list[ImageGroup]:
    """Return the images in groups of at most `batch_size` detections; an image with more is a group of its own.

    The groups depend on the tasks and the batch size alone.
    """
    groups: list[list[ImageTask]] = []
    size = 0
    for task in tasks:
        size += len(task.detections)
        if not groups or size > batch_size:
            groups.append([])
            size = len(task.detections)
        groups[-1].append(task)
    return [tuple(group) for group in groups]


def shard_of_groups(groups: Sequence[ImageGroup], index: int, count: int) -> list[ImageGroup]:
    """Return shard `index` (from 0) of `count` shards of consecutive groups.

    The shards have about the same number of detections (an image without any counts as one). A group belongs to the
    shard that its middle falls into; together the shards are all groups.
    """
    sizes = np.array([sum(max(len(task.detections), 1) for task in group) for group in groups])
    middles = np.cumsum(sizes) - sizes / 2
    shards = np.floor(middles / sizes.sum() * count) if len(groups) else middles
    return [group for group, shard in zip(groups, shards, strict=True) if shard == index]


def groups_after(groups: Sequence[ImageGroup], done: int) -> tuple[list[ImageGroup], int]:
    """Return the groups that are not complete after the first `done` images, and how many of their images are done."""
    for index, group in enumerate(groups):
        if len(group) > done:
            return list(groups[index:]), done
        done -= len(group)
    return [], 0
