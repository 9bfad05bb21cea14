"""Stage 2: a 2D similarity from the template's crop to the observation's crop."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from picopose_cli.network.config import ModelConfig

_LEAK = 0.1


@dataclass(frozen=True)
class AffineEstimate:
    """The result of stage 2 for N pairs, all f32.

    `translation_cells` (N,2): translation of the object's projected origin, (x, y) in patch cells; `scale` (N,);
    `cos_sin` (N,2) of the in-plane angle; `A_obs_from_tmpl` (N,3,3) composed of these, in crop pixels.
    """

    translation_cells: Tensor
    scale: Tensor
    cos_sin: Tensor
    A_obs_from_tmpl: Tensor


class AffineRegressor(nn.Module):
    """Regresses translation, scale and in-plane rotation from the similarity volume (paper section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes, cells, half_grid = config.affine, config.grid**2, config.grid // 2
        self.features = nn.Sequential(
            nn.Conv2d(cells, sizes.width, 1),
            nn.GroupNorm(sizes.groups, sizes.width),
            nn.ReLU(),
            nn.Conv2d(sizes.width, sizes.width, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(sizes.groups, sizes.width),
            nn.ReLU(),
        )
        self.fc1 = nn.Linear(sizes.width * half_grid**2, sizes.hidden[0])
        self.fc2 = nn.Linear(sizes.hidden[0], sizes.hidden[1])
        self.translation_predictor = _head(sizes.hidden[1], sizes.head_width, 2)
        self.scale_predictor = _head(sizes.hidden[1], sizes.head_width, 1)
        self.inplane_predictor = _head(sizes.hidden[1], sizes.head_width, 2)

    def forward(self, volume: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return translation (N,2) in cells, scale (N,), cos and sin (N,2) for similarity volumes (N,P,w,h)."""
        hidden = self.features(volume).flatten(1)
        hidden = F.leaky_relu(self.fc1(hidden), _LEAK)
        hidden = F.leaky_relu(self.fc2(hidden), _LEAK)
        cos_sin = F.normalize(torch.tanh(self.inplane_predictor(hidden).float()), dim=1)
        return self.translation_predictor(hidden).float(), self.scale_predictor(hidden).float()[:, 0], cos_sin


def compose_affine(translation_px: Tensor, scale: Tensor, cos_sin: Tensor, origin_tmpl_crop: Tensor) -> Tensor:
    """Return A_obs_from_tmpl (N,3,3), which rotates, scales and moves the projected origin by `translation_px` (N,2).

    `scale` (N,), `cos_sin` (N,2), `origin_tmpl_crop` (N,2) px: the object's origin in the template's crop.
    """
    cos, sin = (scale[:, None] * cos_sin).unbind(1)
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # (N,2,2)
    rotated = (linear * origin_tmpl_crop[:, None]).sum(2)  # no matmul: autocast would round the coordinates
    affine = torch.eye(3, device=scale.device).repeat(len(scale), 1, 1)
    affine[:, :2, :2] = linear
    affine[:, :2, 2] = origin_tmpl_crop + translation_px - rotated
    return affine


def _head(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
