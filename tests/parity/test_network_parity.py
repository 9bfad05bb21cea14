"""Every stage of the network against recorded outputs of the released one on the same weights and inputs.

Bounds are about ten times what a CPU reaches in f32 (1e-6), and ten times tighter than what the recording promises.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recording import (
    DATA_DIR,
    Features,
    Layout,
    Recording,
    compute_features,
    query_inputs,
    read_layout,
    read_recording,
    template_inputs,
)
from seeded_weights import seeded_tensor
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


@pytest.fixture(scope="session")
def layout() -> Layout:
    return read_layout(DATA_DIR / "checkpoint_layout.json")


@pytest.fixture(scope="session")
def seeded_network(layout: Layout) -> PicoPose:
    """The network of the released size with a reproducible value for every tensor."""

    def draw(name: str) -> tuple[str, Tensor]:
        return name, torch.from_numpy(seeded_tensor(name, tuple(layout[name][0])))

    with ThreadPoolExecutor(2) as threads:
        weights = dict(threads.map(draw, layout))
    with torch.device("meta"):
        network = PicoPose(VIT_L)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


@pytest.fixture(scope="session", params=["cut", pytest.param("whole", marks=pytest.mark.slow)])
def recording(request: pytest.FixtureRequest) -> Recording:
    """The recording of this folder: one detection with three templates; and the whole one: three with sixteen."""
    if request.param == "cut":
        return read_recording(DATA_DIR / "network.npz")
    shared_dir: Path = request.getfixturevalue("shared_dir")
    return read_recording(shared_dir / "golden/network.npz")


@pytest.fixture(scope="session")
def queries(seeded_network: PicoPose, recording: Recording) -> Features:
    """The features of the detections."""
    return compute_features(seeded_network, query_inputs(recording), recording["query_in_mask"])


@pytest.fixture(scope="session")
def templates(seeded_network: PicoPose, recording: Recording) -> list[Features]:
    """The features of each object's templates."""
    return [
        compute_features(seeded_network, template_inputs(recording, object_index), masks)
        for object_index, masks in enumerate(recording["template_in_mask"])
    ]


def relative_error(actual: Tensor, wanted: Any) -> float:
    """Return norm of difference / norm."""
    wanted = torch.from_numpy(wanted).double()
    assert actual.shape == wanted.shape
    return ((actual.double() - wanted).norm() / wanted.norm()).item()


@dataclass(frozen=True)
class Hypothesis:
    """The detections, each with its template of one rank: inputs and outputs of stages 2 and 3."""

    template_cells: Tensor
    template_masks: Tensor
    affine: AffineEstimate
    offsets: OffsetEstimate


@pytest.fixture(scope="module")
def hypotheses(
    seeded_network: PicoPose, recording: Recording, queries: Features, templates: list[Features]
) -> list[Hypothesis]:
    with torch.inference_mode():
        features = seeded_network.offset_features(queries.maps)
        return [_hypothesis(seeded_network, recording, queries, features, templates, rank) for rank in HYPOTHESES]


def _hypothesis(
    network: PicoPose, recording: Recording, queries: Features, features: Any, templates: list[Features], rank: int
) -> Hypothesis:
    objects, views = recording["query_obj_index"], recording["out_template_id_topk"][:, rank]
    chosen = [(templates[index], int(view)) for index, view in zip(objects, views, strict=True)]
    cells = torch.stack([template.cells[view] for template, view in chosen])
    masks = torch.stack([template.masks[view] for template, view in chosen])
    maps = tuple(torch.stack([template.maps[level][view] for template, view in chosen]) for level in range(4))
    xyz_tmpl = recording["template_in_pose"][objects, views][:, None, :3, 3]
    uv_image = project_points(recording["K_template"], xyz_tmpl)
    origins = apply_affine(recording["template_in_M"][objects, views], uv_image)[:, 0]
    affine = network.regress_affine(queries.cells, cells, masks, torch.from_numpy(origins).float())
    pairs = torch.arange(len(objects))[:, None].expand(-1, 2)
    offsets = network.regress_offsets(features, network.offset_features(maps), pairs, affine.A_obs_from_tmpl, masks)
    return Hypothesis(cells, masks, affine, offsets)


def test_names_shapes_types_and_order_of_the_released_tensors(layout: Layout) -> None:
    with torch.device("meta"):
        tensors = PicoPose(VIT_L).state_dict()
    ours = {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}
    assert list(ours.items()) == list(layout.items())


def test_layout_equals_the_whole_recording(layout: Layout, shared_dir: Path) -> None:
    assert list(layout.items()) == list(read_layout(shared_dir / "golden/checkpoint_layout.json").items())


def test_prepared_inputs(recording: Recording) -> None:
    if "query_in_rgb" not in recording:
        pytest.skip("the cut recording has the images only")
    assert relative_error(torch.from_numpy(query_inputs(recording)), recording["query_in_rgb"]) < 1e-6
    assert relative_error(torch.from_numpy(template_inputs(recording, 0)[0]), recording["template_in_rgb_first"]) < 1e-6


@pytest.mark.parametrize("level", range(4))
def test_features_of_the_detections(recording: Recording, queries: Features, level: int) -> None:
    features = queries.maps[level]
    assert relative_error(features[:, :8], recording[f"out_query_feat{level}_chan0_8"]) < FEATURES
    assert relative_error(features.norm(dim=1), recording[f"out_query_feat{level}_norm"]) < FEATURES


def test_features_of_the_templates(recording: Recording, templates: list[Features]) -> None:
    for object_index, template in enumerate(templates):
        features = template.maps[-1]
        assert relative_error(features[:, :8], recording["out_template_feat_last_chan0_8"][object_index]) < FEATURES
        assert relative_error(features.norm(dim=1), recording["out_template_feat_last_norm"][object_index]) < FEATURES


def test_template_scores_and_choice(recording: Recording, queries: Features, templates: list[Features]) -> None:
    for query, object_index in enumerate(recording["query_obj_index"]):
        part = slice(query, query + 1)
        wanted = recording["out_template_score_topk"][query]
        scores = template_scores(queries.cells[part], queries.masks[part], templates[object_index].cells)
        best, views = best_views(scores, len(wanted))
        np.testing.assert_allclose(best[0], wanted, rtol=1e-4, atol=1e-6)
        assert views[0].tolist() == recording["out_template_id_topk"][query].tolist()


@pytest.mark.parametrize("rank", HYPOTHESES)
def test_similarity_volume(recording: Recording, queries: Features, hypotheses: list[Hypothesis], rank: int) -> None:
    volume = similarity_volume(queries.cells, hypotheses[rank].template_cells, hypotheses[rank].template_masks)
    assert relative_error(volume[0], recording[f"out_hyp{rank}_similarity_first"]) < 1e-3  # recorded in half precision


@pytest.mark.parametrize("rank", HYPOTHESES)
def test_affine(recording: Recording, hypotheses: list[Hypothesis], rank: int) -> None:
    affine = hypotheses[rank].affine
    assert relative_error(affine.translation_cells, recording[f"out_hyp{rank}_translation"]) < COARSE
    assert relative_error(affine.scale, recording[f"out_hyp{rank}_scale"]) < COARSE
    assert relative_error(affine.cos_sin, recording[f"out_hyp{rank}_inplane_cos_sin"]) < COARSE
    assert relative_error(affine.A_obs_from_tmpl, recording[f"out_hyp{rank}_affine"]) < COARSE


@pytest.mark.parametrize("rank", HYPOTHESES)
def test_start_of_the_flow(recording: Recording, hypotheses: list[Hypothesis], rank: int) -> None:
    flow, logits = start_offsets(hypotheses[rank].affine.A_obs_from_tmpl, hypotheses[rank].template_masks, 14)
    assert relative_error(flow, recording[f"out_hyp{rank}_init_flow"]) < COARSE
    assert torch.equal(logits, torch.from_numpy(recording[f"out_hyp{rank}_init_certainty"]))


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("rank", HYPOTHESES)
def test_flow_and_certainty(recording: Recording, hypotheses: list[Hypothesis], rank: int, level: int) -> None:
    offsets = hypotheses[rank].offsets
    assert relative_error(offsets.flows[level], recording[f"out_hyp{rank}_flow{level}"]) < FINE
    assert relative_error(offsets.certainty_logits[level], recording[f"out_hyp{rank}_certainty_logit{level}"]) < FINE


@pytest.mark.slow
def test_the_released_file_layout_loads_to_the_same_function(
    tmp_path: Path, seeded_network: PicoPose, recording: Recording
) -> None:
    weights = {f"network.{name}": tensor for name, tensor in seeded_network.state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 1, "optimizer_states": [{"state": {}}]}, tmp_path / "released.ckpt")
    network = load_network(tmp_path / "released.ckpt")
    with torch.inference_mode():
        features = network.extract(torch.from_numpy(query_inputs(recording)[:1]))[-1]
    assert relative_error(features[:, :8], recording["out_query_feat3_chan0_8"][:1]) < FEATURES
