"""Renderers against analytic shapes, against a slow ray caster and against each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from helpers.meshes import SIDE_RGB, make_box, make_poster, make_sphere
from helpers.poses import random_T
from helpers.render_scenes import SCENES, SIZE_HW, SPHERE_CENTRE, K, draw_scenes

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import invert_T, make_T, transform_points
from picopose_cli.base.types import Mesh, RenderedView
from picopose_cli.base.workers import run_jobs
from picopose_cli.rendering import renderers as renderer_module
from picopose_cli.rendering.rasteriser import make_raster_mesh
from picopose_cli.rendering.renderers import choose_renderer, draw_test_view
from picopose_cli.rendering.software import SoftwareRenderer, render_depth

FULL = (0, 0, 640, 480)


@cache
def scenes_of(kind: str) -> dict[str, RenderedView]:
    if kind == "software":
        drawn = draw_scenes(kind)
    else:
        [(_, drawn)] = run_jobs(draw_scenes, [kind], 1, timeout_s=120)
    if isinstance(drawn, PicoPoseError):
        pytest.skip(f"{kind} does not work here: {drawn}")
    return {name: RenderedView(*arrays) for name, arrays in drawn.items()}


every_renderer = pytest.mark.parametrize("kind", ["software", "egl", "osmesa"])


def pixel_rays(box_xyxy: tuple[int, int, int, int], K: np.ndarray = K) -> np.ndarray:
    """Directions (h,w,3) with z = 1 through the pixels' centres."""
    x0, y0, x1, y1 = box_xyxy
    x, y = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T


def cast_depth(
    mesh: Mesh, K: np.ndarray, T: np.ndarray, box: tuple[int, int, int, int], near: float = 1e-3
) -> np.ndarray:
    """The slow oracle: every ray against every triangle (Möller and Trumbore)."""
    rays = pixel_rays(box, K)
    depth = np.full(rays.shape[:2], np.inf)
    vertices = transform_points(T, mesh.vertices_m)
    for a, b, c in vertices[mesh.faces]:
        e1, e2 = b - a, c - a
        h, q = np.cross(rays, e2), np.cross(-a, e1)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v, z = (h @ -a) / (h @ e1), (rays @ q) / (h @ e1), (e2 @ q) / (h @ e1)
        hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (z >= near)
        depth[hit] = np.minimum(depth[hit], z[hit])
    return np.where(np.isfinite(depth), depth, 0)


def sphere_depth(radius_m: float, centre: np.ndarray) -> np.ndarray:
    """Analytic depth (480,640) of a sphere, 0 outside."""
    rays = pixel_rays(FULL)
    rr, rc = (rays**2).sum(-1), rays @ centre
    inside = rc**2 - rr * (centre @ centre - radius_m**2)
    return np.where(inside > 0, (rc - np.sqrt(np.maximum(inside, 0))) / rr, 0)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@every_renderer
def test_depth_of_a_sphere(kind):
    depth, expected = scenes_of(kind)["sphere"].depth_m, sphere_depth(0.05, SPHERE_CENTRE)
    both = (depth > 0) & (expected > 0)
    assert overlap(depth > 0, expected > 0) > 0.998
    assert np.median(np.abs(depth - expected)[both]) < 1e-5  # the promise is 0.1 % of the diameter: 1e-4


@every_renderer
def test_depth_of_a_box(kind):
    mesh, T = SCENES["box"]
    depth, expected = scenes_of(kind)["box"].depth_m, cast_depth(mesh, K, T, FULL)
    both = (depth > 0) & (expected > 0)
    assert overlap(depth > 0, expected > 0) > 0.9995
    assert np.median(np.abs(depth - expected)[both]) < 1e-6
    assert np.abs(depth - expected)[both].max() < 1e-5


@every_renderer
@pytest.mark.parametrize("scene", SCENES)
def test_renderers_agree(kind, scene):
    view, expected = scenes_of(kind)[scene], scenes_of("software")[scene]
    both = (view.depth_m > 0) & (expected.depth_m > 0)
    assert overlap(view.alpha == 255, expected.alpha == 255) > 0.995
    assert np.median(np.abs(view.depth_m - expected.depth_m)[both]) < 1e-4
    difference = np.abs(view.rgb.astype(int) - expected.rgb)[both]
    assert difference.mean() < 1
    assert np.percentile(difference, 99) < 8  # texture filters and edges differ a little


@every_renderer
def test_six_sides_have_their_colours_and_places(kind):
    """The camera's x points right and y down: an object to its left shows its +x side, on the side of the middle."""
    right, bottom, front = (tuple(SIDE_RGB[side].tolist()) for side in (1, 3, 4))  # +x, +y, -z
    left = scenes_of(kind)["seen from the right"].rgb
    row = [rgb for rgb in map(tuple, left[240].tolist()) if rgb in (front, right)]
    assert row == sorted(row, key=[front, right].index)
    assert set(row) == {front, right}
    above = scenes_of(kind)["seen from below"].rgb
    column = [rgb for rgb in map(tuple, above[:, 320].tolist()) if rgb in (front, bottom)]
    assert column == sorted(column, key=[front, bottom].index)
    assert set(column) == {front, bottom}


@every_renderer
def test_a_texture_is_upright_and_not_mirrored(kind):
    rgb = scenes_of(kind)["poster"].rgb
    at = {"top left": rgb[200, 260], "top right": rgb[200, 380], "bottom left": rgb[280, 260]}
    assert {place: value.tolist() for place, value in at.items()} == {
        "top left": [255, 0, 0],
        "top right": [0, 255, 0],
        "bottom left": [0, 0, 255],
    }
    assert rgb[280, 380].tolist() == [255, 255, 255]


@every_renderer
def test_grey_is_shaded_and_edges_are_partly_covered(kind):
    view = scenes_of(kind)["grey box"]
    inside = view.rgb[view.alpha == 255]
    assert (inside == inside[:, :1]).all()
    _, counts = np.unique(inside[:, 0], return_counts=True)
    assert np.sort(counts)[-3:].sum() > 0.98 * len(inside)  # three sides, each of one brightness
    assert len(np.unique(inside[:, 0])) > 1
    assert set(np.unique(view.alpha)) >= {0, 64, 128, 191, 255}
    assert (view.rgb[view.alpha == 0] == 0).all()


def test_the_choice_says_what_and_why(monkeypatch):
    assert choose_renderer("software").why == "as requested"
    monkeypatch.setattr(renderer_module.ctypes.util, "find_library", lambda _: None)
    choice = choose_renderer("auto")
    assert choice.kind == "software"
    assert "no EGL library" in choice.why
    assert "OpenCV" in str(choice)


@pytest.mark.parametrize(
    ("gl_renderer", "kind"), [("NVIDIA H200/PCIe/SSE2", "egl"), ("llvmpipe (LLVM 15.0.6, 256 bits)", "software")]
)
def test_auto_takes_egl_only_on_a_gpu(monkeypatch, gl_renderer, kind):
    monkeypatch.setattr(renderer_module.ctypes.util, "find_library", lambda _: "libEGL.so.1")
    monkeypatch.setattr(renderer_module, "_tested", lambda _: gl_renderer)
    choice = choose_renderer("auto")
    assert choice.kind == kind
    assert gl_renderer in str(choice)


def test_auto_falls_back_and_a_named_renderer_does_not(monkeypatch):
    monkeypatch.setattr(renderer_module.ctypes.util, "find_library", lambda _: "libEGL.so.1")
    monkeypatch.setattr(
        renderer_module, "run_jobs", lambda *_, **__: iter([(0, PicoPoseError("the worker process was killed"))])
    )
    choice = choose_renderer("auto")
    assert choice.kind == "software"
    assert "was killed" in choice.why
    with pytest.raises(PicoPoseError, match=r"egl failed its test view.*--renderer software"):
        choose_renderer("egl")


def test_a_wrong_picture_fails_the_test_view(monkeypatch):
    def mirrored(_: str, mesh: Mesh, K: np.ndarray, size_hw: tuple[int, int]) -> SoftwareRenderer:
        flipped = mesh.vertices_m * np.array([-1, 1, 1])
        return SoftwareRenderer(Mesh(flipped, mesh.faces, mesh.vertex_rgb), K, size_hw)

    assert "OpenCV" in draw_test_view("software")
    monkeypatch.setattr(renderer_module, "open_renderer", mirrored)
    with pytest.raises(PicoPoseError, match="its image is wrong"):
        draw_test_view("egl")


@pytest.mark.parametrize("seed", range(3))
def test_the_software_renderer_agrees_with_the_ray_caster(seed):
    mesh, T = make_box((0.1, 0.06, 0.03)), random_T(np.random.default_rng(seed), (0.02, 0.03, 0.3))
    view, expected = SoftwareRenderer(mesh, K, SIZE_HW).render(T), cast_depth(mesh, K, T, FULL)
    assert ((view.depth_m > 0) != (expected > 0)).mean() < 1e-5
    both = (view.depth_m > 0) & (expected > 0)
    assert np.abs(view.depth_m - expected)[both].max() < 2e-6
    assert (view.alpha[expected == 0] < 255).all()


def test_a_camera_with_skew_and_a_far_principal_point():
    skewed, window = np.array([[700.0, 25, 100], [0, 400, 500], [0, 0, 1]]), (0, 300, 300, 700)
    T = random_T(np.random.default_rng(5), (0.01, 0.02, 0.4))
    depth, expected = render_depth(make_box(), skewed, T, window), cast_depth(make_box(), skewed, T, window)
    assert np.abs(depth - expected).max() < 2e-6
    assert (depth > 0).any()


@pytest.mark.parametrize("box", [(250, 200, 300, 333), (-50, -20, 700, 500), (330, 100, 331, 400)])
def test_a_window_is_a_cut_of_the_whole(box):
    mesh, T = make_box(), random_T(np.random.default_rng(1), (0.0, 0.01, 0.3))
    window, whole = render_depth(mesh, K, T, box), render_depth(mesh, K, T, (-100, -100, 800, 600))
    x0, y0, x1, y1 = box
    assert window.dtype == np.float32
    np.testing.assert_allclose(window, whole[y0 + 100 : y1 + 100, x0 + 100 : x1 + 100], atol=1e-6)
    assert (window > 0).any()


@pytest.mark.parametrize(
    "t", [(0.0, 0.0, 0.04), (0.02, 0.01, 0.0), (0.0, 0.03, -0.04), (0.045, 0, 0.03), (0, 0, 0.051)]
)
def test_a_mesh_around_or_behind_the_camera_is_cut_at_the_near_plane(t):
    mesh, T = make_box(), random_T(np.random.default_rng(3), t)
    depth, expected = render_depth(mesh, K, T, FULL), cast_depth(mesh, K, T, FULL)
    assert ((depth > 0) != (expected > 0)).mean() < 1e-3
    both = (depth > 0) & (expected > 0)
    assert (np.abs(depth - expected)[both] <= 1e-5 + 1e-4 * expected[both]).mean() > 0.999
    view = SoftwareRenderer(mesh, K, SIZE_HW).render(T)
    np.testing.assert_allclose(view.depth_m, depth, atol=1e-6)
    pure = (view.rgb[view.alpha == 255][:, None] == SIDE_RGB).all(axis=-1).any(axis=-1)
    assert pure.mean() > 0.97  # all but the edges between two sides


@pytest.mark.parametrize("box", [FULL, (10, 10, 10, 20), (20, 20, 10, 10), (10**9, 10**9, 10**9 + 4, 10**9 + 4)])
@pytest.mark.parametrize(
    "t",
    [
        (0, 0, -1.0),
        (5, 0, 0.5),
        (0, -1e6, 2.0),
        (1e12, 0, 1e-2),
        (0, 0, 1e30),
        (0, np.nan, 1),
        (np.inf, 0, 1),
        (0, 0, 0),
    ],
)
def test_nothing_crashes(t, box):
    depth = render_depth(make_box(), K, make_T(np.eye(3), np.array(t, float)), box)
    assert depth.shape == (max(box[3] - box[1], 0), max(box[2] - box[0], 0))
    assert np.isfinite(depth).all()


def test_several_threads_draw_the_same():
    renderer = SoftwareRenderer(make_sphere(rings=40), K, SIZE_HW)
    rng = np.random.default_rng(2)
    poses = [random_T(rng, (0.0, 0.0, 0.3)) for _ in range(16)]
    alone = [renderer.render(T).depth_m for T in poses]
    with ThreadPoolExecutor(4) as pool:
        together = [view.depth_m for view in pool.map(renderer.render, poses)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_faces_out_of_range_never_reach_the_rasteriser():
    with pytest.raises(ValueError, match="faces"):
        make_raster_mesh(np.zeros((3, 3)), np.array([[0, 1, 3]]))
    with pytest.raises(ValueError, match="faces"):
        make_raster_mesh(np.zeros((3, 3)), np.zeros((0, 3), int))


def test_a_far_origin_costs_no_precision():
    mesh, T = make_box(), random_T(np.random.default_rng(7), (0.0, 0.0, 0.3))
    offset = np.array([3.0, -4.0, 2.0])
    moved = Mesh(mesh.vertices_m + offset, mesh.faces)
    T_moved = T @ invert_T(make_T(np.eye(3), offset))
    np.testing.assert_allclose(render_depth(moved, K, T_moved, FULL), render_depth(mesh, K, T, FULL), atol=1e-6)


def test_a_repeated_texture_wraps_and_a_far_one_is_averaged():
    poster = make_poster()
    assert poster.uv is not None
    wrapped = Mesh(
        poster.vertices_m, poster.faces, uv=poster.uv + np.array([3, -2], np.float32), texture_rgb=poster.texture_rgb
    )
    T = make_T(np.eye(3), np.array([0.0, 0.0, 0.35]))
    plain, shifted = (SoftwareRenderer(mesh, K, SIZE_HW).render(T).rgb for mesh in (poster, wrapped))
    assert np.abs(plain.astype(int) - shifted).max() < 8
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    far = SoftwareRenderer(Mesh(poster.vertices_m, poster.faces, uv=poster.uv, texture_rgb=noise), K, SIZE_HW)
    view = far.render(make_T(np.eye(3), np.array([0.0, 0.0, 0.7])))
    assert view.rgb[view.alpha == 255].std() < 25  # noise of standard deviation 74, about 70 texels a pixel
