from __future__ import annotations

import json
import logging
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.banks import noise_bank
from helpers.networks import random_network
from helpers.queries import random_batch
from safetensors import safe_open

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.pose import matcher as estimator_module
from picopose_cli.pose.matcher import Estimator, Hypothesis
from picopose_cli.pose.template_store import FeatureFile, FeaturesInMemory, FeaturesOnDisk, Kept, feature_file
from picopose_cli.templates.bank import bank_path, write_bank

NETWORK = random_network()
VIEWS = 20  # more than a chunk


@pytest.fixture(scope="module")
def banks_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("banks")
    for obj_id in (1, 7):
        write_bank(bank_path(folder, obj_id), noise_bank(obj_id, views=VIEWS))
    return folder


@pytest.fixture
def folder(banks_dir, tmp_path) -> Path:
    shutil.copytree(banks_dir, tmp_path / "templates")
    return tmp_path / "templates"


class CountingEstimator(Estimator):
    """Counts the views that it computes."""

    computed = 0

    def _compute_features(self, crops_rgb):
        self.computed += len(crops_rgb)
        return super()._compute_features(crops_rgb)


def file_of(folder: Path, obj_id: int = 1, **changes) -> FeatureFile:
    depends_on = {"weights_sha256": "w", "precision": "fp32", "device": "cpu"} | changes
    return feature_file(bank_path(folder, obj_id), **depends_on)


def onboarded(folder: Path | None, precision: str = "fp32") -> CountingEstimator:
    estimator = CountingEstimator(NETWORK, device="cpu", precision=precision, hypotheses=3, paper=True)
    for obj_id in (1, 7):
        file = file_of(folder, obj_id, precision=precision) if folder else None
        estimator.add_object(noise_bank(obj_id, views=VIEWS), file=file)
    return estimator


def assert_identical(a: list[tuple[Hypothesis, ...]], b: list[tuple[Hypothesis, ...]]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert [(h.view, h.score) for h in one] == [(h.view, h.score) for h in other]
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x.T_stage2, y.T_stage2)
            np.testing.assert_array_equal(x.pairs.uv_image, y.pairs.uv_image)
            np.testing.assert_array_equal(x.pairs.certainty, y.pairs.certainty)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_from_disk_change_no_bit(folder, precision):
    batch = random_batch([1, 7, 7, 1])
    expected = onboarded(None, precision).hypotheses(batch)
    first, second = onboarded(folder, precision), onboarded(folder, precision)
    assert (first.computed, second.computed) == (2 * VIEWS, 0)
    assert_identical(first.hypotheses(batch), expected)
    assert_identical(second.hypotheses(batch), expected)


def test_what_was_asked_before_changes_no_bit(folder, monkeypatch):
    batch = random_batch([1, 7, 7, 1])
    expected = onboarded(folder).hypotheses(batch)
    monkeypatch.setattr(estimator_module, "KEPT_OFFSETS_BYTES", 1)
    monkeypatch.setitem(estimator_module.KEPT_CELLS_BYTES, "cpu", 1)
    for before in ([1], [7, 7, 1, 1, 7]):
        estimator = onboarded(folder)
        estimator.hypotheses(random_batch(before, seed=len(before)))
        assert_identical(estimator.hypotheses(batch), expected)


def test_the_file_is_plain_safetensors(folder):
    onboarded(folder)
    config = NETWORK.config
    with safe_open(file_of(folder).path, framework="pt") as handle:
        cells, offsets = handle.get_tensor("cells"), handle.get_tensor("offsets")
        depends_on = json.loads(handle.metadata()["fingerprint"])
    assert cells.shape == (VIEWS, config.grid**2, config.vit.width)
    assert offsets.shape == (VIEWS, 21 * config.grid**2 * config.decoder.width)
    assert depends_on["torch"] == torch.__version__
    found = file_of(folder).read()
    assert isinstance(found, FeaturesOnDisk)
    assert torch.equal(found.cells(), cells)
    assert torch.equal(found.offsets(3), offsets[3])


@pytest.mark.parametrize("changes", [{"weights_sha256": "v"}, {"precision": "bf16"}, {"device": "cuda:0"}])
def test_another_fingerprint_is_made_again(folder, changes, caplog):
    onboarded(folder)
    caplog.set_level(logging.INFO)
    assert file_of(folder).read() is not None
    assert file_of(folder, **changes).read() is None
    assert "made again" in caplog.text


def test_another_bank_is_made_again(folder):
    onboarded(folder)
    write_bank(bank_path(folder, 1), noise_bank(1, views=VIEWS, seed=5))
    assert file_of(folder).read() is None
    assert onboarded(folder).computed == VIEWS  # the other object's file still holds
    assert file_of(folder).read() is not None


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _with_header(data: bytes, change) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


DAMAGES = {
    "empty": lambda data: data[:0],
    "short": lambda data: data[:5],
    "cut in the header": lambda data: data[:100],
    "truncated": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "foreign": lambda data: b"\x89HDF\r\n\x1a\n" + data[8:],
    "a bit of the cells": lambda data: _flip(data, 2000),
    "a bit of the header": lambda data: _flip(data, 20),
    "no metadata": lambda data: _with_header(data, lambda h: {k: v for k, v in h.items() if k != "__metadata__"}),
    "a list": lambda data: _with_header(data, list),
    "another type": lambda data: _with_header(data, lambda h: h | {"cells": h["cells"] | {"dtype": "F8"}}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(folder, damage, caplog):
    batch = random_batch([1, 7])
    expected = onboarded(folder).hypotheses(batch)
    file = file_of(folder)
    whole = file.path.read_bytes()
    file.path.write_bytes(DAMAGES[damage](whole))
    caplog.set_level(logging.INFO)
    again = onboarded(folder)
    assert again.computed == VIEWS
    assert "made again" in caplog.text
    assert_identical(again.hypotheses(batch), expected)
    assert file.path.read_bytes() == whole


def test_a_damaged_view_is_never_used(folder):
    estimator = onboarded(folder)
    path = file_of(folder).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : -16 * VIEWS : 64] = bytes(len(data[len(data) // 2 : -16 * VIEWS : 64]))
    path.write_bytes(data)
    with pytest.raises(PicoPoseError, match="damaged"):
        estimator.hypotheses(random_batch([1] * 4))
    assert onboarded(folder).computed == VIEWS


def test_a_killed_onboarding_goes_on(folder):
    class Killed(CountingEstimator):
        def _compute_features(self, crops_rgb):
            if self.computed >= VIEWS + 1:
                raise KeyboardInterrupt
            return super()._compute_features(crops_rgb)

    estimator = Killed(NETWORK, device="cpu", precision="fp32", hypotheses=3, paper=True)
    estimator.add_object(noise_bank(1, views=VIEWS), file=file_of(folder, 1))
    with pytest.raises(KeyboardInterrupt):
        estimator.add_object(noise_bank(7, views=VIEWS), file=file_of(folder, 7))
    assert [path.name for path in sorted(folder.glob("*.features.*"))] == ["obj_000001.features.safetensors"]
    assert onboarded(folder).computed == VIEWS


def test_a_folder_that_cannot_be_written_warns_once(folder, tmp_path, caplog):
    (tmp_path / "a_file").write_text("")
    estimator = CountingEstimator(NETWORK, device="cpu", precision="fp32", hypotheses=3, paper=True)
    told: list[int] = []
    for obj_id in (1, 7):
        file = FeatureFile(tmp_path / "a_file" / f"{obj_id}.safetensors", "f")
        estimator.add_object(noise_bank(obj_id, views=VIEWS), told.append, file)
    assert sum("not kept" in record.message for record in caplog.records) == 1
    assert told == [16, 4, 16, 4]
    batch = random_batch([1, 7])
    assert_identical(estimator.hypotheses(batch), onboarded(folder).hypotheses(batch))


def test_progress_is_told_when_nothing_is_computed(folder):
    onboarded(folder)
    told: list[int] = []
    estimator = Estimator(NETWORK, device="cpu", precision="fp32", hypotheses=3, paper=True)
    estimator.add_object(noise_bank(1, views=VIEWS), told.append, file_of(folder))
    assert told == [VIEWS]


def test_kept_stays_within_its_budget():
    kept, made = Kept(32), []

    def value(key: int) -> torch.Tensor:
        return kept.get(key, lambda: made.append(key) or torch.full((4,), float(key)))

    for key in (1, 2, 1, 3, 1, 2):  # 16 bytes each: 3 drives 2 out, not 1
        assert value(key).tolist() == [key] * 4
        assert kept.bytes <= 32
    assert made == [1, 2, 3, 2]
    assert len(kept.get("large", lambda: torch.zeros(100))) == 100
    assert kept.bytes == 400


def test_memory_holds_what_no_file_does():
    features = FeaturesInMemory(torch.arange(6.0).view(2, 3, 1), torch.arange(4.0).view(2, 2))
    assert features.cells().shape == (2, 3, 1)
    assert features.offsets(1).tolist() == [2, 3]
