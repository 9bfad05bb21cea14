from __future__ import annotations

import pytest
import torch

from picopose_cli.network import device as module
from picopose_cli.network.config import MINI, VIT_L
from picopose_cli.network.device import batch_size_within, choose_precision, has_fast_bf16, suggest_batch_size


def test_a_wish_is_a_wish():
    assert choose_precision("fp32", "cpu") == "fp32"
    assert choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    ("flags", "fast"), [({"avx2"}, False), ({"avx512f", "avx512_bf16"}, True), ({"amx_bf16"}, True), (set(), False)]
)
def test_auto_takes_bf16_where_the_cpu_has_it_and_it_is_allowed(monkeypatch, flags, fast):
    monkeypatch.setattr(module, "_cpu_flags", lambda: flags)
    assert has_fast_bf16("cpu") == (fast and torch.ops.mkldnn._is_mkldnn_bf16_supported())
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
