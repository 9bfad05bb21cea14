"""The endless source: exact geometry, exact resume, the rules of the crop, folders of meshes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import apply_affine, backproject_pixels, invert_T, project_points, transform_points
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.software import SoftwareRenderer, render_depth
from picopose_cli.synthesis.bop_models import write_textured_ply
from picopose_cli.synthesis.mesh_folder import MAX_FACES, MeshFolder, project_texture
from picopose_cli.synthesis.objects import (
    make_distinct_mesh,
    make_procedural_object,
)
from picopose_cli.synthesis.observe import observe_scene
from picopose_cli.synthesis.procedural_source import ProceduralOptions, ProceduralSource
from picopose_cli.synthesis.samples import CropView, Sample, nearest_views
from picopose_cli.synthesis.scenes import Difficulty, random_scene
from picopose_cli.templates.build import make_template
from picopose_cli.templates.crops import crop_affine
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

HARD = ProceduralOptions(seed=7, level_start=1, level_end=1, pool=4, samples_per_object=8)


def take(options: ProceduralOptions, count: int, worker: int = 0, workers: int = 1, start: int = 0) -> list[Sample]:
    return list(islice(ProceduralSource(options).samples(worker, workers, start), count))


@pytest.fixture(scope="module")
def hard_samples() -> list[Sample]:
    return take(HARD, 24)


def same(a: Sample, b: Sample) -> bool:
    views = ((a.observation, b.observation), (a.template, b.template))
    return a.object_key == b.object_key and all(
        np.array_equal(getattr(x, name), getattr(y, name)) for x, y in views for name in CropView.__dataclass_fields__
    )


def cell_centres() -> np.ndarray:
    centre = (np.arange(64) + 0.5) * 3.5
    return np.stack(np.meshgrid(centre, centre), axis=-1).reshape(-1, 2)


def lifted(view: CropView) -> tuple[np.ndarray, np.ndarray]:
    """Object-frame points (N,3) of the cells that show the object, and their flat indices."""
    depth = view.depth_centre_m.ravel()
    seen = np.flatnonzero(depth > 0)
    uv = apply_affine(np.linalg.inv(view.A_crop_from_image), cell_centres()[seen])
    return transform_points(
        invert_T(view.T_cam_from_obj), backproject_pixels(view.K, uv, depth[seen].astype(float))
    ), seen


def test_template_points_project_onto_the_same_surface_in_the_observation(hard_samples):
    """Lift the template's cells, move them, project them: where both see the object, the depths agree."""
    errors, shares = [], []
    for sample in hard_samples:
        points, _ = lifted(sample.template)
        view = sample.observation
        moved = transform_points(view.T_cam_from_obj, points)
        crop_px = apply_affine(view.A_crop_from_image, project_points(view.K, moved))
        col, row = np.floor(crop_px / 3.5).astype(int).T
        inside = (col >= 0) & (col < 64) & (row >= 0) & (row < 64)
        depth = view.depth_centre_m[row[inside], col[inside]]
        shares.append((depth > 0).mean())
        errors += (np.abs(depth - moved[inside, 2])[depth > 0] / sample.diameter_m).tolist()
    assert np.median(errors) < 0.004  # a cell's slope: the nearest cell centre is up to half a cell away
    assert np.median(shares) > 0.6


def test_observed_depth_is_exact_at_the_cells_centres(hard_samples):
    """The points lifted from the observation are on the mesh that the template shows from another side."""
    for sample in hard_samples[:6]:
        view = sample.observation
        rays = apply_affine(np.linalg.inv(view.A_crop_from_image), cell_centres())
        points, seen = lifted(view)
        again = transform_points(view.T_cam_from_obj, points)
        assert np.allclose(project_points(view.K, again), rays[seen], atol=1e-6)
    mesh = make_procedural_object([7, 0, 0, 0, 1], "").mesh
    ours = [sample for sample in hard_samples if sample.object_key == "w0-0"]
    assert ours
    for sample in ours:
        view = sample.observation
        K_grid = np.diag([64 / 224, 64 / 224, 1]) @ view.A_crop_from_image @ view.K
        exact = render_depth(mesh, K_grid, view.T_cam_from_obj, (0, 0, 64, 64))
        shown = view.depth_centre_m > 0
        assert np.allclose(view.depth_centre_m[shown], exact[shown], rtol=1e-5)


def test_mask_and_depth_tell_the_same_of_easy_scenes():
    for sample in take(ProceduralOptions(seed=1, level_start=0, level_end=0, pool=3), 8):
        view = sample.observation
        at_centres = view.mask[1::7, 1::7]  # these pixels contain every other cell's centre
        assert (at_centres == (view.depth_centre_m[::2, ::2] > 0)).mean() > 0.97


def test_templates_are_those_of_render_templates(hard_samples):
    item = make_procedural_object([7, 0, 0, 0, 1], "")
    mesh = item.cad or item.mesh
    sample = next(sample for sample in hard_samples if sample.object_key == "w0-0")
    poses = place_views(sample.diameter_m)
    view_id = int(np.flatnonzero(np.all(np.isclose(poses, sample.template.T_cam_from_obj), axis=(1, 2)))[0])
    K = template_camera()
    expected = make_template(SoftwareRenderer(mesh, K, TEMPLATE_SIZE_HW).render(poses[view_id]))
    assert np.array_equal(sample.template.crop_rgb, expected.crop_rgb)
    assert np.array_equal(sample.template.mask, expected.mask)
    assert np.array_equal(sample.template.depth_centre_m, expected.depth_centre_m)
    assert view_id in nearest_views(poses, sample.observation.T_cam_from_obj, 5)


def test_samples_are_what_the_interface_says(hard_samples):
    for sample in hard_samples:
        for view in (sample.observation, sample.template):
            assert view.crop_rgb.dtype == np.uint8
            assert view.mask.dtype == np.bool_
            assert view.depth_centre_m.dtype == np.float32
            assert {view.K.dtype, view.A_crop_from_image.dtype, view.T_cam_from_obj.dtype} == {np.dtype(np.float64)}
            assert view.mask.any()
            assert (view.depth_centre_m > 0).any()
        A = sample.observation.A_crop_from_image
        side = round(224 / A[0, 0])
        x0, y0 = round(-A[0, 2] / A[0, 0]), round(-A[1, 2] / A[1, 1])
        assert np.allclose(A, crop_affine((y0, y0 + side, x0, x0 + side)))


def test_nearest_views_are_the_nearest():
    poses = place_views(0.1)
    T = poses[40].copy()
    rotation = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    T[:3, :3] = rotation @ T[:3, :3]  # an in-plane rotation changes nothing
    assert nearest_views(poses, T, 5)[0] == 40


def test_two_runs_give_the_same_and_a_resumed_one_goes_on(hard_samples):
    again = take(HARD, 6)
    assert all(same(a, b) for a, b in zip(again, hard_samples, strict=False))
    for start in (5, 12):
        resumed = take(HARD, 3, start=start)
        assert all(same(a, b) for a, b in zip(resumed, hard_samples[start:], strict=False))


def test_workers_and_seeds_differ(hard_samples):
    for other in (take(HARD, 1, worker=1, workers=2), take(ProceduralOptions(seed=8, level_start=1, pool=4), 1)):
        assert not np.array_equal(other[0].observation.crop_rgb, hard_samples[0].observation.crop_rgb)


def test_objects_are_replaced_one_at_a_time(hard_samples):
    keys = [int(sample.object_key.split("-")[1]) for sample in hard_samples]
    for number, key in enumerate(keys):
        assert number // 8 <= key < number // 8 + 4


def test_the_level_rises_over_the_run():
    options = ProceduralOptions(ramp_samples=100, level_start=0.2, level_end=0.8)
    assert [options.level(count) for count in (0, 50, 100, 1000)] == pytest.approx([0.2, 0.5, 0.8, 0.8])


@pytest.mark.parametrize("wrong", [{"level_end": 1.5}, {"pool": 0}, {"folder_share": -1}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(PicoPoseError, match="shares must be"):
        ProceduralOptions(**wrong)


def colours_of(mesh: Mesh) -> np.ndarray | None:
    return mesh.texture_rgb if mesh.texture_rgb is not None else mesh.vertex_rgb


def test_half_of_the_templates_show_other_colours_than_the_object():
    items = [make_procedural_object(seed, "", texture_px=16) for seed in range(400)]
    differ = [item.cad is not None or colours_of(item.mesh) is None for item in items]
    assert 0.44 < np.mean(differ) < 0.58
    kinds = {"grey": 0, "one colour": 0, "recoloured": 0}
    for item in items:
        if item.cad is None:
            continue
        colours, shown = colours_of(item.cad), colours_of(item.mesh)
        assert np.array_equal(item.cad.vertices_m, item.mesh.vertices_m)
        assert np.array_equal(item.cad.faces, item.mesh.faces)
        if colours is None:
            kinds["grey"] += 1
        elif colours.shape == shown.shape and len(np.unique(colours.reshape(-1, 3), axis=0)) > 1:
            kinds["recoloured"] += 1
            assert np.abs(colours.astype(int) - shown).mean() > 3
        else:
            kinds["one colour"] += 1
    assert kinds["grey"] > kinds["recoloured"] > 8
    assert kinds["one colour"] > 8
    untextured = [item.mesh.texture_rgb is None for item in items]
    assert 0.37 < np.mean(untextured) < 0.53
    assert {item.material is None for item in items} == {True, False}


def test_a_colourful_part_is_observed_in_its_colours_and_grey_in_its_template():
    items = (make_procedural_object(seed, "part", texture_px=16) for seed in range(200))
    part = next(item for item in items if item.cad is not None and chroma(item.mesh.vertex_rgb) > 60)
    rng, easy = np.random.default_rng(1), Difficulty.at(0)
    scene = random_scene(rng, [part], easy, backgrounds=1)
    (sample,) = observe_scene(rng, scene, np.full((8, 8, 3), 128, np.uint8), easy)
    assert chroma(sample.observation.crop_rgb[sample.observation.mask]) > 20
    assert chroma(sample.template.crop_rgb) == 0


def chroma(rgb: np.ndarray | None) -> float:
    """The mean difference between the channels; 0 without colours."""
    return 0.0 if rgb is None else float(np.ptp(rgb.astype(int), axis=-1).mean())


def test_distinct_meshes_repeat_and_have_a_texture():
    one, two = (make_distinct_mesh([1, 2], (0.1, 0.2), 64) for _ in range(2))
    assert np.array_equal(one.texture_rgb, two.texture_rgb)
    assert 0.1 <= np.ptp(one.vertices_m, axis=0).max() <= 0.2


def write_folder(folder: Path) -> None:
    big = make_procedural_object(5, "").mesh
    write_textured_ply(folder / "plain.ply", Mesh(big.vertices_m + 0.5, big.faces))
    write_textured_ply(folder / "textured.ply", make_distinct_mesh(3, (0.1, 0.1), 32))
    (folder / "broken.ply").write_text("ply\nformat ascii 1.0\nend_header\n")


def test_a_folder_of_meshes_is_mixed_in(tmp_path, caplog):
    write_folder(tmp_path)
    folder = MeshFolder(tmp_path)
    made = [folder.make_object(seed, f"k{seed}") for seed in range(12)]
    assert {item.key.split("-")[1] for item in made} == {"plain", "textured"}
    assert list(folder.problems) == [tmp_path / "broken.ply"]
    assert sum("broken" in record.message for record in caplog.records) == 1
    for item in made:
        low, high = item.mesh.vertices_m.min(axis=0), item.mesh.vertices_m.max(axis=0)
        assert np.allclose(low + high, 0, atol=1e-6)  # centred, whatever the file had
    options = ProceduralOptions(objects=tmp_path, folder_share=1.0, pool=2, level_start=0)
    assert {sample.object_key.split("-")[2] for sample in take(options, 6)} <= {"plain", "textured"}


def test_folders_without_meshes_are_errors(tmp_path):
    with pytest.raises(PicoPoseError, match="contains no"):
        MeshFolder(tmp_path)
    with pytest.raises(PicoPoseError, match="not a folder"):
        MeshFolder(tmp_path / "nowhere")
    (tmp_path / "broken.ply").write_text("ply")
    with pytest.raises(PicoPoseError, match="no mesh of the folder"):
        MeshFolder(tmp_path).make_object(0, "k")


def test_projected_texture_keeps_the_surface():
    mesh = make_procedural_object(2, "").mesh
    shape = project_texture(mesh)
    assert np.allclose(shape.vertices[shape.faces], mesh.vertices_m[mesh.faces])
    assert shape.uv.min() >= 0
    assert shape.uv.max() <= 1


def test_scanned_objects(shared_dir):
    folder = MeshFolder(shared_dir / "train_objects")
    for index in range(0, len(folder.paths), 17):
        mesh = folder.load(index)
        assert mesh is not None, folder.problems
        assert 0 < len(mesh.faces) <= MAX_FACES
    assert not folder.problems
