"""The network's stages on a small network and on inputs made by hand, each against a slow plain oracle."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers.networks import CROP_56, random_network
from torch import Tensor

from picopose_cli.network import correlation
from picopose_cli.network.affine import AffineEstimate, compose_affine
from picopose_cli.network.bundled import bundled_weights
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.config import VIT_L
from picopose_cli.network.correlation import lookup_correlation
from picopose_cli.network.matching import (
    best_views,
    masks_on_grid,
    similarity_volume,
    template_scores,
    unit_cells,
)
from picopose_cli.network.offsets import OffsetEstimate, OffsetFeatures, sample_at, start_offsets, upsample
from picopose_cli.network.picopose import PicoPose, store_in_bf16
from picopose_cli.network.vit import Attention, resized_position_embedding

NEVER_USED = (
    "feature_extractor.dinov2.mask_token",
    "feature_extractor.dinov2.norm.",
    "offset_regressor.dpt_head.projects.0.",
    "offset_regressor.dpt_head.resize_layers.0.",
    "offset_regressor.dpt_head.scratch.layer1_rn.",
    "offset_regressor.dpt_head.scratch.refinenet1.",
    "offset_regressor.dpt_head.scratch.refinenet4.resConfUnit1.",
    "offset_regressor.dpt_head.scratch.output_conv1.",
    "offset_regressor.dpt_head.scratch.output_conv2.",
)
GRID = CROP_56.grid
CELLS = GRID**2


@pytest.fixture(scope="module")
def network() -> PicoPose:
    return random_network(CROP_56)


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _images(count: int, draw: torch.Generator) -> Tensor:
    return torch.randn(count, 3, CROP_56.crop_px, CROP_56.crop_px, generator=draw)


def _masks(count: int, draw: torch.Generator) -> Tensor:
    return torch.rand(count, GRID, GRID, generator=draw) < 0.7


def _cells(count: int, draw: torch.Generator, cells: int = CELLS, width: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, cells, width, generator=draw), dim=2)


def _close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


# ---- the whole


def test_released_size() -> None:
    with torch.device("meta"):
        tensors = PicoPose(VIT_L).state_dict()
    assert len(tensors) == 603
    assert sum(tensor.numel() for tensor in tensors.values()) == pytest.approx(380.9e6, rel=1e-4)


def test_shapes_of_every_stage(network: PicoPose, draw: torch.Generator) -> None:
    maps = network.extract(_images(2, draw))
    assert [tuple(level.shape) for level in maps] == [(2, 16, GRID, GRID)] * 4
    grids = CROP_56.flow_grids
    assert [tuple(level.shape) for level in network.decode(maps)] == [(2, 10, grid, grid) for grid in grids]
    features = network.offset_features(maps)
    assert [tuple(level.shape) for level in features] == [(2, 12, grid, grid) for grid in grids]
    cells = unit_cells(maps[-1])
    assert cells.shape == (2, CELLS, 16)
    pairs = torch.tensor([[0, 1], [1, 1], [0, 0]])
    masks, origins = _masks(3, draw), torch.full((3, 2), 28.0)
    affine = network.regress_affine(cells[pairs[:, 0]], cells[pairs[:, 1]], masks, origins)
    assert affine.translation_cells.shape == affine.cos_sin.shape == (3, 2)
    assert affine.scale.shape == (3,)
    assert affine.A_obs_from_tmpl.shape == (3, 3, 3)
    offsets = network.regress_offsets(features, features, pairs, affine.A_obs_from_tmpl, masks)
    assert [tuple(flow.shape) for flow in offsets.flows] == [(3, 2, grid, grid) for grid in grids]
    assert [tuple(logit.shape) for logit in offsets.certainty_logits] == [(3, 1, grid, grid) for grid in grids]


def test_tensors_without_effect_are_the_documented_ones(draw: torch.Generator) -> None:
    network = random_network(CROP_56)
    maps = network.extract(_images(1, draw))
    cells, features = unit_cells(maps[-1]), network.offset_features(maps)
    ones = torch.ones(1, GRID, GRID)
    affine = network.regress_affine(cells, cells, ones, torch.zeros(1, 2))
    offsets = network.regress_offsets(features, features, torch.zeros(1, 2).long(), affine.A_obs_from_tmpl, ones)
    outputs = [affine.A_obs_from_tmpl, *offsets.flows, *offsets.certainty_logits]
    sum(output.sum() for output in outputs).backward()  # type: ignore[union-attr]
    unused = {name for name, tensor in network.named_parameters() if tensor.grad is None}
    assert unused == {name for name, _ in network.named_parameters() if name.startswith(NEVER_USED)}


def test_the_shallowest_map_may_be_left_out(network: PicoPose, draw: torch.Generator) -> None:
    maps = network.extract(_images(1, draw))
    for with_all, without in zip(network.offset_features(maps), network.offset_features(maps[1:]), strict=True):
        assert torch.equal(with_all, without)


def _estimate(
    network: PicoPose, query: Tensor, template: Tensor, masks: Tensor
) -> tuple[AffineEstimate, OffsetEstimate]:
    """Run one pair an entry, everything of a pair in the same batch."""
    query_maps, template_maps = network.extract(query), network.extract(template)
    affine = network.regress_affine(
        unit_cells(query_maps[-1]), unit_cells(template_maps[-1]), masks, torch.full((len(query), 2), 20.0)
    )
    index = torch.arange(len(query))[:, None].expand(-1, 2)
    offsets = network.regress_offsets(
        network.offset_features(query_maps),
        network.offset_features(template_maps),
        index,
        affine.A_obs_from_tmpl,
        masks,
    )
    return affine, offsets


def test_a_pair_does_not_depend_on_its_batch(network: PicoPose, draw: torch.Generator) -> None:
    query, template, masks = _images(5, draw), _images(5, draw), _masks(5, draw)
    affine, offsets = _estimate(network, query, template, masks)
    for one in range(5):
        part = slice(one, one + 1)
        affine_alone, offsets_alone = _estimate(network, query[part], template[part], masks[part])
        _close(affine.A_obs_from_tmpl[part], affine_alone.A_obs_from_tmpl, 1e-4)
        for level in range(3):
            _close(offsets.flows[level][part], offsets_alone.flows[level], 1e-3)
            _close(offsets.certainty_logits[level][part], offsets_alone.certainty_logits[level], 1e-3)


def _features(count: int, draw: torch.Generator) -> OffsetFeatures:
    width = CROP_56.decoder.width
    return tuple(torch.randn(count, width, grid, grid, generator=draw) for grid in CROP_56.flow_grids)


@pytest.mark.parametrize("pairs_at_a_time", [1, 3, 7, 100])
def test_pairs_share_features_by_index(network: PicoPose, draw: torch.Generator, pairs_at_a_time: int) -> None:
    query, template = _features(2, draw), _features(3, draw)
    pairs = torch.tensor([*product(range(2), range(3)), (1, 0)])
    affine = torch.eye(3).repeat(7, 1, 1)
    affine[:, :2, 2] = torch.randn(7, 2, generator=draw) * 10
    masks = _masks(7, draw)
    shared = network.regress_offsets(query, template, pairs, affine, masks, pairs_at_a_time=pairs_at_a_time)
    for row, (of_query, of_template) in enumerate(pairs.tolist()):
        alone = network.regress_offsets(
            tuple(level[of_query : of_query + 1] for level in query),
            tuple(level[of_template : of_template + 1] for level in template),
            torch.zeros(1, 2, dtype=torch.int64),
            affine[row : row + 1],
            masks[row : row + 1],
        )
        _close(shared.flows[-1][row], alone.flows[-1][0], 1e-3)
        _close(shared.certainty_logits[-1][row], alone.certainty_logits[-1][0], 1e-3)


def test_no_pairs_give_an_empty_estimate(network: PicoPose, draw: torch.Generator) -> None:
    features = _features(1, draw)
    none = torch.zeros(0, 2, dtype=torch.int64)
    estimate = network.regress_offsets(features, features, none, torch.zeros(0, 3, 3), torch.zeros(0, GRID, GRID))
    assert [tuple(flow.shape) for flow in estimate.flows] == [(0, 2, grid, grid) for grid in CROP_56.flow_grids]


def test_coordinates_stay_exact_under_autocast(network: PicoPose, draw: torch.Generator) -> None:
    query, template, masks = _images(2, draw), _images(2, draw), _masks(2, draw)
    affine, offsets = _estimate(network, query, template, masks)
    with torch.autocast("cpu", torch.bfloat16):
        affine_bf16, offsets_bf16 = _estimate(network, query, template, masks)
        start = start_offsets(affine.A_obs_from_tmpl, masks, 14)
        moved = compose_affine(torch.ones(2, 2), affine.scale, affine.cos_sin, torch.full((2, 2), 111.3))
        scores = template_scores(_cells(1, draw), masks[:1], _cells(4, draw))
    for half, full in zip(offsets_bf16.flows, offsets.flows, strict=True):
        assert half.dtype == torch.float32
        assert (half - full).abs().mean() < 0.1
    assert affine_bf16.A_obs_from_tmpl.dtype == scores.dtype == torch.float32
    assert torch.equal(start[0], start_offsets(affine.A_obs_from_tmpl, masks, 14)[0])
    exact = compose_affine(torch.ones(2, 2), affine.scale, affine.cos_sin, torch.full((2, 2), 111.3))
    assert torch.equal(moved, exact)


def test_import_leaves_torch_as_it_was() -> None:
    code = """
import torch
def switches():
    cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    return (*cuda, torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_device(),
            torch.initial_seed(), torch.get_rng_state().sum().item())
torch.manual_seed(3)
before = switches()
import picopose_cli.network.checkpoint, picopose_cli.network.picopose
from picopose_cli.network.config import VIT_L
with torch.device("meta"):
    picopose_cli.network.picopose.PicoPose(VIT_L)
assert switches() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---- backbone


def test_attention_against_the_plain_formula(draw: torch.Generator) -> None:
    attention = random_network(CROP_56).feature_extractor.dinov2.blocks[0].attn
    assert isinstance(attention, Attention)
    tokens = torch.randn(2, 6, 16, generator=draw)
    query, key, value = attention.qkv(tokens).split(16, dim=2)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weights = torch.softmax(query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(8), dim=2)
        heads.append(weights @ value[..., part])
    _close(attention(tokens), attention.proj(torch.cat(heads, dim=2)))


def _plain_cubic(signal: Tensor, positions: list[float]) -> Tensor:
    """Sample a signal (g,) at positions inside with the cubic convolution kernel, a = -0.75."""
    a, values = -0.75, []
    for position in positions:
        total = 0.0
        for tap in range(math.floor(position) - 1, math.floor(position) + 3):
            d = abs(position - tap)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * (d**3 - 5 * d**2 + 8 * d - 4)
            total += (near if d <= 1 else far) * signal[tap].item()
        values.append(total)
    return torch.tensor(values)


def test_parity_position_embedding_is_scaled_by_a_tenth_of_a_cell_too_much(draw: torch.Generator) -> None:
    trained, grid = 37, 16
    signal = torch.randn(trained, generator=draw)
    across, down = signal.expand(trained, trained), signal[:, None].expand(trained, trained)
    cells = torch.stack([across, down], dim=-1).reshape(1, trained**2, 2)
    resized = resized_position_embedding(torch.cat([torch.full((1, 1, 2), -7.0), cells], dim=1), trained, (grid, grid))
    assert resized.shape == (1, 1 + grid**2, 2)
    assert torch.equal(resized[0, 0], torch.full((2,), -7.0))  # the class token's own
    wanted = _plain_cubic(signal, [(cell + 0.5) * trained / (grid + 0.1) - 0.5 for cell in range(1, grid - 1)])
    image = resized[0, 1:].view(grid, grid, 2)
    _close(image[5, 1:-1, 0], wanted)
    _close(image[1:-1, 5, 1], wanted)


def test_position_embedding_of_the_trained_grid_is_not_touched(draw: torch.Generator) -> None:
    embedding = torch.randn(1, 1 + 9, 4, generator=draw)
    assert resized_position_embedding(embedding, 3, (3, 3)) is embedding


# ---- matching


def test_a_stem_keeps_the_grid_and_the_released_layout_has_none(draw: torch.Generator) -> None:
    config = replace(CROP_56, vit=replace(CROP_56.vit, stem_width=4))
    network = random_network(config)
    maps = network.extract(torch.randn(2, 3, config.crop_px, config.crop_px, generator=draw))
    assert [tuple(level.shape) for level in maps] == [(2, config.vit.width, config.grid, config.grid)] * 4
    added = set(network.state_dict()) - set(random_network(CROP_56).state_dict())
    assert added
    assert all(".patch_embed.stem." in name for name in added)


def test_unit_cells_are_row_major_and_of_length_one(draw: torch.Generator) -> None:
    features = torch.randn(2, 5, 3, 4, generator=draw)
    cells = unit_cells(features)
    _close(cells[1, 1 * 4 + 2], features[1, :, 1, 2] / features[1, :, 1, 2].norm())


def test_masks_on_grid_take_the_top_left_pixel(draw: torch.Generator) -> None:
    masks = torch.rand(3, 224, 224, generator=draw) < 0.5
    nearest = F.interpolate(masks[:, None].float(), size=(16, 16), mode="nearest")[:, 0]
    on_grid = masks_on_grid(masks, 16)
    assert torch.equal(on_grid, nearest.bool())
    assert on_grid.untyped_storage().nbytes() == on_grid.nbytes  # the large masks can be freed


def _plain_score(query_cells: Tensor, mask: Tensor, template_cells: Tensor) -> float:
    """Score one view as the method's description says it, cell by cell."""
    similarity = query_cells @ template_cells.T
    similarity[~mask.flatten()] = 0
    total = 0.0
    for i in range(len(similarity)):
        of_observation, of_template = similarity[i].argmax().item(), similarity[:, i].argmax().item()
        if mask.flatten()[i] and of_observation != 0 and of_template != 0:
            total += similarity[i].max().item()
    return total / len(similarity)


@pytest.mark.parametrize("values_at_a_time", [1, 1000, 1 << 23])
def test_template_scores(draw: torch.Generator, monkeypatch: pytest.MonkeyPatch, values_at_a_time: int) -> None:
    monkeypatch.setattr("picopose_cli.network.matching._MAX_SIMILARITIES", {"cpu": values_at_a_time})
    query, templates, masks = _cells(3, draw), _cells(7, draw), _masks(3, draw)
    masks[2] = False
    scores = template_scores(query, masks, templates)
    wanted = [[_plain_score(query[b], masks[b], templates[v]) for v in range(7)] for b in range(3)]
    _close(scores, torch.tensor(wanted))
    assert torch.equal(scores[2], torch.zeros(7))


def _one_hot_score(observation: list[int], template: list[int]) -> float:
    """Score a view whose cells are unit axes, in quarters: cells match where they show the same axis."""
    axes = torch.eye(6)
    scores = template_scores(axes[observation][None], torch.ones(1, 2, 2), axes[template][None])
    return 4 * scores.item()


def test_parity_matches_with_the_first_cell_are_thrown_away() -> None:
    # Cell i counts if its own best template cell is not 0, and the best observation cell of template cell i is not 0.
    assert _one_hot_score([0, 1, 2, 3], [0, 1, 2, 3]) == 3  # 0 matches 0: lost
    assert _one_hot_score([3, 1, 2, 0], [0, 1, 2, 3]) == 3  # 3 matches 0: lost; 0 matches 3: kept
    assert _one_hot_score([3, 1, 2, 1], [0, 1, 2, 3]) == 2  # 3 matches 1, but template cell 3 is best seen by 0: lost
    assert _one_hot_score([4, 1, 3, 5], [0, 1, 2, 3]) == 1  # 2 matches 3, but nothing is like template cell 2: lost
    assert _one_hot_score([5, 5, 5, 5], [0, 1, 2, 3]) == 0  # nothing alike: every argmax is the first


def test_best_views_fall_and_ties_go_to_the_first() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    values, views = best_views(scores, 3)
    assert views.tolist() == [[1, 3, 2], [0, 1, 2]]
    assert torch.equal(values[0], torch.tensor([0.5, 0.5, 0.3]))
    assert best_views(scores, 9)[1].shape == (2, 5)


def test_similarity_volume(draw: torch.Generator) -> None:
    query, template, masks = _cells(2, draw), _cells(2, draw), _masks(2, draw)
    volume = similarity_volume(query, template, masks)
    assert volume.shape == (2, CELLS, GRID, GRID)
    for n, s, row, col in product(range(2), range(CELLS), range(GRID), range(GRID)):
        cosine = max(0.0, (query[n, row * GRID + col] @ template[n, s]).item())
        wanted = cosine if masks[n].flatten()[s] else 0.0
        assert volume[n, s, col, row].item() == pytest.approx(wanted, abs=1e-6)


def test_parity_similarity_volume_is_transposed() -> None:
    query, template = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    query[0, 1, 0] = 1  # observation cell (row 0, col 1)
    template[0, 3, 0] = 1
    volume = similarity_volume(query, template, torch.ones(1, 2, 2))
    assert volume.nonzero().tolist() == [[0, 3, 1, 0]]


# ---- affine


def test_affine_moves_the_origin_and_turns_the_rest(draw: torch.Generator) -> None:
    angle = torch.rand(4, generator=draw) * 6
    cos_sin = torch.stack([angle.cos(), angle.sin()], dim=1)
    scale, origin = torch.rand(4, generator=draw) + 0.5, torch.rand(4, 2, generator=draw) * 224
    translation = torch.randn(4, 2, generator=draw) * 14
    affine = compose_affine(translation, scale, cos_sin, origin)
    moved = (affine @ torch.cat([origin, torch.ones(4, 1)], dim=1)[..., None])[..., 0]
    _close(moved[:, :2], origin + translation, 1e-4)
    _close(moved[:, 2], torch.ones(4))
    right = affine[:, :2, 0] / scale[:, None]  # where the x axis goes: x to y is a positive angle
    _close(right, cos_sin)
    _close(torch.linalg.det(affine), scale**2, 1e-4)


def test_translation_is_in_patch_cells(network: PicoPose, draw: torch.Generator) -> None:
    cells, origin = _cells(3, draw, width=16), torch.rand(3, 2, generator=draw) * 56
    estimate = network.regress_affine(cells, cells.flip(0), _masks(3, draw), origin)
    moved = (estimate.A_obs_from_tmpl @ torch.cat([origin, torch.ones(3, 1)], dim=1)[..., None])[:, :2, 0]
    _close(moved - origin, 14 * estimate.translation_cells, 1e-4)
    _close(estimate.cos_sin.norm(dim=1), torch.ones(3))


# ---- offsets


def _plain_lookup(template: Tensor, observation: Tensor, target: Tensor, radius: int, levels: int) -> Tensor:
    """Build the whole correlation volume, pool it, and sample it: RAFT's lookup, with the first window axis along x."""
    pairs, width, rows, cols = template.shape
    volume = torch.einsum("ncq,ncyx->nqyx", template.flatten(2), observation) / math.sqrt(width)
    volume = volume.reshape(pairs * rows * cols, 1, *observation.shape[-2:])
    sampled = []
    for level in range(levels):
        size_xy = torch.tensor([volume.shape[-1] - 1, volume.shape[-2] - 1])
        centre = target.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) / 2**level
        for x, y in product(range(-radius, radius + 1), repeat=2):
            grid = 2 * (centre + torch.tensor([x, y])) / size_xy - 1
            sampled.append(F.grid_sample(volume, grid, align_corners=True).view(pairs, rows, cols))
        volume = F.avg_pool2d(volume, 2)
    return torch.stack(sampled, dim=1)


@pytest.mark.parametrize("max_values", [1, 5000, 1 << 22])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_lookup_against_the_whole_volume(
    draw: torch.Generator, monkeypatch: pytest.MonkeyPatch, levels: int, max_values: int
) -> None:
    monkeypatch.setattr(correlation, "_MAX_VALUES_CPU", max_values)
    template, observation = (torch.randn(2, 7, 12, 12, generator=draw) for _ in range(2))
    target = torch.rand(2, 2, 12, 12, generator=draw) * 30 - 9  # some far outside
    target[:, :, 0] = target[:, :, 0].round()  # some on cells
    target[0, :, 1, 0] = torch.tensor([1e9, -1e9])
    looked_up = lookup_correlation(template, observation, target, radius=2, pyramid_levels=levels)
    _close(looked_up, _plain_lookup(template, observation, target, 2, levels), 1e-4)


@pytest.mark.parametrize("max_features", [1, 20000, 1 << 20])
def test_gathered_features_give_the_values_of_the_volume(
    draw: torch.Generator, monkeypatch: pytest.MonkeyPatch, max_features: int
) -> None:
    template, observation = (torch.randn(2, 7, 16, 12, generator=draw) for _ in range(2))
    target = torch.rand(2, 2, 16, 12, generator=draw) * 30 - 9
    wanted = lookup_correlation(template, observation, target, radius=2, pyramid_levels=3)
    monkeypatch.setattr(correlation, "_MIN_CELLS_PER_VALUE", 0)
    monkeypatch.setattr(correlation, "_MAX_READ_FEATURES", max_features)
    with torch.inference_mode():
        assert correlation._gathers_features(observation, 2)
        _close(lookup_correlation(template, observation, target, radius=2, pyramid_levels=3), wanted, 1e-5)
    assert not correlation._gathers_features(observation, 2)  # gradients may be asked for


def test_parity_first_window_axis_moves_x() -> None:
    observation = torch.arange(25.0).view(1, 1, 5, 5)
    template, target = torch.ones(1, 1, 5, 5), torch.full((1, 2, 5, 5), 2.0)
    window = lookup_correlation(template, observation, target, radius=1, pyramid_levels=1)[0, :, 0, 0]
    assert window.tolist() == [6, 11, 16, 7, 12, 17, 8, 13, 18]  # down the columns, not along the rows


def test_sampling_at_targets(draw: torch.Generator) -> None:
    features = torch.randn(1, 3, 6, 6, generator=draw)
    target = torch.full((1, 2, 6, 6), -3.0)  # outside: zero
    target[0, :, 0, 0] = torch.tensor([4.0, 1.0])
    target[0, :, 0, 1] = torch.tensor([2.5, 1.0])
    target[0, :, 0, 2] = torch.tensor([5.5, 0.0])  # half outside
    sampled = sample_at(features, target)
    _close(sampled[0, :, 0, 0], features[0, :, 1, 4])
    _close(sampled[0, :, 0, 1], (features[0, :, 1, 2] + features[0, :, 1, 3]) / 2)
    _close(sampled[0, :, 0, 2], features[0, :, 0, 5] / 2)
    assert torch.equal(sampled[0, :, 1:], torch.zeros(3, 5, 6))


def test_start_of_the_flow(draw: torch.Generator) -> None:
    affine = torch.eye(3) + torch.randn(2, 3, 3, generator=draw) * torch.tensor(
        [[0.3, 0.3, 20], [0.3, 0.3, 20], [0, 0, 0]]
    )
    masks = _masks(2, draw)
    flow, logits = start_offsets(affine, masks, 14)
    assert torch.equal(logits[:, 0], masks.float())
    for n, row, col in product(range(2), range(GRID), range(GRID)):
        centre = torch.tensor([(col + 0.5) * 14, (row + 0.5) * 14, 1])
        target = (affine[n] @ centre)[:2] / 14 if masks[n, row, col] else torch.zeros(2)
        _close(flow[n, :, row, col], target - torch.tensor([col, row]), 1e-4)


def test_levels_hand_over_twice_the_flow(draw: torch.Generator) -> None:
    network = random_network(CROP_56)
    decoder = network.offset_regressor.flow_decoder
    with torch.no_grad():
        for level in range(3):  # heads that add a constant
            decoder.flow_pred[level].predict_layer.weight.zero_()
            decoder.flow_pred[level].predict_layer.bias.copy_(torch.tensor([1.0, -2.0]))
            decoder.mask_pred[level].predict_layer.weight.zero_()
            decoder.mask_pred[level].predict_layer.bias.fill_(0.5)
    features, affine, masks = _features(1, draw), torch.eye(3)[None], _masks(1, draw)
    estimate = network.regress_offsets(features, features, torch.zeros(1, 2).long(), affine, masks)
    step, (flow, logits) = torch.tensor([1.0, -2.0])[:, None, None], start_offsets(affine, masks, 14)
    for level in range(3):
        if level:
            flow, logits = 2 * upsample(flow), upsample(logits)
        flow, logits = flow + step, logits + 0.5
        _close(estimate.flows[level], flow)
        _close(estimate.certainty_logits[level], logits)


# ---- precision


def test_weights_stored_in_bf16_give_what_autocast_gives(draw: torch.Generator) -> None:
    images = _images(2, draw)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network = random_network(CROP_56)
        wanted = network.extract(images)
        half = store_in_bf16(random_network(CROP_56))
        for level, expected in zip(half.extract(images), wanted, strict=True):
            assert torch.equal(level, expected)
    assert half.offset_regressor.flow_decoder.flow_pred[0].predict_layer.weight.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.affine_regressor.parameters()} == {torch.float32}


def test_bf16_stays_close_in_the_bundled_network(draw: torch.Generator) -> None:
    network = load_network(bundled_weights())
    images = F.interpolate(torch.randn(2, 3, 28, 28, generator=draw), size=224, mode="bilinear")
    affine, masks = torch.eye(3)[None], torch.ones(1, 16, 16)
    flows = []
    for precision in ("fp32", "bf16"):
        if precision == "bf16":
            store_in_bf16(network)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = network.offset_features(network.extract(images))
            estimate = network.regress_offsets(features, features, torch.tensor([[0, 0]]), affine, masks)
            flows.append(estimate.flows[-1])
    difference = (flows[0] - flows[1]).norm(dim=1)
    assert 0 < difference.median() < 0.3  # cells of the finest grid
