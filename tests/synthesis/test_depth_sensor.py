"""Generated depth has the faults that its sensor is known for, and leaves everything else of a data set alone."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from picopose_cli.bop.datasets import open_dataset, read_scene_cameras
from picopose_cli.bop.images import read_depth_m
from picopose_cli.synthesis.bop_dataset import write_procedural_dataset
from picopose_cli.synthesis.conditions import Conditions
from picopose_cli.synthesis.depth_sensor import DEPTH_SENSORS, structured_light, time_of_flight

K = np.array([[575.0, 0, 160], [0, 575, 120], [0, 0, 1]])


def step(near_m: float = 0.8, far_m: float = 1.2) -> np.ndarray:
    """A wall, and a nearer one on the left half of the image."""
    depth_m = np.full((240, 320), far_m)
    depth_m[:, :160] = near_m
    return depth_m


@pytest.mark.parametrize("measure", DEPTH_SENSORS.values(), ids=DEPTH_SENSORS)
def test_depth_is_right_up_to_noise_with_some_holes(measure):
    exact = np.full((240, 320), 0.8)
    measured = measure(np.random.default_rng(0), exact, K)
    known = measured > 0
    assert 0.6 < known.mean() < 0.995
    error = measured[known] - 0.8
    assert abs(np.median(error)) < 0.004
    assert 0.0005 < error.std() < 0.004
    np.testing.assert_array_equal(measured, measure(np.random.default_rng(0), exact, K))


def test_structured_light_errs_with_the_square_of_the_distance_in_steps_and_has_shadows():
    std_m = []
    for depth_m in (0.6, 1.2):
        measured = structured_light(np.random.default_rng(1), np.full((240, 320), depth_m), K)
        known = measured[measured > 0]
        std_m.append(known.std())
        assert len(np.unique(known.round(9))) < 30
    assert 2.5 < std_m[1] / std_m[0] < 6
    measured = structured_light(np.random.default_rng(1), step(), K)
    shadow_px = 575 * 0.075 * (1 / 0.8 - 1 / 1.2)
    assert (measured[:, 161 : 159 + int(shadow_px)] == 0).mean() > 0.98  # to the right of what is near
    assert (measured[:, 182:] > 0).mean() > 0.6
    assert (measured[:, 100:158] > 0).mean() > 0.6


def test_time_of_flight_mixes_both_sides_of_an_edge():
    measured = time_of_flight(np.random.default_rng(1), step(), K)
    flying = (measured > 0.82) & (measured < 1.18)
    assert flying[:, 157:163].any()
    assert not flying[:, :150].any()
    assert not flying[:, 170:].any()
    np.testing.assert_allclose(measured * 1000, np.round(measured * 1000), atol=1e-6)


def test_nothing_is_measured_where_there_is_nothing_or_a_surface_is_too_steep():
    depth_m = np.full((240, 320), 0.8)
    depth_m[:60] = 0
    depth_m[60:120] += 0.02 * np.arange(60)[:, None]  # 86 degrees
    for measure in DEPTH_SENSORS.values():
        measured = measure(np.random.default_rng(2), depth_m, K)
        assert (measured[:58] == 0).all()
        assert (measured[62:118] == 0).all()


def test_a_data_set_differs_in_its_depth_alone(tmp_path):
    small = Conditions(size_hw=(120, 160), min_target_px=25, max_objects=2)
    arguments = {"objects": 2, "images": 1, "seed": 5, "conditions": small}
    exact = write_procedural_dataset(tmp_path, "exact", **arguments)
    measured = write_procedural_dataset(tmp_path, "measured", measure_depth=structured_light, **arguments)
    different = sorted(
        str(path.relative_to(exact))
        for path in exact.rglob("*")
        if path.is_file() and path.read_bytes() != (measured / path.relative_to(exact)).read_bytes()
    )
    assert different == ["test/000000/depth/000000.png", "test/000000/scene_gt_info.json"]
    infos = [json.loads((root / different[1]).read_text())["0"] for root in (exact, measured)]
    for one, other in zip(*infos, strict=True):
        assert {name for name in one if one[name] != other[name]} <= {"px_count_valid"}
    dataset = open_dataset("measured", tmp_path)
    depth_m = read_depth_m(dataset.depth_path(0, 0), read_scene_cameras(dataset, 0)[0].depth_scale)
    truth_m = read_depth_m(open_dataset("exact", tmp_path).depth_path(0, 0), 0.1)
    inside = cv2.erode((truth_m > 0).astype(np.uint8), np.ones((5, 5))) > 0
    both = inside & (depth_m > 0)
    assert both.sum() > 100
    assert np.median(np.abs(depth_m - truth_m)[both]) < 0.003
    assert (depth_m[truth_m == 0] > 0).mean() > 0.3  # the background has depth, too
