"""Contours of rendered parts in two colours, whose true poses are known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import trimesh
from helpers.meshes import write_ply
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T, project_points, rotation_angle_rad, transform_points
from picopose_cli.base.types import Mesh
from picopose_cli.network.local_matcher import load_local_features
from picopose_cli.pose.close_ups import CloseUp
from picopose_cli.pose.contour_poses import ContourPose, contour_pose
from picopose_cli.pose.contour_refinement import agreements, refine_by_contours
from picopose_cli.pose.contour_search import prepare_photograph
from picopose_cli.pose.contours import find_contour
from picopose_cli.pose.estimate_renderer import EstimateRenderer
from picopose_cli.pose.refine import Refiner, Subject
from picopose_cli.pose.silhouette_starts import make_silhouettes, silhouette_starts
from picopose_cli.pose.solve import RobustPose
from picopose_cli.templates.build import make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, template_camera

SIDE_PX = 224
K = np.array([[900.0, 0, 112], [0, 900, 112], [0, 0, 1]])
COLOURS = {"object": (170, 90, 60), "background": (90, 110, 100)}


def part() -> Mesh:
    """A box with a smaller one on it, no symmetry."""
    low = trimesh.creation.box((0.08, 0.05, 0.03))
    high = trimesh.creation.box((0.03, 0.02, 0.03)).apply_translation((0.022, 0.01, 0.03))
    joined = trimesh.util.concatenate([low, high])
    return Mesh(np.asarray(joined.vertices), np.asarray(joined.faces, np.int32))


@pytest.fixture(scope="module")
def render(tmp_path_factory):
    return EstimateRenderer({1: (write_ply(tmp_path_factory.mktemp("models") / "part.ply", part()), "mm")})


def draw_in(render):
    return lambda close_up: lambda T: render.depth(1, T, close_up.K, close_up.side_px)


def close_up(render, T: np.ndarray, seed: int = 0) -> CloseUp:
    """A noisy photograph of the part in one colour with shading, before another colour, and a rough mask."""
    rng, view = np.random.default_rng(seed), render(1, T, K, SIDE_PX)
    inside = view.depth_m > 0
    shade = 0.5 + view.rgb[..., :1] / 255  # of the faces
    image = np.where(inside[..., None], np.array(COLOURS["object"]) * shade, np.array(COLOURS["background"]))
    image = cv2.GaussianBlur(image + rng.normal(0, 6, image.shape), (0, 0), 0.7).clip(0, 255).astype(np.uint8)
    rough = cv2.warpAffine(inside.astype(np.uint8), np.array([[1.03, 0, -4], [0, 0.98, 3]]), (SIDE_PX, SIDE_PX)) > 0
    return CloseUp(image, rough, K, np.ones((SIDE_PX, SIDE_PX), bool))


def true_pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_T(Rotation.random(random_state=rng).as_matrix(), np.array([0.002, -0.003, 0.6]))


def shaken(T: np.ndarray, angle_deg: float, shift_px: float) -> np.ndarray:
    rotation = Rotation.from_rotvec(np.deg2rad(angle_deg) * np.array([0.6, -0.64, 0.48])).as_matrix()
    shift_m = shift_px / K[0, 0] * T[2, 3] * np.array([0.8, -0.6, 0])
    return make_T(rotation @ T[:3, :3], T[:3, 3] + shift_m)


def largest_error_px(T: np.ndarray, T_true: np.ndarray) -> float:
    points = part().vertices_m
    found, true = (project_points(K, transform_points(one, points)) for one in (T, T_true))
    return float(np.linalg.norm(found - true, axis=1).max())


def test_contours_are_on_the_edges_of_the_shape(render):
    T = true_pose(0)
    contour = find_contour(render.depth(1, T, K, SIDE_PX), K, T)
    assert contour.is_outline.sum() > 50
    assert (~contour.is_outline).sum() > 10
    np.testing.assert_allclose(np.linalg.norm(contour.normal, axis=1), 1, atol=1e-6)
    again = project_points(K, transform_points(T, contour.xyz_obj_m))
    np.testing.assert_allclose(again, contour.uv, atol=1e-6)
    edges = part().vertices_m[part().faces]
    ends = np.stack([edges, np.roll(edges, 1, axis=1)], axis=2).reshape(-1, 2, 3)  # of all triangles
    along = ends[:, 1] - ends[:, 0]
    share = np.einsum("nei,ei->ne", contour.xyz_obj_m[:, None] - ends[:, 0], along) / np.square(along).sum(axis=1)
    nearest = ends[:, 0] + share.clip(0, 1)[..., None] * along
    distance_m = np.linalg.norm(contour.xyz_obj_m[:, None] - nearest, axis=2).min(axis=1)
    assert np.median(distance_m) < 0.0007  # a px
    assert find_contour(np.zeros((64, 64), np.float32), K, T).uv.shape == (0, 2)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_pose_ends_at_the_truth(render, seed):
    T_true = true_pose(seed)
    seen = close_up(render, T_true)
    photo, draw = prepare_photograph(seen), draw_in(render)(seen)
    start = shaken(T_true, 8, 10)
    (found,) = refine_by_contours(photo, draw, start[None])
    assert largest_error_px(start, T_true) > 10
    assert largest_error_px(found, T_true) < 2
    before, after, wrong = agreements(photo, draw, np.stack([start, found, true_pose(seed + 20)]))
    assert 0 <= wrong < after <= 1
    assert before < after


@pytest.fixture(scope="module")
def silhouettes(render):
    """Silhouettes of 60 views around the part."""
    directions = Rotation.random(60, random_state=np.random.default_rng(3)).as_matrix()
    T = make_T(directions, np.tile([0.0, 0, 0.25], (60, 1)))
    camera = template_camera()
    views = [make_template(render._mesh(1).coloured.with_camera(camera, TEMPLATE_SIZE_HW).render(one)) for one in T]
    crops, depths = (
        np.stack([getattr(view, name) for view in views]) for name in ("A_crop_from_image", "depth_centre_m")
    )
    return make_silhouettes(depths, camera, crops, T, np.zeros(3))


def test_silhouettes_lead_to_the_pose(render, silhouettes):
    errors_deg, errors_px = [], []
    for seed in range(4):
        T_true = true_pose(seed)
        seen = close_up(render, T_true)
        starts = silhouette_starts(silhouettes, seen.mask, seen.shown, seen.K, 20)
        assert 10 < len(starts) <= 20
        errors_deg.append(np.rad2deg(rotation_angle_rad(starts[:, :3, :3], T_true[:3, :3])).min())
        found = contour_pose(seen, silhouettes, np.zeros((0, 4, 4)), draw_in(render))
        assert isinstance(found, ContourPose)
        assert 0 < found.confidence < 1
        errors_px.append(largest_error_px(found.T_cam_from_obj, T_true))
    assert np.median(errors_deg) < 25
    assert sorted(errors_px)[2] < 6  # from below the part shows no difference between two directions
    empty = CloseUp(seen.rgb, np.zeros_like(seen.mask), K, seen.shown)
    assert contour_pose(empty, silhouettes, np.zeros((0, 4, 4)), draw_in(render)) is None


def covered(seen: CloseUp) -> CloseUp:
    """The photograph with a third of the part behind something green, which is known."""
    hidden = np.zeros_like(seen.mask)
    hidden[:, int(np.quantile(np.nonzero(seen.mask)[1], 0.67)) :] = True
    image = np.where(hidden[..., None], np.array([40, 150, 60], np.uint8), seen.rgb)
    return replace(seen, rgb=image, mask=seen.mask & ~hidden, shown=~hidden)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_part_of_a_silhouette_leads_to_the_pose(render, silhouettes, seed):
    T_true = true_pose(seed)
    seen = covered(close_up(render, T_true))
    unknown = replace(seen, shown=np.ones_like(seen.mask))
    whole, both = (silhouette_starts(silhouettes, one.mask, one.shown, K, 20) for one in (unknown, seen))
    assert len(both) == len(whole) == 20
    np.testing.assert_array_equal(both[:10], whole[:10])
    assert min(largest_error_px(T, T_true) for T in both[10:]) < 25
    for one, limits_px in ((seen, (0, 2)), (unknown, (50, 300))):
        found = contour_pose(one, silhouettes, np.zeros((0, 4, 4)), draw_in(render))
        assert limits_px[0] < largest_error_px(found.T_cam_from_obj, T_true) < limits_px[1]


def test_refinement_takes_the_pose_by_contours_where_nothing_is_sure(render, silhouettes):
    T_true = true_pose(1)
    seen, wrong = close_up(render, T_true), RobustPose(true_pose(30), 1.0)
    refiner = Refiner(load_local_features(), render, 1, lambda _: silhouettes)
    with ThreadPoolExecutor(1) as threads:
        (found,) = refiner.refine([Subject(1, seen, [wrong])], threads)
    assert largest_error_px(found[0].T_cam_from_obj, T_true) < 6
    assert found[0].confidence > wrong.confidence
