"""Shared fixtures: where optional data lies, and the markers that skip by themselves."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

# The processes of pytest-xdist use the cores; read when PyTorch is loaded, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

PER_VIEW = ("crops_rgb", "masks", "depth_corner_m", "depth_centre_m", "A_crop_from_image", "T_tmpl_from_obj")
SHARED_DIR = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference data beside a developer's checkout; its tests skip where it is absent."""
    if not SHARED_DIR.is_dir():
        pytest.skip("reference data (../shared) is not here")
    return SHARED_DIR


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generated data set `toy`, banks of every eighth view and `tiny.safetensors`: copy to change."""
    from helpers.networks import random_network
    from helpers.rendered_bop import write_bop_dataset

    from picopose_cli.base.options import RenderTemplatesOptions
    from picopose_cli.commands import render_templates
    from picopose_cli.network.checkpoint import save_network
    from picopose_cli.templates.bank import read_bank, write_bank

    folder = tmp_path_factory.mktemp("bop")
    write_bop_dataset(folder, "toy", images=3)
    save_network(folder / "tiny.safetensors", random_network())
    report = render_templates.run(RenderTemplatesOptions(dataset="toy", data_dir=folder, renderer="software"))
    assert report.exit_code == 0
    for path in (folder / "toy/templates").glob("*.h5"):
        bank = read_bank(path)
        views = {name: getattr(bank, name)[::8] for name in PER_VIEW}
        write_bank(path, replace(bank, **views))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = pytest.mark.skip(reason="slow: set PICOPOSE_SLOW=1 to run")
    gpu = pytest.mark.skip(reason="gpu: no CUDA device")
    for item in items:
        if item.get_closest_marker("slow") and os.environ.get("PICOPOSE_SLOW") != "1":
            item.add_marker(slow)
        if item.get_closest_marker("gpu") and not _has_cuda():
            item.add_marker(gpu)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
