"""Poses finished on exact depth of known shapes end at the truth, and what a depth image says of a pose."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import trimesh
from helpers.banks import PROVENANCE
from helpers.meshes import make_box
from scipy.spatial.transform import Rotation

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import (
    make_T,
    move_origin,
    project_points,
    ray_rotation,
    rotation_angle_rad,
    transform_points,
)
from picopose_cli.base.types import Correspondences, Mesh
from picopose_cli.pose.close_ups import cut_close_up
from picopose_cli.pose.depth_placement import DepthSubject
from picopose_cli.pose.depth_refinement import DepthRefiner, Finished
from picopose_cli.pose.depth_rows import judge_pose, touching_planes
from picopose_cli.pose.depth_samples import DepthSamples, sample_depth
from picopose_cli.pose.depth_search import turned_poses
from picopose_cli.pose.residuals import PosePairs
from picopose_cli.pose.silhouette_starts import Silhouettes, make_silhouettes
from picopose_cli.pose.solve import RobustPose
from picopose_cli.rendering.software import SoftwareRenderer, render_depth
from picopose_cli.templates.build import join_templates, make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

K = np.array([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])
SIZE_HW = (480, 640)
R_TRUE = Rotation.from_euler("xyz", [35, -40, 20], degrees=True).as_matrix()
T_TRUE = make_T(R_TRUE, np.array([0.04, -0.03, 0.7]))
CROP = np.array([[1.4, 0, -376.6], [0, 1.4, -187.4], [0, 0, 1]])
"""A_crop_from_image of 160 px around (349, 214), near the object's centre at (354, 214)."""


def sphere_mesh() -> Mesh:
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.05)
    return Mesh(np.asarray(ball.vertices), np.asarray(ball.faces, np.int32))


def patch_mesh() -> Mesh:
    corners = 0.05 * np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]], np.int32))


MESHES = {"sphere": sphere_mesh(), "box": make_box((0.1, 0.07, 0.08)), "patch": patch_mesh()}


class Renders:
    """Renders one mesh, whatever the object."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def depth(self, obj_id: int, T: np.ndarray, K_of: np.ndarray, side_px: int) -> np.ndarray:
        if obj_id != 1:
            raise PicoPoseError(f"object {obj_id} has no mesh")
        return render_depth(self.mesh, K_of, T, (0, 0, side_px, side_px))


def scene_depth(mesh: Mesh, T: np.ndarray = T_TRUE, wall_m: float = 1.1) -> tuple[np.ndarray, np.ndarray]:
    """The exact depth of an object before a wall, and its mask."""
    depth_m = render_depth(mesh, K, T, (0, 0, SIZE_HW[1], SIZE_HW[0])).astype(np.float64)
    return np.where(depth_m > 0, depth_m, wall_m), depth_m > 0


def samples_of(depth_m: np.ndarray, mask: np.ndarray) -> DepthSamples:
    return sample_depth(depth_m, mask, Pinhole(K), CROP, K)


def shaken(T: np.ndarray, sign: int = 1) -> np.ndarray:
    """A pose that is 5 degrees and 15 mm off, mostly along the ray."""
    rotation = Rotation.from_rotvec(np.deg2rad(5) * sign * np.array([0.6, -0.64, 0.48])).as_matrix()
    shift = 0.015 * np.array([0.2, -0.2, sign * np.sqrt(0.92)])
    return make_T(rotation @ T[:3, :3], T[:3, 3] + shift)


def exact_pairs(mesh: Mesh, count: int = 60) -> PosePairs:
    """Matches of points of the surface, where they are at the true pose."""
    rng = np.random.default_rng(0)
    corners = mesh.vertices_m[mesh.faces[rng.integers(len(mesh.faces), size=count)]]
    xyz = (rng.dirichlet(np.ones(3), count)[:, :, None] * corners).sum(axis=1)
    uv = project_points(K, transform_points(T_TRUE, xyz))
    return PosePairs(Correspondences(uv, xyz, np.ones(count)), K, 1.0)


@cache
def silhouettes(_: int) -> Silhouettes:
    """Those of some views of the box."""
    K_view, T = template_camera(), place_views(0.14)[::9]
    crops = [make_template(SoftwareRenderer(MESHES["box"], K_view, TEMPLATE_SIZE_HW).render(one)) for one in T]
    bank = join_templates(1, crops, K_view, T, 0.14, PROVENANCE)
    return make_silhouettes(bank.depth_centre_m, bank.K, bank.A_crop_from_image, bank.T_tmpl_from_obj, bank.centre_m)


def subject(samples: DepthSamples, *candidates: RobustPose, mask: np.ndarray | None = None) -> DepthSubject:
    """A detection in a picture that shows nothing."""
    mask = np.zeros(SIZE_HW, bool) if mask is None else mask
    return DepthSubject(1, cut_close_up(np.full((*SIZE_HW, 3), 90, np.uint8), mask, CROP, K), samples, candidates)


def finish(mesh: Mesh, *subjects: DepthSubject) -> list[Finished]:
    with ThreadPoolExecutor(2) as threads:
        return DepthRefiner(Renders(mesh), torch.device("cpu"), silhouettes).finish(subjects, threads)


def error(T: np.ndarray, T_true: np.ndarray = T_TRUE) -> tuple[float, float]:
    """Degrees, and millimetres."""
    angle = np.rad2deg(rotation_angle_rad(T[:3, :3], T_true[:3, :3]))
    return float(angle), float(1000 * np.linalg.norm(T[:3, 3] - T_true[:3, 3]))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("name", "with_pairs"), [("sphere", True), ("sphere", False), ("box", False), ("patch", True)])
def test_a_pose_ends_at_the_truth(name, with_pairs, sign):
    mesh = MESHES[name]
    start = RobustPose(shaken(T_TRUE, sign), 1.0, pairs=exact_pairs(mesh) if with_pairs else None)
    (found,) = finish(mesh, subject(samples_of(*scene_depth(mesh)), start))
    angle_deg, shift_mm = error(found.poses[0].T_cam_from_obj)
    assert shift_mm < 0.1
    assert angle_deg < 0.05 or (name == "sphere" and not with_pairs)  # which looks the same from everywhere
    assert found.problem is None


def test_a_detection_is_finished_alike_whatever_the_others():
    box, ball = (
        subject(samples_of(*scene_depth(MESHES["box"])), RobustPose(shaken(T_TRUE, sign), 1.0)) for sign in (1, -1)
    )
    lost = replace(box, candidates=[RobustPose(np.full((4, 4), np.nan), 1.0), *ball.candidates])
    together = finish(MESHES["box"], box, lost, ball)
    for one, expected in zip((box, lost, ball), together, strict=True):
        (alone,) = finish(MESHES["box"], one)
        np.testing.assert_array_equal(alone.poses[0].T_cam_from_obj, expected.poses[0].T_cam_from_obj)
        assert alone.poses[0].confidence == expected.poses[0].confidence
        assert alone.ratio == expected.ratio


def test_depth_off_by_5_mm_moves_the_pose_by_as_much_along_its_ray():
    mesh = MESHES["box"]
    depth_m, mask = scene_depth(mesh)
    (found,) = finish(mesh, subject(samples_of(depth_m + 0.005, mask), RobustPose(shaken(T_TRUE), 1.0)))
    angle_deg, shift_mm = error(found.poses[0].T_cam_from_obj)
    assert angle_deg < 0.3
    assert 4 < shift_mm < 6


def test_holes_noise_an_occluder_and_a_mask_that_misses_do_little_harm():
    mesh, rng = MESHES["box"], np.random.default_rng(0)
    depth_m, mask = scene_depth(mesh)
    mask[:190] = False  # a part of the object is not in the mask, and some of the wall is
    mask[250:300, 380:420] = True
    noisy = depth_m + 0.002 * rng.standard_normal(depth_m.shape)
    noisy[rng.random(depth_m.shape) < 0.4] = 0
    noisy[200:225] = 0.5  # in front
    (found,) = finish(mesh, subject(samples_of(noisy, mask), RobustPose(shaken(T_TRUE), 1.0)))
    angle_deg, shift_mm = error(found.poses[0].T_cam_from_obj)
    assert angle_deg < 1
    assert shift_mm < 0.5


def test_depth_is_turned_into_the_frame_of_a_virtual_camera():
    """A camera that looks along the object's ray sees other depths of the same points; both ways give one pose."""
    mesh = MESHES["box"]
    t = np.array([0.3, -0.2, 0.6])  # 31 degrees off the axis
    R = ray_rotation(t[None])[0]
    T = make_T(R @ R_TRUE, t)
    depth_m, mask = scene_depth(mesh, T)
    K_virtual = np.array([[600.0, 0, 112], [0, 600, 112], [0, 0, 1]])
    samples = sample_depth(depth_m, mask, Pinhole(K), np.diag([1.4, 1.4, 1.0]), K_virtual, R)
    T_virtual = make_T(R.T @ T[:3, :3], R.T @ T[:3, 3])
    touching = touching_planes(samples, Renders(mesh).depth(1, T_virtual, samples.K, samples.side_px))
    assert touching.is_plane.sum() > 500
    assert np.quantile(np.abs(touching.distance_m[touching.is_plane]), 0.9) < 1e-6  # the rest is of the wall
    (found,) = finish(mesh, subject(samples, RobustPose(shaken(T_virtual), 1.0)))
    angle_deg, shift_mm = error(found.poses[0].T_cam_from_obj, T_virtual)
    assert angle_deg < 0.05
    assert shift_mm < 0.1


def verdict(depth_m: np.ndarray, mask: np.ndarray, T: np.ndarray = T_TRUE):
    samples = samples_of(depth_m, mask)
    return judge_pose(samples, touching_planes(samples, Renders(MESHES["box"]).depth(1, T, samples.K, samples.side_px)))


def test_what_is_seen_through_refutes_and_what_is_in_front_leaves_open():
    depth_m, mask = scene_depth(MESHES["box"])
    right = verdict(depth_m, mask)
    assert right.agreement > 0.95
    assert right.explained > 0.95
    left_half = np.arange(SIZE_HW[1]) < 350
    seen_through = verdict(np.where(left_half, 1.1, depth_m), mask)
    occluded = verdict(np.where(left_half, 0.4, depth_m), mask & ~left_half)
    hole = verdict(np.where(left_half, 0.0, depth_m), mask)
    assert seen_through.agreement < 0.7
    assert occluded.agreement > 0.95
    assert hole.agreement > 0.95
    assert hole.explained > 0.95
    assert verdict(depth_m, mask, make_T(R_TRUE, T_TRUE[:3, 3] + [0, 0, 0.1])).agreement < 0.05  # all in front of it
    assert verdict(np.where(left_half, 0.4, depth_m), mask).agreement < 0.7  # where the mask says that this is it


def test_the_candidate_that_depth_agrees_with_is_chosen():
    mesh = MESHES["box"]
    wrong = make_T(Rotation.from_euler("xyz", [80, 50, 0], degrees=True).as_matrix() @ R_TRUE, T_TRUE[:3, 3])
    starts = [RobustPose(wrong, 900.0), RobustPose(shaken(T_TRUE), 700.0)]
    (found,) = finish(mesh, subject(samples_of(*scene_depth(mesh)), *starts))
    assert error(found.poses[0].T_cam_from_obj)[0] < 1
    assert [pose.confidence for pose in found.poses] == sorted((p.confidence for p in found.poses), reverse=True)


def test_without_enough_depth_or_with_that_of_another_scale_poses_stay_by_rgb():
    mesh = MESHES["box"]
    depth_m, mask = scene_depth(mesh)
    start = RobustPose(shaken(T_TRUE), 1500.0)
    nothing, few = np.zeros_like(depth_m), np.where(np.arange(SIZE_HW[0])[:, None] % 15 == 0, depth_m, 0)
    subjects = [subject(samples_of(depth, mask), start) for depth in (nothing, few, depth_m / 10)]
    found = finish(mesh, *subjects, replace(subjects[0], obj_id=9, samples=samples_of(depth_m, mask)))
    for one in found:
        assert list(one.poses) == [start]
    assert [one.problem is None for one in found] == [False] * 4
    assert "of its mask have a depth" in found[0].problem
    assert found[2].ratio == pytest.approx(0.1, rel=0.1)
    assert "of the expected one" in found[2].problem
    assert "no mesh" in found[3].problem


def test_a_pose_that_no_candidate_is_near_is_searched():
    mesh = MESHES["box"]
    depth_m, mask = scene_depth(mesh)
    wrong = RobustPose(make_T(Rotation.from_euler("x", 70, degrees=True).as_matrix() @ R_TRUE, T_TRUE[:3, 3]), 100.0)
    (found,) = finish(mesh, subject(samples_of(depth_m, mask), wrong, mask=mask))
    halves = [np.eye(3), *(np.diag(signs) for signs in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1]))]  # it is a box
    R = found.poses[0].T_cam_from_obj[:3, :3]
    assert min(np.rad2deg(rotation_angle_rad(R, R_TRUE @ half)) for half in halves) < 1


def test_turns_are_about_the_middle_of_the_object_and_shifts_along_its_ray():
    """The origin of the mesh is far beside it; the object, 12 cm long, was taken for one that is upside down."""
    wedge = trimesh.creation.box((0.06, 0.05, 0.12))
    wedge.vertices[wedge.vertices[:, 2] > 0, :2] *= 0.4
    centre_m = np.array([0.3, -0.2, 0.25])
    mesh = Mesh(np.asarray(wedge.vertices) + centre_m, np.asarray(wedge.faces, np.int32))
    T = move_origin(T_TRUE, -centre_m)
    depth_m, mask = scene_depth(mesh, T)
    detection = subject(samples_of(depth_m, mask), mask=mask)
    wrong = T.copy()
    wrong[:3, :3] = T[:3, :3] @ np.diag([1.0, -1, -1])
    wrong[:3, 3] = T_TRUE[:3, 3] * 1.05 - wrong[:3, :3] @ centre_m
    found = turned_poses(Renders(mesh), detection, wrong, centre_m)
    angles_deg, shifts_mm = zip(*(error(one, T) for one in found), strict=True)
    best = int(np.argmin(angles_deg))
    assert angles_deg[best] < 1e-6
    assert shifts_mm[best] < 4
