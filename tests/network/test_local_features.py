"""XFeat: its maps and its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network import bundled
from picopose_cli.network.integrity import LOCAL_FEATURES_SHA256
from picopose_cli.network.local_features import LocalFeatureNetwork
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
