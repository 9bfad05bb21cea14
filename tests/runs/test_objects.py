"""The objects of a run: a bank of another size than the data set's description is not used."""

from __future__ import annotations

import json
import shutil

import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import InferOptions
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.runs.objects import read_objects


@pytest.fixture
def folder(tmp_path, toy_dir):
    shutil.copytree(toy_dir / "toy", tmp_path / "toy")
    return tmp_path


def change_diameters(folder, **factors: float) -> None:
    path = folder / "toy/models/models_info.json"
    infos = json.loads(path.read_text())
    for obj_id, info in infos.items():
        info["diameter"] *= factors.get(f"o{obj_id}", 1.0)
    path.write_text(json.dumps(infos))


def read(folder):
    return read_objects(open_dataset("toy", folder), InferOptions("toy", folder), [1, 2])


def test_a_bank_in_another_unit_than_models_info_is_not_used(folder):
    change_diameters(folder, o2=10.0)
    objects, problems = read(folder)
    assert objects[1] is not None
    assert objects[2] is None
    (problem,) = problems
    assert "object 2" in problem
    assert "models_info.json has" in problem
    assert "--mesh-unit" in problem
    change_diameters(folder, o1=0.1)
    with pytest.raises(PicoPoseError, match="no object can be estimated"):
        read(folder)


def test_sound_banks_and_data_sets_without_models_info(folder):
    objects, problems = read(folder)
    assert None not in objects.values()
    assert problems == []
    (folder / "toy/models/models_info.json").unlink()
    objects, problems = read(folder)
    assert None not in objects.values()
    assert problems == []
