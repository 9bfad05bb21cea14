"""XFeat and LighterGlue against recorded outputs of the original code with the same weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from recording import DATA_DIR, Recording, read_recording

from picopose_cli.network.local_features import DenseFeatures, Keypoints
from picopose_cli.network.local_matcher import LocalMatcher, load_local_features

HEIGHT, WIDTH = SIZE = (96, 128)
BOUND = 1e-4


@pytest.fixture(scope="module")
def recording() -> Recording:
    return read_recording(DATA_DIR / "local_features.npz")


@pytest.fixture(scope="module")
def matcher() -> LocalMatcher:
    return load_local_features()


@pytest.fixture(scope="module")
def dense(recording: Recording, matcher: LocalMatcher) -> DenseFeatures:
    return matcher.features.dense(torch.from_numpy(recording["images"])[:, None].float() / 255)


def recorded_keypoints(recording: Recording, image: str) -> Keypoints:
    xy, descriptors, scores = (
        torch.from_numpy(recording[f"{name}_{image}"]) for name in ("keypoints", "descriptors", "scores")
    )
    return Keypoints(xy.float() + 0.5, descriptors, scores)


def in_f64(keypoints: Keypoints) -> Keypoints:
    return Keypoints(keypoints.xy.double(), keypoints.descriptors.double(), keypoints.scores.double())


@pytest.mark.parametrize("name", ["descriptors", "keypoint_logits", "reliability"])
def test_dense_maps(recording, dense, name):
    np.testing.assert_allclose(getattr(dense, name)[:1].numpy(), recording[name], rtol=0, atol=BOUND)


@pytest.mark.parametrize("image", ["a", "b"])
def test_keypoints(recording, matcher, dense, image):
    """The original loses those of the last row and column: it reads their probability outside of the map."""
    found = matcher.features.keypoints(dense, "ab".index(image), limit=1000)
    inside = (found.xy[:, 0] < WIDTH - 1) & (found.xy[:, 1] < HEIGHT - 1)
    want = recorded_keypoints(recording, image)
    best = inside.nonzero()[: len(want.xy), 0]
    np.testing.assert_allclose(found.scores[best], want.scores, rtol=0, atol=BOUND)
    places = {tuple(xy): index for xy, index in zip(found.xy.tolist(), range(len(found.xy)), strict=True)}
    same = [places[tuple(xy)] for xy in want.xy.tolist()]
    assert sorted(same) == best.tolist()
    np.testing.assert_allclose(found.descriptors[same], want.descriptors, rtol=0, atol=BOUND)


def test_match_probabilities(recording, matcher):
    """In f64, as recorded, they are the same; in f32 the original is 1e-4 off itself."""
    a, b = recorded_keypoints(recording, "a"), recorded_keypoints(recording, "b")
    exact = copy.deepcopy(matcher.lightglue).double().assign(in_f64(a), SIZE, in_f64(b), SIZE).exp()
    np.testing.assert_allclose(exact, recording["probabilities"], rtol=0, atol=BOUND / 5)
    used = matcher.lightglue.assign(a, SIZE, b, SIZE).exp()
    np.testing.assert_allclose(used, recording["probabilities"], rtol=0, atol=3 * BOUND)


def test_matches(recording, matcher):
    a, b = recorded_keypoints(recording, "a"), recorded_keypoints(recording, "b")
    indices, scores = matcher.lightglue.match(a, SIZE, b, SIZE)
    assert indices.tolist() == recording["matches"].tolist()
    np.testing.assert_allclose(scores, recording["match_scores"], rtol=0, atol=3 * BOUND)


def test_certain_matches_are_where_the_second_image_was_warped(recording, matcher, dense):
    a, b = (matcher.features.keypoints(dense, index) for index in range(2))
    indices, scores = matcher.lightglue.match(a, SIZE, b, SIZE)
    certain = indices[scores > 0.5]
    want = (a.xy[certain[:, 0]].numpy() - 0.5) @ recording["B_from_a"][:, :2].T + recording["B_from_a"][:, 2]
    distance_px = np.linalg.norm(b.xy[certain[:, 1]].numpy() - 0.5 - want, axis=1)
    assert len(certain) > 20
    assert np.mean(distance_px < 2) > 0.8
