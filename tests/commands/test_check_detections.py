"""`picopose check` on detections: entries, targets, and masks against the ground truth."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from helpers.rendered_bop import HEIGHT, WIDTH, cnos_entry, write_bop_dataset

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import CheckOptions
from picopose_cli.commands import check


@pytest.fixture
def toy(tmp_path):
    return write_bop_dataset(tmp_path / "data", images=3)


def own_entries(toy):
    """Two entries an image, of objects 1 and 2."""
    return json.loads((toy.root / "detections.json").read_text())


def write_entries(tmp_path, entries):
    path = tmp_path / "mine_toy-test.json"
    path.write_text(json.dumps(entries))
    return path


def run(toy, path, **options):
    return check.run(CheckOptions(path, data_dir=toy.data_dir, **options))


def test_perfect_detections(toy, tmp_path, capsys):
    path = write_entries(tmp_path, own_entries(toy))
    packed = tmp_path / "mine_toy-test.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        report = run(toy, file)
        assert (report.exit_code, report.findings) == (0, ())
        assert report.lines == (
            "6 detections of 3 images can be used, 0 entries cannot",
            "6 of 6 targets (100.0%) have a detection, 0 get one of another object, relabelled, 0 get none",
            "infer would estimate 6 poses from the 6 detections",
            "recall of 6 visible masks by the masks that infer would use: 100.0% at IoU 0.5, 100.0% at IoU 0.75",
        )
        assert capsys.readouterr().out.strip().endswith(f"{file.name}: no faults")


def test_each_fault_is_named_and_counted(toy, tmp_path):
    """Image 0: one unusable entry; image 1: a small mask and one of another size; image 2: no detection."""
    broken, relabelled, tiny, other_size, *_ = own_entries(toy)
    del broken["score"]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:3, :3] = True
    tiny["segmentation"] = cnos_entry(1, 1, 1, mask)["segmentation"]
    other_size["segmentation"] = {"counts": [16], "size": [4, 4]}
    report = run(toy, write_entries(tmp_path, [broken, relabelled, tiny, other_size]))
    assert report.exit_code == 1
    assert [finding.text.split(";")[0] for finding in report.findings] == [
        "entry 0: score is missing, not a finite number",
        "target without a detection: object 1 of scene 1, image 2",
        "target without a detection: object 2 of scene 1, image 2",
        "scene 1, image 1, object 2: the mask is 4x4 px, its image 320x240",
    ]
    assert report.lines == (
        "3 detections of 2 images can be used, 1 entries cannot",
        "3 of 6 targets (50.0%) have a detection, 1 get one of another object, relabelled, 2 get none",
        "infer would estimate 4 poses from the 3 detections",
        "recall of 6 visible masks by the masks that infer would use: 16.7% at IoU 0.5, 16.7% at IoU 0.75",
    )


def test_recall_is_of_masks_by_overlap_and_of_boxes_without_masks(toy, tmp_path):
    entries = [entry for entry in own_entries(toy) if entry["image_id"] == 0]
    full = np.concatenate(
        [np.full(count, index % 2) for index, count in enumerate(entries[0]["segmentation"]["counts"])]
    )
    inside = np.flatnonzero(full)
    part = full.copy()
    part[inside[: int(0.4 * len(inside))]] = 0  # an IoU of .6
    entries[0]["segmentation"] = cnos_entry(1, 0, 1, part.reshape(WIDTH, HEIGHT).T)["segmentation"]
    x, y, w, h = entries[1]["bbox"]
    entries[1] |= {"segmentation": None, "bbox": [x - 5 * w, y - 5 * h, 11 * w, 11 * h]}
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"scene_id": 1, "im_id": 0}]))
    report = run(toy, write_entries(tmp_path, entries), targets=str(targets))
    assert report.lines[-1].endswith(
        "2 visible masks by the masks that infer would use: 50.0% at IoU 0.5, 0.0% at IoU 0.75"
    )
    assert report.lines[1].startswith("1 of 1 targets (100.0%) have a detection")


def test_files_that_infer_cannot_use(toy, tmp_path, capsys):
    report = run(toy, write_entries(tmp_path, []))
    assert report.exit_code == 2
    assert "there is no detection that can be used" in {finding.text for finding in report.findings}
    assert capsys.readouterr().out.strip().endswith("infer cannot use it")
    entries = [{**entry, "scene_id": 9} for entry in own_entries(toy)]
    report = run(toy, write_entries(tmp_path, entries))
    assert report.exit_code == 2
    assert "none of the detections is of a target image: check scene and image ids" in {
        finding.text for finding in report.findings
    }
    with pytest.raises(PicoPoseError, match=r"missing_toy-test\.json"):
        run(toy, tmp_path / "missing_toy-test.json")


def test_without_data_only_the_entries_are_checked(toy, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("BOP_PATH", raising=False)
    report = check.run(CheckOptions(write_entries(tmp_path, own_entries(toy))))
    assert (report.exit_code, len(report.lines)) == (1, 1)
    assert capsys.readouterr().out.strip().endswith("it was not compared with targets")


def test_ground_truth_without_masks_is_said(toy, tmp_path):
    for path in (toy.root / "test/000001/mask_visib").glob("000000_*.png"):
        path.unlink()
    lines = run(toy, write_entries(tmp_path, own_entries(toy))).lines
    assert lines[-1] == "2 instances have no mask in mask_visib: not compared"
    assert lines[-2].startswith("recall of 4 visible masks")
