from __future__ import annotations

import pytest
import torch

from picopose_cli.errors import PicoPoseError
from picopose_cli.network.device import choose_device, choose_devices


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
    ("wanted", "text"), [("cuda:0,cuda:2", "cuda:2 is not there"), ("cpu,", "''"), ("cpu,all", "'all' is not known")]
)
@pytest.mark.usefixtures("two_gpus")
def test_a_list_with_a_device_that_is_not_there_is_refused(wanted, text):
    with pytest.raises(PicoPoseError, match=text):
        choose_devices(wanted)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto") == "cpu"
    with pytest.raises(PicoPoseError, match="sees no GPU"):
        choose_devices("all")
