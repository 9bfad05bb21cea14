"""The template store: features computed once, with or without a file, and the same to the bit."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.banks import noise_bank
from helpers.networks import random_network
from helpers.queries import random_batch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.pose import template_store as module
from picopose_cli.pose.feature_file import FeatureFile, FeaturesOnDisk, feature_file
from picopose_cli.pose.inference_network import InferenceNetwork
from picopose_cli.pose.matcher import Matcher
from picopose_cli.pose.rules import Hypothesis, PaperRules
from picopose_cli.pose.template_store import FeaturesInMemory, TemplateStore
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


class CountingStore(TemplateStore):
    """Counts the views that it computes."""

    computed = 0

    def _compute(self, crops_rgb):
        self.computed += len(crops_rgb)
        return super()._compute(crops_rgb)


def file_of(folder: Path, obj_id: int = 1, **changes) -> FeatureFile:
    depends_on = {"weights_sha256": "w", "precision": "fp32", "device": "cpu"} | changes
    return feature_file(bank_path(folder, obj_id), **depends_on)


def make_store(precision: str = "fp32", store_type: type[CountingStore] = CountingStore) -> CountingStore:
    return store_type(InferenceNetwork(NETWORK, device="cpu", precision=precision))


def onboarded(folder: Path | None, precision: str = "fp32") -> CountingStore:
    store = make_store(precision)
    for obj_id in (1, 7):
        file = file_of(folder, obj_id, precision=precision) if folder else None
        store.add_object(noise_bank(obj_id, views=VIEWS), file=file)
    return store


def match(store: TemplateStore, batch) -> tuple[tuple[Hypothesis, ...], ...]:
    return Matcher(store._network, store, PaperRules(3)).match(batch)


def assert_identical(a: tuple[tuple[Hypothesis, ...], ...], b: tuple[tuple[Hypothesis, ...], ...]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert [(h.view, h.template_score) for h in one] == [(h.view, h.template_score) for h in other]
        for x, y in zip(one, other, strict=True):
            np.testing.assert_array_equal(x.T_stage2, y.T_stage2)
            np.testing.assert_array_equal(x.correspondences.uv_image, y.correspondences.uv_image)
            np.testing.assert_array_equal(x.correspondences.certainty, y.correspondences.certainty)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_from_disk_change_no_bit(folder, precision):
    batch = random_batch([1, 7, 7, 1])
    expected = match(onboarded(None, precision), batch)
    first, second = onboarded(folder, precision), onboarded(folder, precision)
    assert (first.computed, second.computed) == (2 * VIEWS, 0)
    assert isinstance(second[1].features, FeaturesOnDisk)
    assert_identical(match(first, batch), expected)
    assert_identical(match(second, batch), expected)


def test_earlier_batches_change_no_bit(folder, monkeypatch):
    batch = random_batch([1, 7, 7, 1])
    expected = match(onboarded(folder), batch)
    monkeypatch.setitem(module.CPU_CACHE_BYTES, "offsets", 1)
    monkeypatch.setitem(module.CPU_CACHE_BYTES, "cells", 1)
    for before in ([1], [7, 7, 1, 1, 7]):
        store = onboarded(folder)
        match(store, random_batch(before, seed=len(before)))
        assert_identical(match(store, batch), expected)


def test_what_was_read_ahead_is_not_read_again(folder, monkeypatch):
    onboarded(folder)
    store, read = onboarded(folder), []
    plain = FeaturesOnDisk.offsets

    def offsets(self, view, device):
        read.append((view, threading.current_thread()))
        return plain(self, view, device)

    monkeypatch.setattr(FeaturesOnDisk, "offsets", offsets)
    store.offset_features([(1, 0)])
    store.read_ahead([(1, 0), (1, 3), (7, 3), (1, 3)])
    features, index = store.offset_features([(7, 3), (1, 3), (1, 0), (1, 4)])
    assert index == [0, 1, 2, 3]
    assert [view for view, _ in read] == [0, 3, 3, 4]
    assert [thread is threading.current_thread() for _, thread in read] == [True, False, False, True]
    expected, _ = onboarded(None).offset_features([(7, 3), (1, 3), (1, 0), (1, 4)])
    for one, other in zip(features, expected, strict=True):
        assert torch.equal(one, other)


def test_damage_that_is_found_ahead_is_reported_where_the_view_is_needed(folder, monkeypatch):
    onboarded(folder)
    store = onboarded(folder)

    def damaged(*_):
        raise PicoPoseError("template features are damaged")

    monkeypatch.setattr(FeaturesOnDisk, "offsets", damaged)
    store.read_ahead([(1, 5)])
    with pytest.raises(PicoPoseError, match="damaged"):
        store.offset_features([(1, 5)])


def test_another_bank_is_computed_again(folder):
    onboarded(folder)
    write_bank(bank_path(folder, 1), noise_bank(1, views=VIEWS, seed=5))
    assert file_of(folder).read() is None
    assert onboarded(folder).computed == VIEWS  # the other object's file is still valid
    assert file_of(folder).read() is not None


def test_a_damaged_file_is_computed_again(folder, caplog):
    batch = random_batch([1, 7])
    expected = match(onboarded(folder), batch)
    path = file_of(folder).path
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    caplog.set_level(logging.INFO)
    again = onboarded(folder)
    assert again.computed == VIEWS
    assert "computed again" in caplog.text
    assert_identical(match(again, batch), expected)
    assert len(path.read_bytes()) == len(data)


def test_a_view_that_is_damaged_meanwhile_is_never_used(folder):
    store = onboarded(folder)
    path = file_of(folder).path
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 2, len(data) - 4096, 64)
    data[middle] = bytes(len(data[middle]))
    path.write_bytes(data)
    with pytest.raises(PicoPoseError, match="damaged"):
        match(store, random_batch([1] * 4))
    assert path.exists()


def test_a_killed_onboarding_is_continued(folder):
    class Killed(CountingStore):
        def _compute(self, crops_rgb):
            if self.computed >= VIEWS + 1:
                raise KeyboardInterrupt
            return super()._compute(crops_rgb)

    store = make_store(store_type=Killed)
    store.add_object(noise_bank(1, views=VIEWS), file=file_of(folder, 1))
    with pytest.raises(KeyboardInterrupt):
        store.add_object(noise_bank(7, views=VIEWS), file=file_of(folder, 7))
    found = {path.name for path in folder.iterdir()}
    assert found == {"obj_000001.h5", "obj_000007.h5", file_of(folder, 1).path.name}
    assert onboarded(folder).computed == VIEWS


def test_chunks_are_computed_in_order_and_few_of_them_ahead(monkeypatch):
    monkeypatch.setattr(module, "TEMPLATE_CHUNK", 1)
    monkeypatch.setattr(module, "thread_count", lambda: 2)
    begun: list[int] = []

    class Numbered(TemplateStore):
        def _compute(self, crops_rgb):
            number = int(crops_rgb[0, 0, 0, 0])
            begun.append(number)
            return torch.tensor([number]), torch.tensor([number])

    store = Numbered(InferenceNetwork(NETWORK, device="cpu", precision="fp32"))
    views = np.arange(12, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    for expected, (cells, _) in enumerate(store._computed_ahead(views)):
        assert cells.item() == expected
        assert len(begun) <= expected + 1 + 2
    assert sorted(begun) == list(range(12))


def test_a_folder_that_cannot_be_written_warns_once(folder, tmp_path, caplog):
    (tmp_path / "a_file").write_text("")
    store = make_store()
    progress: list[int] = []
    for obj_id in (1, 7):
        file = FeatureFile(tmp_path / "a_file" / f"{obj_id}.h5", "f")
        store.add_object(noise_bank(obj_id, views=VIEWS), on_progress=progress.append, file=file)
    assert sum("not stored" in record.message for record in caplog.records) == 1
    assert progress == [16, 4, 16, 4]
    assert isinstance(store[1].features, FeaturesInMemory)
    batch = random_batch([1, 7])
    assert_identical(match(store, batch), match(onboarded(folder), batch))


def test_progress_is_reported_when_nothing_is_computed(folder):
    onboarded(folder)
    progress: list[int] = []
    make_store().add_object(noise_bank(1, views=VIEWS), on_progress=progress.append, file=file_of(folder))
    assert progress == [VIEWS]


def test_features_in_memory():
    features = FeaturesInMemory(torch.arange(6.0).view(2, 3, 1), torch.arange(4.0).view(2, 2))
    assert features.cells().shape == (2, 3, 1)
    assert features.offsets(1, torch.device("cpu")).tolist() == [2, 3]
