"""The DINOv2 vision transformer, evaluated at another resolution than it was trained at (arXiv 2304.07193)."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  (the customary name)
from torch import Tensor, nn

from picopose_cli.network.config import VitConfig

FeatureMaps = tuple[Tensor, ...]
"""Four maps (B,C,h,w) on the patch grid, from shallow to deep."""

_NORM_EPS = 1e-6
_POSITION_OFFSET = 0.1
_STEM_PX = 8
"""Side of a cell in the image that the stem receives, in pixels: its strides halve it three times."""


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and projects each to a token."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.patch_px = config.patch_px
        if config.stem_width:
            self.stem = _make_stem(config.stem_width)
            self.proj = nn.Conv2d(4 * config.stem_width, config.width, 3, padding=1)
        else:
            self.proj = nn.Conv2d(3, config.width, config.patch_px, stride=config.patch_px)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return tokens (B,P,C), row-major, of images (B,3,H,W)."""
        if hasattr(self, "stem"):
            inputs = self.stem(_shrunk(inputs, self.patch_px))
        patches: Tensor = self.proj(inputs)
        return patches.flatten(2).transpose(1, 2)


def _shrunk(inputs: Tensor, patch_px: int) -> Tensor:
    """Return images (B,3,H,W) resized from cells of `patch_px` pixels per side to cells of `_STEM_PX`."""
    size = [side // patch_px * _STEM_PX for side in inputs.shape[-2:]]
    return F.interpolate(inputs, size=size, mode="bilinear", antialias=True)


def _make_stem(width: int) -> nn.Sequential:
    """Return convolutions (B,3,8h,8w) -> (B,4*width,h,w): a small network learns local features faster with them."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (3, width, 2),
        (width, 2 * width, 2),
        (2 * width, 2 * width, 1),
        (2 * width, 4 * width, 2),
        (4 * width, 4 * width, 1),
    ):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.GELU(),
        ]
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mix tokens (B,T,C)."""
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B,heads,T,C/heads) each
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return out


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.fc2 = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map each token (B,T,C) by itself."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Scale tokens (B,T,C)."""
        return tokens * self.gamma


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=_NORM_EPS)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Update tokens (B,T,C)."""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.ls2(self.mlp(self.norm2(tokens)))
        return out


class DinoV2(nn.Module):
    """The backbone. `mask_token` and `norm` are part of DINOv2's file and have no influence on the maps."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.position_grid**2, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_NORM_EPS)

    def forward(self, inputs: Tensor) -> FeatureMaps:
        """Return the outputs (B,C,h,w) of the four `output_blocks` of images (B,3,H,W), without the class token."""
        height, width = (size // self.config.patch_px for size in inputs.shape[-2:])
        patches = self.patch_embed(inputs)
        tokens = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)  # (B,1+P,C)
        tokens = tokens + resized_position_embedding(self.pos_embed, self.config.position_grid, (height, width))
        maps = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.config.output_blocks:
                cells = tokens[:, 1:].transpose(1, 2)  # (B,C,P)
                maps.append(cells.reshape(*cells.shape[:2], height, width))
        return tuple(maps)


def resized_position_embedding(pos_embed: Tensor, trained_grid: int, grid_hw: tuple[int, int]) -> Tensor:
    """Return the position embedding (1,1+h*w,C) for a grid of (h, w) cells, from (1,1+g*g,C) for `trained_grid` g.

    PARITY: the bicubic scale factor is (cells + 0.1) / g and not cells / g, as in DINOv2's code: the sampling points
    are shifted by a fraction of a cell, and the weights were trained with that.
    """
    if grid_hw == (trained_grid, trained_grid):
        return pos_embed
    class_token, cells = pos_embed[:, :1], pos_embed[:, 1:]
    image = cells.reshape(1, trained_grid, trained_grid, -1).permute(0, 3, 1, 2)  # (1,C,g,g)
    scale_y, scale_x = ((cells + _POSITION_OFFSET) / trained_grid for cells in grid_hw)
    resized = F.interpolate(image.float(), scale_factor=(scale_y, scale_x), mode="bicubic", antialias=False)
    return torch.cat([class_token, resized.flatten(2).transpose(1, 2).to(class_token.dtype)], dim=1)
