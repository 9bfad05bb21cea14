"""A cache of tensors with a budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor


class TensorCache:
    """Thread-safe: the most recently used tensors within a budget of bytes; one that is larger is stored alone."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._tensors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0
        """Number of bytes that are stored."""

    def __contains__(self, key: Hashable) -> bool:
        return key in self._tensors

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the tensor of a key, computed if it is not stored; one at a time is."""
        with self._lock:
            if key not in self._tensors:
                tensor = compute()
                while self._tensors and self.bytes + tensor.nbytes > self._budget:
                    self.bytes -= self._tensors.popitem(last=False)[1].nbytes
                self._tensors[key] = tensor
                self.bytes += tensor.nbytes
            self._tensors.move_to_end(key)
            return self._tensors[key]
