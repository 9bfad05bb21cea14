"""Refinement on rendered photographs, whose true poses are known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import trimesh
from helpers.meshes import write_ply
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T, rotation_angle_rad
from picopose_cli.base.types import GRID_CELLS, Mesh
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose.close_ups import cut_close_up
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.refine import RefinedPose, Refiner, Subject
from picopose_cli.pose.silhouette_starts import Silhouettes, make_silhouettes
from picopose_cli.pose.solve import RobustPose

K = np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]])
CROP = np.array([[1.4, 0, -260], [0, 1.4, -190], [0, 0, 1]], np.float32)
"""A_crop_from_image of 160 px around (266, 216)."""
SIZE_M = (0.09, 0.06, 0.075)


@pytest.fixture(scope="module")
def matcher():
    return load_local_features()


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return EstimateRenderer({1: (write_ply(folder / "obj_000001.ply", painted_box()), "mm")})


def painted_box() -> Mesh:
    """A box of many faces with blots of random colours."""
    box, rng = trimesh.creation.box(SIZE_M), np.random.default_rng(7)
    for _ in range(5):
        box = box.subdivide()
    centres, colours = rng.uniform(-0.05, 0.05, (120, 3)), rng.integers(20, 255, (120, 3))
    nearest = np.linalg.norm(box.vertices[:, None] - centres, axis=2).argmin(axis=1)
    return Mesh(np.asarray(box.vertices), np.asarray(box.faces, np.int32), colours[nearest].astype(np.uint8))


def photograph(renderer, T: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture (480,480,3) of the object in front of coloured rectangles, and the object's mask."""
    rng = np.random.default_rng(seed)
    image = np.full((480, 480, 3), 110, np.uint8)
    for x, y, width, height in rng.integers(0, 400, (40, 4)):
        image[y : y + height, x : x + width // 2] = rng.integers(0, 255, 3)
    view = renderer(1, T, K, 480)
    image = np.where(view.alpha[..., None] > 127, view.rgb, image)
    noisy = image * 0.8 + rng.normal(0, 4, image.shape) + 15  # darker, less contrast
    return noisy.clip(0, 255).astype(np.uint8), view.depth_m > 0


def true_pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_T(Rotation.random(random_state=rng).as_matrix(), np.array([-0.05, -0.02, 0.55]))


def shaken(T: np.ndarray, angle_deg: float) -> np.ndarray:
    rotation = Rotation.from_rotvec(np.deg2rad(angle_deg) * np.array([0.6, -0.64, 0.48])).as_matrix()
    return make_T(rotation @ T[:3, :3], T[:3, 3] * [1.05, 0.9, 1.05])


def subject(renderer, T: np.ndarray, starts: list[np.ndarray], seed: int = 0) -> Subject:
    image, mask = photograph(renderer, T, seed)
    return Subject(1, cut_close_up(image, mask, CROP, K), [RobustPose(start, 1.0) for start in starts])


def one_silhouette(_: int) -> Silhouettes:
    """A square: contours lead nowhere."""
    one = np.ones((1, 64, 64))
    return make_silhouettes(one, K, np.eye(3)[None], make_T(np.eye(3), np.array([0, 0, 0.5]))[None], np.zeros(3))


def refine(matcher, renderer, subjects, rounds=2):
    with ThreadPoolExecutor(2) as threads:
        return Refiner(matcher, renderer, rounds, one_silhouette).refine(subjects, threads)


def error(T: np.ndarray, T_true: np.ndarray) -> tuple[float, float]:
    """Degrees, and metres."""
    return np.rad2deg(rotation_angle_rad(T[:3, :3], T_true[:3, :3])), np.linalg.norm(T[:3, 3] - T_true[:3, 3])


def test_a_pose_ends_at_the_truth(matcher, renderer):
    truths = [true_pose(seed) for seed in range(4)]
    subjects = [subject(renderer, T, [shaken(T, 12)], seed) for seed, T in enumerate(truths)]
    for found, T in zip(refine(matcher, renderer, subjects), truths, strict=True):
        angle_deg, shift_m = error(found[0].T_cam_from_obj, T)
        assert angle_deg < 1
        assert shift_m < 0.003  # of .55: along the ray


def test_the_right_candidate_wins_with_more_confidence(matcher, renderer):
    T = true_pose(5)
    wrong = make_T(T[:3, :3] @ np.diag([1.0, -1, -1]), T[:3, 3])
    (found,) = refine(matcher, renderer, [subject(renderer, T, [wrong, shaken(T, 5)])])
    assert error(found[0].T_cam_from_obj, T)[0] < 1
    (alone,) = refine(matcher, renderer, [subject(renderer, T, [wrong])])
    assert alone[0].confidence < found[0].confidence
    assert 0 <= alone[0].confidence <= found[0].confidence <= 1


def test_a_candidate_that_is_surer_than_its_refinement_stays(matcher, renderer):
    T = true_pose(0)
    seen = subject(renderer, T, [T])
    dark = replace(seen.close_up, rgb=np.full_like(seen.close_up.rgb, 90))
    sure = RobustPose(T, GRID_CELLS**2, 1.0)
    (found,) = refine(matcher, renderer, [replace(seen, close_up=dark, candidates=[sure])])
    assert found[0] is sure


def test_a_detection_does_not_depend_on_the_others(matcher, renderer):
    truths = [true_pose(seed) for seed in (0, 1)]
    subjects = [subject(renderer, T, [shaken(T, 9), shaken(T, -20)], seed) for seed, T in enumerate(truths)]
    together = refine(matcher, renderer, subjects)
    for one, expected in zip(subjects, together, strict=True):
        (alone,) = refine(matcher, renderer, [one])
        for a, b in zip(alone, expected, strict=True):
            np.testing.assert_array_equal(a.T_cam_from_obj, b.T_cam_from_obj)
            assert a.confidence == b.confidence


def test_what_cannot_be_rendered_stays_as_it_is_or_is_found_anew(matcher, renderer):
    T = true_pose(0)
    seen = subject(renderer, T, [T])
    behind, lost = T * np.array([[1], [1], [-1], [1]]), np.full((4, 4), np.nan)
    unknown, nowhere = replace(seen, obj_id=9), replace(seen, candidates=[RobustPose(behind, 1), RobustPose(lost, 0.5)])
    same, found = refine(matcher, renderer, [unknown, nowhere])
    assert same == tuple(unknown.candidates)
    assert np.isfinite(found[0].T_cam_from_obj).all()  # by its silhouette


def test_a_photograph_without_any_detail_gives_little_confidence(matcher, renderer):
    T = true_pose(0)
    seen = subject(renderer, T, [shaken(T, 3)])
    grey = replace(seen.close_up, rgb=np.full_like(seen.close_up.rgb, 90))
    blind, clear = refine(matcher, renderer, [replace(seen, close_up=grey), seen])
    assert all(np.isfinite(pose.T_cam_from_obj).all() for pose in blind)
    assert blind[0].confidence < clear[0].confidence
    assert isinstance(clear[0], RefinedPose)
