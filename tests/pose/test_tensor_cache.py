from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

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


def test_threads_that_need_the_same_tensor_compute_it_once():
    cache, computed, both = TensorCache(64), [], threading.Barrier(2)

    def value() -> torch.Tensor:
        computed.append(1)
        time.sleep(0.05)
        return torch.zeros(4)

    def get(_: int) -> torch.Tensor:
        both.wait()
        return cache.get("key", value)

    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(get, range(2))
    assert one is other
    assert computed == [1]
    assert cache.bytes == 16
