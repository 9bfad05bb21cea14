"""XFeat and LighterGlue: maps, keypoints, matches and weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network import bundled
from picopose_cli.network.integrity import LOCAL_FEATURES_SHA256
from picopose_cli.network.local_features import DenseFeatures, Keypoints, LocalFeatureNetwork
from picopose_cli.network.local_matcher import LocalMatcher, load_local_features

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


@pytest.fixture(scope="module")
def matcher() -> LocalMatcher:
    return load_local_features()


def random_images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_maps_have_their_shapes_and_descriptors_length_one(matcher):
    dense = matcher.features.dense(random_images(2, 3, 64, 96))
    assert dense.descriptors.shape == (2, 64, 8, 12)
    assert dense.keypoint_logits.shape == (2, 65, 8, 12)
    assert dense.reliability.shape == (2, 1, 8, 12)
    torch.testing.assert_close(dense.descriptors.norm(dim=1), torch.ones(2, 8, 12))
    assert dense.reliability.min() >= 0
    assert dense.reliability.max() <= 1


def test_neither_colour_nor_brightness_nor_the_rest_of_the_batch_matters(matcher):
    images = random_images(2, 3, 64, 64)
    dense = matcher.features.dense(images)
    changed = matcher.features.dense(0.5 * images[1:].mean(1, keepdim=True) + 0.2)
    torch.testing.assert_close(changed.descriptors, dense.descriptors[1:], rtol=0, atol=1e-3)
    torch.testing.assert_close(changed.reliability, dense.reliability[1:], rtol=0, atol=1e-3)


def test_an_image_of_one_colour_has_finite_maps(matcher):
    dense = matcher.features.dense(torch.full((1, 3, 32, 32), 0.5))
    assert torch.isfinite(dense.descriptors).all()
    assert torch.isfinite(dense.keypoint_logits).all()


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 72), (1, 2, 64, 64), (3, 64, 64), (1, 1, 0, 32)])
def test_images_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"images (are|have shape)"):
        LocalFeatureNetwork().dense(torch.zeros(shape))


def test_bf16_gives_similar_descriptors(matcher):
    images = random_images(1, 3, 64, 64)
    dense = load_local_features(precision="bf16").features.dense(images)
    assert dense.descriptors.dtype == torch.float32
    similarity = (dense.descriptors * matcher.features.dense(images).descriptors).sum(1)
    assert similarity.min() > 0.98


def test_the_recorded_hash_is_that_of_the_readme_and_the_file():
    assert LOCAL_FEATURES_SHA256 in (WEIGHTS / "README.md").read_text()
    assert hashlib.sha256((WEIGHTS / "local_features.safetensors").read_bytes()).hexdigest() == LOCAL_FEATURES_SHA256


def test_a_missing_or_changed_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "site-packages/picopose_cli/network/bundled.py"))
    with pytest.raises(PicoPoseError, match=r"local_features\.safetensors.*is missing.*install picopose again"):
        load_local_features()
    path = tmp_path / "site-packages/picopose_cli/weights/local_features.safetensors"
    path.parent.mkdir(parents=True)
    data = bytearray((WEIGHTS / "local_features.safetensors").read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(PicoPoseError, match="SHA-256 is not that of the shipped file"):
        load_local_features()


def dense_with_peaks(peaks: list[tuple[int, int]], height: int = 32, width: int = 64) -> DenseFeatures:
    """Maps with a keypoint of about the same probability at each (row, column), first one best."""
    logits = torch.zeros(1, 65, height // 8, width // 8)
    logits[:, 64] = 10
    for rank, (row, column) in enumerate(peaks):
        logits[0, row % 8 * 8 + column % 8, row // 8, column // 8] = 12 - 0.1 * rank
    columns = torch.linspace(0, 1, width // 8).expand(1, 1, height // 8, -1)
    descriptors = torch.cat([1 - columns, columns, torch.zeros(1, 62, height // 8, width // 8)], 1)
    return DenseFeatures(F.normalize(descriptors, dim=1), logits, torch.ones(1, 1, height // 8, width // 8))


def test_keypoints_are_at_pixel_centres_best_first():
    peaks = [(12, 40), (12, 9), (20, 30)]
    found = LocalFeatureNetwork().keypoints(dense_with_peaks(peaks), 0)
    assert found.xy.tolist() == [[40.5, 12.5], [9.5, 12.5], [30.5, 20.5]]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    torch.testing.assert_close(found.descriptors.norm(dim=1), torch.ones(3))
    by_column = found.descriptors[[1, 2, 0], 1]
    assert (by_column.diff() > 0.1).all()  # read between cells, where the keypoint is


def test_of_close_keypoints_the_best_is_kept_and_of_equal_ones_the_first():
    found = LocalFeatureNetwork().keypoints(dense_with_peaks([(9, 20), (11, 22), (9, 25)]), 0)
    assert sorted(found.xy.tolist()) == [[20.5, 9.5], [25.5, 9.5]]
    dense = dense_with_peaks([])
    dense.keypoint_logits[0, 27, 1:3, 1:4] = 12
    found = LocalFeatureNetwork().keypoints(dense, 0, limit=4)
    assert found.xy.tolist() == [[11.5, 11.5], [19.5, 11.5], [27.5, 11.5], [11.5, 19.5]]


def test_mask_and_limit_leave_keypoints_out():
    dense = dense_with_peaks([(12, 40), (12, 9), (20, 30)])
    mask = torch.zeros(32, 64, dtype=torch.uint8)
    mask[:, :35] = 255
    assert LocalFeatureNetwork().keypoints(dense, 0, mask).xy.tolist() == [[9.5, 12.5], [30.5, 20.5]]
    assert LocalFeatureNetwork().keypoints(dense, 0, mask, limit=1).xy.tolist() == [[9.5, 12.5]]
    none = LocalFeatureNetwork().keypoints(dense, 0, mask * 0)
    assert (none.xy.shape, none.descriptors.shape, none.scores.shape) == ((0, 2), (0, 64), (0,))


def test_keypoints_of_an_image_shifted_by_cells_shift_with_it_and_match(matcher):
    image = random_images(1, 1, 20, 20)
    image = F.interpolate(image, size=(160, 160), mode="bicubic").clamp(0, 1)
    images = torch.cat([image[..., :128, :128], image[..., 8:136, 16:144]])
    dense = matcher.features.dense(images)
    a, b = (matcher.features.keypoints(dense, index) for index in range(2))
    indices, scores = matcher.lightglue.match(a, (128, 128), b, (128, 128))
    shift = a.xy[indices[:, 0]] - b.xy[indices[:, 1]]
    is_same = (shift - shift.new_tensor([16, 8])).norm(dim=1) < 0.1
    assert len(indices) > 30
    assert is_same.float().mean() > 0.9
    assert scores.min() > 0.1


def test_matching_without_keypoints_gives_no_matches(matcher):
    some = Keypoints(torch.rand(5, 2), F.normalize(torch.ones(5, 64), dim=1), torch.ones(5))
    none = Keypoints(torch.zeros(0, 2), torch.zeros(0, 64), torch.zeros(0))
    for a, b in ((some, none), (none, some), (none, none)):
        indices, scores = matcher.lightglue.match(a, (32, 32), b, (32, 32))
        assert (indices.shape, scores.shape) == ((0, 2), (0,))


def test_autocast_does_not_change_matches(matcher):
    xy = 64 * random_images(40, 2)
    descriptors = F.normalize(random_images(40, 64) - 0.5, dim=1)
    a, b = (Keypoints(xy, descriptors, torch.ones(40)), Keypoints(xy.flip(0), descriptors.flip(0), torch.ones(40)))
    indices, scores = matcher.lightglue.match(a, (64, 64), b, (64, 64))
    with torch.autocast("cpu", torch.bfloat16):
        again = matcher.lightglue.match(a, (64, 64), b, (64, 64))
    assert indices.tolist() == [[row, 39 - row] for row in indices[:, 0].tolist()]
    assert len(indices) > 20
    assert torch.equal(indices, again[0])
    assert torch.equal(scores, again[1])
