"""The sizes of a PicoPose network: one frozen dataclass per part, stored as JSON in weight files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from picopose_cli.base.errors import PicoPoseError

LEVELS = 3
"""Number of grids of the offset stage: 1, 2 and 4 times the patch grid, as many as the DPT head has outputs."""
_MAX_SIZE = 1 << 20
_MAY_BE_0 = ("output_blocks", "stem_width")

Part = TypeVar("Part")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _invalid(what)


def _invalid(what: str) -> PicoPoseError:
    return PicoPoseError(what, fix="these are not the sizes of a PicoPose network")


def _check_sizes(part: Any) -> None:
    """Require every number of a part to be a sensible size."""
    for field in fields(part):
        value = getattr(part, field.name)
        least = 0 if field.name in _MAY_BE_0 else 1
        for size in value if isinstance(value, tuple) else (value,):
            if not is_dataclass(size):
                _require(least <= size <= _MAX_SIZE, f"{field.name} {size} is out of range")


@dataclass(frozen=True)
class VitConfig:
    """Sizes of the DINOv2 backbone."""

    width: int = 1024
    """Channels of a token."""
    depth: int = 24
    """Transformer blocks."""
    heads: int = 16
    patch_px: int = 14
    mlp_ratio: int = 4
    position_grid: int = 37
    """Side of the grid on which the position embedding was trained."""
    output_blocks: tuple[int, int, int, int] = (5, 11, 17, 23)
    """Indices of the blocks whose outputs are the four feature maps."""
    stem_width: int = 0
    """Channels of the first of five convolutions that replace the patch projection in small networks; 0: none."""

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(self.width % self.heads == 0, f"vit.width {self.width} is not a multiple of vit.heads {self.heads}")
        blocks = self.output_blocks
        rising = all(low < high for low, high in itertools.pairwise(blocks))
        _require(
            rising and blocks[-1] < self.depth,
            f"vit.output_blocks {list(blocks)} are not increasing, or not below vit.depth {self.depth}",
        )


@dataclass(frozen=True)
class AffineConfig:
    """Sizes of the affine regressor; its input channels are the cells of the patch grid."""

    width: int = 256
    """Channels of its convolutions."""
    groups: int = 32
    """Groups of its group norms."""
    hidden: tuple[int, int] = (1024, 256)
    """Outputs of its two shared linear layers."""
    head_width: int = 256

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(
            self.width % self.groups == 0, f"affine.width {self.width} is not a multiple of affine.groups {self.groups}"
        )


@dataclass(frozen=True)
class DptConfig:
    """Sizes of the DPT head."""

    projections: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    """Channels of the four feature maps after their 1x1 projections."""
    width: int = 256
    """Channels of its three outputs."""
    depth_widths: tuple[int, int] = (128, 32)
    """Widths of the depth output, which is part of the released file and not used."""

    def __post_init__(self) -> None:
        _check_sizes(self)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the flow decoder."""

    width: int = 256
    """Channels of the projected features that are correlated."""
    radius: int = 2
    """Half width of the correlation window, in cells."""
    correlation_widths: tuple[int, int] = (256, 192)
    flow_widths: tuple[int, int] = (128, 64)
    motion_width: int = 128
    """Channels of the motion features; the last two are the flow itself."""
    head_widths: tuple[int, int] = (512, 256)

    def __post_init__(self) -> None:
        _check_sizes(self)
        _require(self.motion_width > 2, f"decoder.motion_width {self.motion_width} is below 3")

    @property
    def window_cells(self) -> int:
        """Correlation values per cell and pyramid level."""
        return (2 * self.radius + 1) ** 2


@dataclass(frozen=True)
class ModelConfig:
    """Every size of a PicoPose network; the defaults are those of the released one."""

    crop_px: int = 224
    """Side of the square input."""
    vit: VitConfig = VitConfig()
    affine: AffineConfig = AffineConfig()
    dpt: DptConfig = DptConfig()
    decoder: DecoderConfig = DecoderConfig()

    def __post_init__(self) -> None:
        _check_sizes(self)
        even = self.crop_px % (2 * self.vit.patch_px) == 0  # the DPT head halves the grid once, then doubles it again
        _require(even, f"crop_px {self.crop_px} is not an even multiple of vit.patch_px {self.vit.patch_px}")

    @property
    def grid(self) -> int:
        """Side of the patch grid, in cells."""
        return self.crop_px // self.vit.patch_px

    @property
    def flow_grids(self) -> tuple[int, ...]:
        """Sides of the grids of the offset stage, coarse to fine, in cells."""
        return tuple(self.grid << level for level in range(LEVELS))

    def to_json_dict(self) -> dict[str, Any]:
        """Return the sizes as a nested dict of numbers and lists, ready for `json.dumps`."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json_dict(cls, value: object) -> ModelConfig:
        """Return the config of a dict of `to_json_dict`.

        Raises PicoPoseError that names the entry that is missing, unknown, of the wrong type or out of range.
        """
        return _parse_part(cls, value, "config")


VIT_L = ModelConfig()
"""The released network: DINOv2 ViT-L/14 at 224 px."""
MINI = ModelConfig(
    vit=VitConfig(width=160, depth=4, heads=4, position_grid=16, output_blocks=(0, 1, 2, 3), stem_width=32),
    affine=AffineConfig(width=64, groups=16, hidden=(256, 256), head_width=128),
    dpt=DptConfig(projections=(8, 48, 96, 96), width=32, depth_widths=(8, 4)),
    decoder=DecoderConfig(
        width=32, correlation_widths=(48, 32), flow_widths=(24, 16), motion_width=32, head_widths=(48, 24)
    ),
)
"""The small network that ships with the package; trained from random weights."""


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _parse_part(kind: type[Part], value: object, name: str) -> Part:
    if not isinstance(value, Mapping):
        raise _invalid(f"{name} is not a table of sizes")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    wrong = sorted(set(known) ^ {str(key) for key in value})
    _require(not wrong, f"{name} has missing or unknown entries: {', '.join(wrong)}")
    return kind(**{key: _parse_entry(hints[key], value[key], f"{name}.{key}") for key in known})


def _parse_entry(kind: Any, value: object, name: str) -> Any:
    if is_dataclass(kind):
        return _parse_part(kind, value, name)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise _invalid(f"{name} {value!r} is not a list of {len(kinds)} sizes")
        return tuple(_parse_entry(entry_kind, entry, name) for entry_kind, entry in zip(kinds, value, strict=True))
    if type(value) is not int:  # a bool is an int
        raise _invalid(f"{name} {value!r} is not a whole number")
    return value
