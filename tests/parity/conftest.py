"""The released network seen from outside (reference data), and our network on the same weights and inputs.

Computed once a run: the weights take about ten seconds to draw and 19 crops about twenty to look at, on two cores.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import Golden, Layout, Looked, template_inputs
from torch import Tensor

from picopose_cli.network.config import VIT_L
from picopose_cli.network.matching import masks_on_grid, unit_cells
from picopose_cli.network.picopose import PicoPose


@pytest.fixture(scope="session")
def golden_dir(shared_dir: Path) -> Path:
    return shared_dir / "golden"


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Golden:
    with np.load(golden_dir / "network.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="session")
def layout(golden_dir: Path) -> Layout:
    return {
        name: tuple(entry) for name, entry in json.loads((golden_dir / "checkpoint_layout.json").read_text()).items()
    }


@pytest.fixture(scope="session")
def seeded_network(golden_dir: Path, layout: Layout) -> PicoPose:
    """The full network with a reproducible value for every tensor."""
    seeded = _seeded_rule(golden_dir / "seeded_weights.py")

    def draw(name: str) -> tuple[str, Tensor]:
        return name, torch.from_numpy(np.asarray(seeded(name, tuple(layout[name][0]))))

    with ThreadPoolExecutor(2) as threads:
        weights = dict(threads.map(draw, layout))
    with torch.device("meta"):
        network = PicoPose(VIT_L)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval()


def _seeded_rule(path: Path) -> Callable[[str, tuple[int, ...]], Any]:
    spec = importlib.util.spec_from_file_location("seeded_weights", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.seeded  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def queries(seeded_network: PicoPose, golden: Golden) -> Looked:
    """The three observations, from the prepared inputs."""
    return _look(seeded_network, golden["query_in_rgb"], golden["query_in_mask"])


@pytest.fixture(scope="session")
def templates(seeded_network: PicoPose, golden: Golden) -> list[Looked]:
    """The eight templates of each of the two objects."""
    return [
        _look(seeded_network, template_inputs(golden, object_index), golden["template_in_mask"][object_index])
        for object_index in range(2)
    ]


def _look(network: PicoPose, inputs: Any, masks: Any) -> Looked:
    with torch.inference_mode():
        maps = network.extract(torch.from_numpy(inputs))
        return Looked(maps, unit_cells(maps[-1]), masks_on_grid(torch.from_numpy(masks), VIT_L.grid))
