from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Let PyTorch use one thread, as child processes and workers do: another number of threads rounds otherwise."""
    import torch  # not everywhere where tests of this room run

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
