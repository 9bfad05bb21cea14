"""Symmetric objects: the declared symmetries leave every image unchanged, and no other rotation does."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from helpers.meshes import count_open_edges, signed_volume
from scipy.spatial.transform import Rotation

from picopose_cli.base.geometry import make_T
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import Mesh, ObjectInfo, RenderedView
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.shapes import Shape
from picopose_cli.synthesis.symmetric_objects import NO_SYMMETRIES, Symmetries, make_symmetric_mesh

SIDE_PX = 120
K = np.array([[225.0, 0, SIDE_PX / 2], [0, 225, SIDE_PX / 2], [0, 0, 1]])
KINDS = ("revolved", "box", "prism")
SEEDS = {"revolved": (11, 14, 21, 23), "box": (1, 6, 9, 19), "prism": (0, 2, 3, 4, 7)}
CASES = [(kind, seed) for kind, seeds in SEEDS.items() for seed in seeds]


@cache
def made(seed: int) -> tuple[Mesh, Symmetries]:
    return make_symmetric_mesh(seed, (0.08, 0.12), 128)


def kind_of(mesh: Mesh, symmetries: Symmetries) -> str:
    if symmetries.continuous:
        return "revolved"
    return "box" if len(mesh.faces) == 6 * 8 * 8 * 2 else "prism"  # a box has 8 x 8 squares a side, no prism as many


class Camera:
    """Renders an object of `made` at poses that differ by a rotation."""

    def __init__(self, mesh: Mesh) -> None:
        self.renderer = SoftwareRenderer(mesh, K, (SIDE_PX, SIDE_PX))
        self.distance_m = 2.7 * mesh_diameter_m(mesh)

    def render(self, T_cam_from_obj: np.ndarray) -> RenderedView:
        return self.renderer.render(make_T(np.eye(3), np.array([0, 0, self.distance_m])) @ T_cam_from_obj)

    def differences(self, one: RenderedView, other: RenderedView) -> tuple[float, float]:
        """Mean difference of the colours in levels of 255; share of pixels whose depth differs by 1/500 and more."""
        shown = (one.alpha > 0) | (other.alpha > 0)
        far = np.abs(one.depth_m - other.depth_m) > 0.002 * self.distance_m
        return np.abs(one.rgb.astype(float) - other.rgb)[shown].mean(), far[shown].mean()


def random_pose(rng: np.random.Generator) -> np.ndarray:
    return make_T(Rotation.random(random_state=rng).as_matrix(), rng.uniform(-0.01, 0.01, 3))


def declared(symmetries: Symmetries, rng: np.random.Generator) -> list[np.ndarray]:
    """Each of the discrete ones, and a few turns of the continuous ones."""
    turns = list(symmetries.discrete)
    for axis, offset in symmetries.continuous:
        for angle in rng.uniform(0, 2 * np.pi, 4):
            R = Rotation.from_rotvec(angle * axis).as_matrix()
            turns.append(make_T(R, offset - R @ offset))
    return turns


def undeclared(symmetries: Symmetries, rng: np.random.Generator) -> list[np.ndarray]:
    """Turns of more than 40 degrees from every symmetry: random ones, half turns, quarter turns; half a step about z.

    Half turns and quarter turns are those that a box or a prism might have beside its own.
    """
    across = [(np.cos(angle), np.sin(angle), 0) for angle in np.radians(range(0, 180, 15))]
    about = [axis * np.pi for axis in (*np.array(across), np.array([0, 0, 1]))]
    about += [sign * np.pi / 2 * axis for axis in np.eye(3) for sign in (1, -1)]
    turns = [*Rotation.random(12, random_state=rng).as_matrix(), *Rotation.from_rotvec(about).as_matrix()]
    group = symmetry_transforms(ObjectInfo(1, 0.1, symmetries.discrete, symmetries.continuous))[:, :3, :3]
    far = [R for R in turns if np.degrees(Rotation.from_matrix(R @ group).magnitude()).min() > 40]
    if len(symmetries.discrete) > 1:
        smallest = Rotation.from_matrix(symmetries.discrete[:, :3, :3])
        step = smallest[int(np.argmin(smallest.magnitude()))].as_rotvec()
        far.append(Rotation.from_rotvec(step / 2).as_matrix())
    return [make_T(R, np.zeros(3)) for R in far]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_declared_symmetries_leave_the_look_unchanged(kind, seed):
    mesh, symmetries = made(seed)
    assert kind_of(mesh, symmetries) == kind
    camera, rng = Camera(mesh), np.random.default_rng(seed)
    tolerances = (1.5, 0.01) if kind == "revolved" else (0.2, 0.001)  # a circle has 48 corners
    turns = declared(symmetries, rng)
    assert turns
    for T in (random_pose(rng) for _ in range(3)):
        before = camera.render(T)
        assert (before.alpha > 0).sum() > 400
        for S in turns:
            colour, depth = camera.differences(before, camera.render(T @ S))
            assert colour < tolerances[0]
            assert depth < tolerances[1]


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_no_other_turn_leaves_the_look_unchanged(kind, seed):
    mesh, symmetries = made(seed)
    camera, rng = Camera(mesh), np.random.default_rng(seed)
    views = [(T, camera.render(T)) for T in (random_pose(rng), random_pose(rng))]
    turns = undeclared(symmetries, rng)
    assert len(turns) > 10, kind
    for S in turns:
        colours = [camera.differences(before, camera.render(T @ S))[0] for T, before in views]
        assert np.mean(colours) > 10


@pytest.mark.parametrize("seed", range(12))
def test_the_mesh_is_closed_sized_and_centred(seed):
    mesh, _ = made(seed)
    shape = Shape(mesh.vertices_m, mesh.faces, mesh.uv, ())
    assert signed_volume(shape) > 0
    assert count_open_edges(shape) == 0
    low, high = mesh.vertices_m.min(axis=0), mesh.vertices_m.max(axis=0)
    assert np.allclose(low + high, 0, atol=1e-12)
    assert 0.08 <= (high - low).max() <= 0.12


def test_kinds_and_symmetries_come_about_equally_often():
    objects = [make_symmetric_mesh(seed, (0.1, 0.1), 48) for seed in range(90)]
    kinds = [kind_of(*one) for one in objects]
    assert all(18 <= kinds.count(kind) <= 42 for kind in KINDS)
    orders = {kind: set() for kind in KINDS}
    for kind, (_, symmetries) in zip(kinds, objects, strict=True):
        orders[kind].add((len(symmetries.discrete), len(symmetries.continuous)))
    assert orders == {
        "revolved": {(0, 1)},
        "box": {(1, 0), (3, 0)},
        "prism": {(2, 0), (3, 0), (4, 0), (5, 0)},
    }


@pytest.mark.parametrize("seed", [1, 6, 0, 4])
def test_discrete_symmetries_with_the_identity_are_a_group(seed):
    _, symmetries = made(seed)
    group = np.concatenate([np.eye(4)[None], symmetries.discrete])
    for product in (a @ b for a in group for b in group):
        assert np.isclose(group, product, atol=1e-12).all(axis=(1, 2)).sum() == 1


def test_the_same_seed_gives_the_same_object():
    one, two = (make_symmetric_mesh(3, (0.1, 0.2), 64) for _ in range(2))
    assert np.array_equal(one[0].vertices_m, two[0].vertices_m)
    assert np.array_equal(one[0].texture_rgb, two[0].texture_rgb)
    assert np.array_equal(one[1].discrete, two[1].discrete)


def test_models_info_is_in_mm_and_leaves_out_what_is_not_there():
    T = make_T(np.diag([-1.0, -1, 1]), np.array([0.1, 0, 0]))
    both = Symmetries(T[None], ((np.array([0.0, 0, 1]), np.array([0.02, 0, 0])),)).as_model_info()
    assert both["symmetries_discrete"] == [[-1, 0, 0, 100, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]]
    assert both["symmetries_continuous"] == [{"axis": [0, 0, 1], "offset": [20, 0, 0]}]
    assert NO_SYMMETRIES.as_model_info() == {}
