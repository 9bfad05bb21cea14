"""The sizes of a network: round trip through JSON, and nonsense is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from helpers.networks import CROP_56

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network.config import MINI, VIT_L, DecoderConfig, ModelConfig, VitConfig


def test_released_sizes() -> None:
    assert ModelConfig() == VIT_L
    assert (VIT_L.vit.width, VIT_L.vit.depth, VIT_L.vit.heads) == (1024, 24, 16)
    assert VIT_L.grid == 16
    assert VIT_L.flow_grids == (16, 32, 64)
    assert VIT_L.decoder.window_cells == 25


@pytest.mark.parametrize("config", [VIT_L, MINI, CROP_56])
def test_json_round_trip(config: ModelConfig) -> None:
    text = json.dumps(config.to_json_dict())
    assert ModelConfig.from_json_dict(json.loads(text)) == config


def _edited(path: str, value: Any) -> dict[str, Any]:
    table: dict[str, Any] = VIT_L.to_json_dict()
    *parents, last = path.split(".")
    inner = table
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return table


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("vit.width", "1024", "vit.width"),
        ("vit.width", 1024.0, "vit.width"),
        ("vit.depth", True, "vit.depth"),
        ("vit.heads", 0, "heads 0"),
        ("vit.heads", 7, "vit.heads 7"),
        ("vit.width", 10**9, "width 1000000000"),
        ("vit.stem_width", -1, "stem_width -1"),
        ("vit.stem_width", True, "vit.stem_width"),
        ("vit.output_blocks", [5, 11, 17], "output_blocks"),
        ("vit.output_blocks", [5, 11, 11, 23], "output_blocks"),
        ("vit.output_blocks", [5, 11, 17, 24], "output_blocks"),
        ("vit.output_blocks", "5,11", "output_blocks"),
        ("vit.output_blocks", None, "output_blocks"),
        ("vit", 3, "config.vit is not a table"),
        ("affine.groups", 33, "affine.groups 33"),
        ("affine.hidden", [1024], "hidden"),
        ("dpt.projections", [1, 2, 3, -4], "projections -4"),
        ("decoder.motion_width", 2, "decoder.motion_width"),
        ("decoder.head_widths", [1, [2]], "head_widths"),
        ("crop_px", 225, "crop_px 225"),
        ("crop_px", 15 * 14, "crop_px 210"),
        ("colour", 3, "colour"),
        ("vit.colour", 3, "colour"),
    ],
)
def test_invalid_sizes_are_refused_by_name(path: str, value: Any, named: str) -> None:
    with pytest.raises(PicoPoseError, match=named):
        ModelConfig.from_json_dict(_edited(path, value))


@pytest.mark.parametrize("value", [None, [], "x", 3])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(PicoPoseError, match="config is not a table"):
        ModelConfig.from_json_dict(value)


def test_a_missing_entry_is_named() -> None:
    table = VIT_L.to_json_dict()
    del table["vit"]["heads"]
    with pytest.raises(PicoPoseError, match=r"config\.vit has missing or unknown entries: heads"):
        ModelConfig.from_json_dict(table)


def test_sizes_are_also_checked_without_json() -> None:
    with pytest.raises(PicoPoseError, match=r"vit\.heads"):
        replace(VIT_L.vit, heads=5)
    with pytest.raises(PicoPoseError, match="radius"):
        DecoderConfig(radius=0)
    assert VitConfig(output_blocks=(0, 1, 2, 3)).output_blocks[0] == 0
