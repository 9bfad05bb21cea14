"""The batched solver against the plain one, and what must not change a pose by a bit."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from helpers.plain_solver import PlainRows, minimise_plainly, plain_pairs, plain_soft_inliers, robust_cost
from helpers.poses import K, noisy_pairs, random_pose
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T, project_points, transform_points
from picopose_cli.base.types import Correspondences
from picopose_cli.pose import row_blocks
from picopose_cli.pose.residuals import Residuals, pair_residuals
from picopose_cli.pose.robust import minimise
from picopose_cli.pose.row_blocks import RowBlocks

K_SKEWED = K + np.array([[0, 3.0, 11], [0, 25, 0], [0, 0, 0]])
CPU = torch.device("cpu")


def near(T: np.ndarray, rng: np.random.Generator, angle_deg: float) -> np.ndarray:
    axis = rng.standard_normal(3)
    rotation = Rotation.from_rotvec(np.deg2rad(angle_deg) * axis / np.linalg.norm(axis)).as_matrix()
    return make_T(rotation @ T[:3, :3], T[:3, 3] * (1 + rng.uniform(-0.06, 0.06, 3)))


def pairs_seen_by(K_of: np.ndarray, rng: np.random.Generator, count: int) -> tuple[np.ndarray, Correspondences]:
    """A pose, and noisy pairs of it with outliers and uneven certainties."""
    T = random_pose(rng)
    exact = noisy_pairs(rng, T, count)
    uv = project_points(K_of, transform_points(T, exact.xyz_obj_m)) + 2.0 * rng.standard_normal((count, 2))
    wrong = rng.random(count) < 0.3
    uv[wrong] += rng.uniform(-90, 90, (int(wrong.sum()), 2))
    return T, Correspondences(uv, exact.xyz_obj_m, rng.uniform(0.5, 1, count))


class Problem:
    """Seven candidates with two starts each."""

    def __init__(self, counts=(700, 6, 256, 257, 1000, 40, 513)) -> None:
        rng = np.random.default_rng(0)
        self.K = np.stack([(K, K_SKEWED)[i % 2] for i in range(len(counts))])
        found = [pairs_seen_by(self.K[i], rng, count) for i, count in enumerate(counts)]
        self.T = np.stack([T for T, _ in found])
        self.pairs = [pairs for _, pairs in found]
        self.std_px = 4 / rng.uniform(0.7, 2.0, len(counts))
        self.starts = np.stack([[near(T, rng, 20), near(T, rng, 100)] for T in self.T])

    def solve(self, order=None, padding=0, device=CPU) -> tuple[np.ndarray, np.ndarray]:
        """Poses (B,2,4,4) and soft inliers (B,2) of the candidates in an order, padded by some rows."""
        order = list(range(len(self.pairs)) if order is None else order)
        residuals = pair_residuals([self.pairs[i] for i in order], self.std_px[order], device)
        rows = RowBlocks(padded(residuals, padding), torch.from_numpy(self.K[order]).to(device))
        T = minimise([rows], torch.from_numpy(self.starts[order]).to(device))
        return T.cpu().numpy(), rows.soft_inliers(T).cpu().numpy()


def padded(residuals: Residuals, count: int) -> Residuals:
    """The residuals of pairs with `count` rows without weight behind those of each candidate."""

    def behind(rows: torch.Tensor, fill: float) -> torch.Tensor:
        return torch.cat([rows, rows.new_full((len(rows), count, *rows.shape[2:]), fill)], dim=1)

    return Residuals(
        behind(residuals.uv, 9.0),
        behind(residuals.xyz_obj_m, 0.1),
        behind(residuals.weight, 0.0),
        behind(residuals.std_px, 2.0),
        behind(residuals.kernel_scale, 1.5),
    )


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module")
def solved(problem):
    return problem.solve()


def test_poses_are_those_of_the_plain_solver(problem, solved):
    T, inliers = solved
    for i, pairs in enumerate(problem.pairs):
        rows = plain_pairs(pairs, problem.std_px[i])
        for start in range(2):
            expected = minimise_plainly(problem.starts[i, start], rows, problem.K[i])
            np.testing.assert_allclose(T[i, start, :3, :3], expected[:3, :3], atol=1e-7)
            np.testing.assert_allclose(T[i, start, :3, 3], expected[:3, 3], atol=1e-7 * np.linalg.norm(expected[:3, 3]))
            assert inliers[i, start] == pytest.approx(plain_soft_inliers(expected, rows, problem.K[i]), rel=1e-6)
    assert np.linalg.norm(T[0, 0] - problem.T[0]) < 0.05


@pytest.mark.parametrize("order", [[0], [3], [5], [1, 0], [6, 5, 4, 3, 2, 1, 0], [2, 2, 4]])
def test_a_candidate_does_not_depend_on_its_neighbours(problem, solved, order):
    for found, expected in zip(problem.solve(order), solved, strict=True):
        np.testing.assert_array_equal(found, expected[order])


@pytest.mark.parametrize("padding", [1, 24, 300, 3000])
def test_padding_changes_nothing(problem, solved, padding):
    order = [4, 0, 3]
    for found, expected in zip(problem.solve(order, padding), solved, strict=True):
        np.testing.assert_array_equal(found, expected[order])


@pytest.mark.gpu
def test_on_a_gpu_they_are_the_same_poses_and_depend_on_nothing_either(problem, solved):
    device = torch.device("cuda:0")
    whole = problem.solve(device=device)
    for found, expected in zip(whole, solved, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)
    for order, padding in (([3], 0), ([6, 5, 4, 3, 2, 1, 0], 0), ([4, 0, 3], 3000), ([1] * 900, 0)):
        for found, expected in zip(problem.solve(order, padding, device), whole, strict=True):
            np.testing.assert_array_equal(found, expected[order])


@pytest.mark.parametrize("chunk", [(1, False), (3, False), (32, True)])
def test_neither_chunks_nor_threads_change_anything(problem, solved, chunk, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setitem(row_blocks.CHUNK_BLOCKS, "cpu", chunk)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for found, expected in zip(problem.solve(), solved, strict=True):
                np.testing.assert_array_equal(found, expected)
    finally:
        torch.set_num_threads(threads)


def test_many_rows_on_several_threads_are_the_same_to_the_bit():
    problem = Problem((4096,) * 12)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(problem.solve()[0])
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def lines_of(problem: Problem, rng: np.random.Generator) -> tuple[Residuals, list[PlainRows]]:
    """Contour lines of each candidate, 300 with other stds and kernel scales: batched, and as whitened rows."""
    count, B = 300, len(problem.pairs)
    xyz = rng.uniform(-0.05, 0.05, (B, count, 3))
    uv = np.stack([project_points(problem.K[i], transform_points(problem.T[i], xyz[i])) for i in range(B)])
    angle = rng.uniform(0, 2 * np.pi, (B, count))
    normal = np.stack([np.cos(angle), np.sin(angle)], -1)
    along = np.stack([-normal[..., 1], normal[..., 0]], -1)
    uv += rng.normal(0, 1, (B, count, 1)) * normal + rng.uniform(-30, 30, (B, count, 1)) * along
    std, weight, kernel = (rng.uniform(*limits, (B, count)) for limits in ((0.5, 2), (0, 1), (1, 4)))
    arrays = (uv, xyz, weight, std, kernel, normal)
    W = np.zeros((B, count, 2, 2))
    W[:, :, 0] = normal / std[..., None]
    plain = [PlainRows(uv[i], xyz[i], weight[i], W[i], kernel[i]) for i in range(B)]
    return Residuals(*(torch.from_numpy(array) for array in arrays)), plain


def joined(*kinds: PlainRows) -> PlainRows:
    return PlainRows(*(np.concatenate([getattr(rows, field.name) for rows in kinds]) for field in fields(PlainRows)))


def test_contour_lines_alone_and_with_pairs(problem):
    """Residuals of both kinds, each with its own noise, kernel scale and weight, as the plain solver's."""
    lines, plain_lines = lines_of(problem, np.random.default_rng(1))
    K_of = torch.from_numpy(problem.K)
    rows = RowBlocks(lines, K_of), RowBlocks(pair_residuals(problem.pairs, problem.std_px, CPU), K_of)
    starts = torch.from_numpy(problem.starts[:, :1])
    for kinds in (rows[:1], rows):
        T = minimise(kinds, starts).numpy()
        for i in range(len(problem.pairs)):
            expected = plain_lines[i]
            if len(kinds) == 2:
                expected = joined(expected, plain_pairs(problem.pairs[i], problem.std_px[i]))
            pose = minimise_plainly(problem.starts[i, 0], expected, problem.K[i])
            np.testing.assert_allclose(T[i, 0], pose, atol=1e-7)
            assert rows[0].soft_inliers(torch.from_numpy(T))[i, 0] == pytest.approx(
                plain_soft_inliers(pose, plain_lines[i], problem.K[i]), rel=1e-5
            )
    assert np.linalg.norm(T[:, 0] - problem.T, axis=(1, 2)).max() < 0.05


def test_each_start_stops_where_its_cost_no_longer_falls(problem, solved):
    T, _ = solved
    for i, pairs in enumerate(problem.pairs):
        rows = plain_pairs(pairs, problem.std_px[i])
        for start in range(2):
            before = robust_cost(problem.starts[i, start], rows, problem.K[i], 10.0)
            assert robust_cost(T[i, start], rows, problem.K[i], 10.0) <= before


def test_a_row_counts_with_its_weight(problem):
    residuals = pair_residuals(problem.pairs[:1], problem.std_px[:1], CPU)
    K_of, T = torch.from_numpy(problem.K[:1]), torch.from_numpy(problem.T[:1, None])
    halved = replace(residuals, weight=residuals.weight / 2)
    whole, half = (RowBlocks(rows, K_of).soft_inliers(T) for rows in (residuals, halved))
    torch.testing.assert_close(half, whole / 2)


def test_degenerate_rows_and_starts_spoil_nobody_else(problem, solved):
    at_origin = Correspondences(np.full((20, 2), 100.0), np.zeros((20, 3)), np.ones(20))
    unsure = replace(problem.pairs[2], certainty=np.zeros(256))
    nowhere = replace(problem.pairs[2], uv_image=np.full((256, 2), np.nan))
    pairs = [at_origin, unsure, nowhere, problem.pairs[0], problem.pairs[0]]
    starts = np.concatenate([problem.starts[[0, 0, 0, 0]], np.full((1, 2, 4, 4), np.nan)])
    starts[0, 1] = make_T(np.eye(3), np.array([0, 0, -0.5]))  # behind the camera
    residuals = pair_residuals(pairs, problem.std_px[[0, 2, 2, 0, 0]], CPU)
    T = minimise([RowBlocks(residuals, torch.from_numpy(problem.K[[0, 0, 0, 0, 0]]))], torch.from_numpy(starts)).numpy()
    np.testing.assert_array_equal(T[1:3], starts[1:3])
    np.testing.assert_array_equal(T[3], solved[0][0])
    assert np.isnan(T[4]).all()
    expected = minimise_plainly(starts[0, 0], plain_pairs(at_origin, problem.std_px[0]), problem.K[0])
    np.testing.assert_allclose(T[0, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(T[0, 1], starts[0, 1])


def test_no_candidates_and_no_rows():
    nothing = Correspondences(np.empty((0, 2)), np.empty((0, 3)), np.empty(0))
    for count in (0, 2):
        rows = RowBlocks(
            pair_residuals([nothing] * count, np.ones(count), CPU), torch.eye(3).double().expand(count, 3, 3)
        )
        starts = torch.eye(4).double().expand(count, 2, 4, 4)
        torch.testing.assert_close(minimise([rows], starts), starts)
        assert rows.soft_inliers(starts).sum() == 0


def test_shapes_and_types_are_checked():
    residuals = pair_residuals([noisy_pairs(np.random.default_rng(0), np.eye(4), 9)], np.ones(1), CPU)
    with pytest.raises(ValueError, match="uv is"):
        replace(residuals, uv=residuals.uv[:, :4])
    with pytest.raises(ValueError, match="weight is"):
        replace(residuals, weight=residuals.weight.float())
