from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.network import devices as module
from picopose_cli.network.config import MINI, VIT_L
from picopose_cli.network.devices import (
    batch_size_within,
    choose_device,
    choose_devices,
    choose_precision,
    has_fast_bf16,
    suggest_batch_size,
    use_threads_here,
)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [
        ("all", ["cuda:0", "cuda:1"]),
        ("cuda:1", ["cuda:1"]),
        ("cuda:1, cuda", ["cuda:1", "cuda:0"]),
        ("cpu,cpu", ["cpu", "cpu"]),
        ("auto", ["cuda:0"]),
    ],
)
@pytest.mark.usefixtures("two_gpus")
def test_lists_of_devices(wanted, devices):
    assert choose_devices(wanted) == devices


@pytest.mark.parametrize(
    ("wanted", "text"), [("cuda:0,cuda:2", "cuda:2 does not exist"), ("cpu,", "''"), ("cpu,all", "'all' is unknown")]
)
@pytest.mark.usefixtures("two_gpus")
def test_a_list_with_a_missing_device_is_refused(wanted, text):
    with pytest.raises(PicoPoseError, match=text):
        choose_devices(wanted)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == "cpu"
    with pytest.raises(PicoPoseError, match="finds no GPU"):
        choose_devices("all")


def test_a_given_precision_is_used():
    assert choose_precision("fp32", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("flags", "fast"), [({"avx2"}, False), ({"avx512f", "avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)]
)
def test_auto_is_bf16_if_it_is_fast_and_may_be_chosen(monkeypatch, flags, fast):
    monkeypatch.setattr(module, "_cpu_flags", lambda: flags)
    assert has_fast_bf16("cpu") == fast
    for allowed in (False, True):
        monkeypatch.setattr(module, "_AUTO_MAY_BE_BF16", allowed)
        assert choose_precision("auto", "cpu") == ("bf16" if allowed and has_fast_bf16("cpu") else "fp32")


def test_batches_grow_with_free_memory_within_bounds():
    assert suggest_batch_size("cpu", VIT_L) == 16
    sizes = [batch_size_within(gigabytes << 30, VIT_L) for gigabytes in (0, 4, 12, 24, 80)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (16, 128)
    assert all(size % 16 == 0 for size in sizes)
    assert batch_size_within(12 << 30, MINI) == 128


def test_a_thread_may_use_fewer_threads_than_the_others():
    def product_and_threads():
        torch.ones(300, 300) @ torch.ones(300, 300)  # PyTorch reads a thread's number when it is first needed
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(1, initializer=use_threads_here, initargs=(2,)) as own, ThreadPoolExecutor(1) as later:
            assert own.submit(product_and_threads).result() == 2
            assert later.submit(product_and_threads).result() == 3
            assert own.submit(product_and_threads).result() == 2
        assert product_and_threads() == 3
    finally:
        torch.set_num_threads(before)
