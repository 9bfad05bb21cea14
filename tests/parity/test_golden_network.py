"""Every stage of the network against recorded outputs of the released one on the same weights and inputs.

Bounds are about ten times what a CPU reaches in f32 (1e-6), and ten times tighter than what the recording promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import Golden, Layout, Looked, template_inputs
from torch import Tensor

from picopose_cli.base.geometry import apply_affine, project_points
from picopose_cli.network.affine import AffineEstimate
from picopose_cli.network.checkpoint import load_network
from picopose_cli.network.config import VIT_L
from picopose_cli.network.matching import best_views, similarity_volume, template_scores
from picopose_cli.network.offsets import OffsetEstimate, start_offsets
from picopose_cli.network.picopose import PicoPose

HYPOTHESES = range(3)
FEATURES, COARSE, FINE = 1e-5, 1e-5, 1e-4


def relative_error(actual: Tensor, wanted: Any) -> float:
    """Return norm of difference / norm."""
    wanted = torch.from_numpy(wanted).double()
    assert actual.shape == wanted.shape
    return ((actual.double() - wanted).norm() / wanted.norm()).item()


@dataclass(frozen=True)
class Hypothesis:
    """The three observations, each with its k-th template: what goes in and what our network says."""

    template_cells: Tensor
    template_masks: Tensor
    affine: AffineEstimate
    offsets: OffsetEstimate


@pytest.fixture(scope="module")
def hypotheses(seeded_network: PicoPose, golden: Golden, queries: Looked, templates: list[Looked]) -> list[Hypothesis]:
    with torch.inference_mode():
        features = seeded_network.offset_features(queries.maps)
        return [_hypothesis(seeded_network, golden, queries, features, templates, rank) for rank in HYPOTHESES]


def _hypothesis(
    network: PicoPose, golden: Golden, queries: Looked, features: Any, templates: list[Looked], rank: int
) -> Hypothesis:
    objects, views = golden["query_obj_index"], golden["out_template_id_topk"][:, rank]
    chosen = [(templates[index], int(view)) for index, view in zip(objects, views, strict=True)]
    cells = torch.stack([template.cells[view] for template, view in chosen])
    masks = torch.stack([template.masks[view] for template, view in chosen])
    maps = tuple(torch.stack([template.maps[level][view] for template, view in chosen]) for level in range(4))
    xyz_tmpl = golden["template_in_pose"][objects, views][:, None, :3, 3]
    uv_image = project_points(golden["K_template"], xyz_tmpl)
    origins = apply_affine(golden["template_in_M"][objects, views], uv_image)[:, 0]
    affine = network.regress_affine(queries.cells, cells, masks, torch.from_numpy(origins).float())
    pairs = torch.arange(len(objects))[:, None].expand(-1, 2)
    offsets = network.regress_offsets(features, network.offset_features(maps), pairs, affine.A_obs_from_tmpl, masks)
    return Hypothesis(cells, masks, affine, offsets)


def test_names_shapes_types_and_order_of_the_released_tensors(layout: Layout) -> None:
    with torch.device("meta"):
        tensors = PicoPose(VIT_L).state_dict()
    ours = {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}
    assert list(ours.items()) == list(layout.items())


def test_template_inputs_are_the_recorded_ones(golden: Golden) -> None:
    assert relative_error(torch.from_numpy(template_inputs(golden, 0)[0]), golden["template_in_rgb_first"]) < 1e-6


@pytest.mark.parametrize("level", range(4))
def test_features_of_the_observations(golden: Golden, queries: Looked, level: int) -> None:
    features = queries.maps[level]
    assert relative_error(features[:, :8], golden[f"out_query_feat{level}_chan0_8"]) < FEATURES
    assert relative_error(features.norm(dim=1), golden[f"out_query_feat{level}_norm"]) < FEATURES


@pytest.mark.parametrize("object_index", range(2))
def test_features_of_the_templates(golden: Golden, templates: list[Looked], object_index: int) -> None:
    features = templates[object_index].maps[-1]
    assert relative_error(features[:, :8], golden["out_template_feat_last_chan0_8"][object_index]) < FEATURES
    assert relative_error(features.norm(dim=1), golden["out_template_feat_last_norm"][object_index]) < FEATURES


@pytest.mark.parametrize("query", range(3))
def test_template_scores_and_choice(golden: Golden, queries: Looked, templates: list[Looked], query: int) -> None:
    part = slice(query, query + 1)
    template = templates[golden["query_obj_index"][query]]
    scores, views = best_views(template_scores(queries.cells[part], queries.masks[part], template.cells), 5)
    np.testing.assert_allclose(scores[0], golden["out_template_score_topk"][query], rtol=1e-4, atol=1e-6)
    assert views[0].tolist() == golden["out_template_id_topk"][query].tolist()


@pytest.mark.parametrize("rank", HYPOTHESES)
def test_similarity_volume(golden: Golden, queries: Looked, hypotheses: list[Hypothesis], rank: int) -> None:
    volume = similarity_volume(queries.cells, hypotheses[rank].template_cells, hypotheses[rank].template_masks)
    assert relative_error(volume[0], golden[f"out_hyp{rank}_similarity_first"]) < 1e-3  # recorded in half precision


@pytest.mark.parametrize("rank", HYPOTHESES)
def test_affine(golden: Golden, hypotheses: list[Hypothesis], rank: int) -> None:
    affine = hypotheses[rank].affine
    assert relative_error(affine.translation_cells, golden[f"out_hyp{rank}_translation"]) < COARSE
    assert relative_error(affine.scale, golden[f"out_hyp{rank}_scale"]) < COARSE
    assert relative_error(affine.cos_sin, golden[f"out_hyp{rank}_inplane_cos_sin"]) < COARSE
    assert relative_error(affine.A_obs_from_tmpl, golden[f"out_hyp{rank}_affine"]) < COARSE


@pytest.mark.parametrize("rank", HYPOTHESES)
def test_start_of_the_flow(golden: Golden, hypotheses: list[Hypothesis], rank: int) -> None:
    flow, logits = start_offsets(hypotheses[rank].affine.A_obs_from_tmpl, hypotheses[rank].template_masks, 14)
    assert relative_error(flow, golden[f"out_hyp{rank}_init_flow"]) < COARSE
    assert torch.equal(logits, torch.from_numpy(golden[f"out_hyp{rank}_init_certainty"]))


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("rank", HYPOTHESES)
def test_flow_and_certainty(golden: Golden, hypotheses: list[Hypothesis], rank: int, level: int) -> None:
    offsets = hypotheses[rank].offsets
    assert relative_error(offsets.flows[level], golden[f"out_hyp{rank}_flow{level}"]) < FINE
    assert relative_error(offsets.certainty_logits[level], golden[f"out_hyp{rank}_certainty_logit{level}"]) < FINE


@pytest.mark.slow
def test_the_released_file_layout_loads_to_the_same_function(
    tmp_path: Path, seeded_network: PicoPose, golden: Golden
) -> None:
    weights = {f"network.{name}": tensor for name, tensor in seeded_network.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 1, "optimizer_states": [{"state": {}}]}, tmp_path / "released.ckpt")
    network = load_network(tmp_path / "released.ckpt")
    with torch.inference_mode():
        features = network.extract(torch.from_numpy(golden["query_in_rgb"][:1]))[-1]
    assert relative_error(features[:, :8], golden["out_query_feat3_chan0_8"][:1]) < FEATURES
