from __future__ import annotations

import torch

from picopose_cli.pose.tensor_cache import TensorCache


def test_a_cache_stays_within_its_budget():
    cache, computed = TensorCache(32), []

    def value(key: int) -> torch.Tensor:
        return cache.get(key, lambda: computed.append(key) or torch.full((4,), float(key)))

    for key in (1, 2, 1, 3, 1, 2):  # 16 bytes each: 3 replaces 2, not 1
        assert value(key).tolist() == [key] * 4
        assert cache.bytes <= 32
    assert computed == [1, 2, 3, 2]
    assert len(cache.get("large", lambda: torch.zeros(100))) == 100
    assert cache.bytes == 400
