"""Photographs as templates: their colours, with the geometry of the mesh seen by the template's own camera."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.meshes import make_ball, make_box, write_ply
from helpers.reference_photos import Photo, take_photos, write_photos

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.options import RenderTemplatesOptions
from picopose_cli.base.types import Array, Mesh, Provenance, TemplateBank
from picopose_cli.commands import render_templates
from picopose_cli.reconstruction.reference_templates import use_photographs
from picopose_cli.reconstruction.views import Photograph, ReferenceView, crop_view
from picopose_cli.rendering.mesh_size import mesh_diameter_m
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.templates import build
from picopose_cli.templates.bank import bank_path, read_bank
from picopose_cli.templates.build import join_templates, make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera

RADII_M = (0.035, 0.03, 0.026)
VIEWS = slice(4, 160, 26)


def make_mesh() -> Mesh:
    ball = make_ball(RADII_M, rings=32, segments=64)
    waves = np.sin(np.array([160, 200, 240]) * ball.vertices_m) + np.sin(180 * ball.vertices_m[:, [1, 2, 0]])
    return replace(ball, vertex_rgb=(128 + 60 * waves).astype(np.uint8))


def directions_of(T_tmpl_from_obj: Array, off_deg: float) -> Array:
    """Return the directions (V,3) of template cameras, turned by an angle about the z axis."""
    cameras = -(T_tmpl_from_obj[:, :3, :3].transpose(0, 2, 1) @ T_tmpl_from_obj[:, :3, 3:])[..., 0]
    c, s = np.cos(np.deg2rad(off_deg)), np.sin(np.deg2rad(off_deg))
    return cameras / np.linalg.norm(cameras, axis=1, keepdims=True) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def views_of(photos: list[Photo]) -> list[ReferenceView]:
    return [
        crop_view(Photograph(str(i), one.rgb, one.mask, one.mask, Pinhole(one.K), one.T))
        for i, one in enumerate(photos)
    ]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh()


@pytest.fixture(scope="module")
def bank(mesh) -> TemplateBank:
    K, poses = template_camera(), place_views(mesh_diameter_m(mesh))[VIEWS]
    renderer = SoftwareRenderer(mesh, K, TEMPLATE_SIZE_HW)
    made = [make_template(renderer.render(T)) for T in poses]
    return join_templates(1, made, K, poses, mesh_diameter_m(mesh), Provenance("", "", "mm", "software", "", ""))


def test_a_photograph_takes_the_place_of_the_nearest_render(mesh, bank):
    views = views_of(take_photos(mesh, directions_of(bank.T_tmpl_from_obj[:3], 4.0)))
    changed, count = use_photographs(bank, mesh, mesh, views)
    assert count == 3
    np.testing.assert_array_equal(changed.crops_rgb[3:], bank.crops_rgb[3:])
    renderer = SoftwareRenderer(mesh, bank.K, (960, 1280))
    shift = np.array([[1.0, 0, 320], [0, 1, 240], [0, 0, 1]])  # photographs may be larger than the usual image
    for i in range(3):
        assert not np.array_equal(changed.T_tmpl_from_obj[i], bank.T_tmpl_from_obj[i])
        exact = make_template(renderer.with_camera(shift @ bank.K, (960, 1280)).render(changed.T_tmpl_from_obj[i]))
        both = exact.mask & changed.masks[i]
        assert both.sum() > 0.98 * max(exact.mask.sum(), changed.masks[i].sum())
        error = np.abs(exact.crop_rgb[both].astype(int) - changed.crops_rgb[i][both])
        assert error.mean() < 12  # photographs of 50 px, enlarged
        cells = changed.depth_corner_m[i] > 0
        on_ball = np.linalg.norm(changed.xyz_obj_m[i][cells] / RADII_M, axis=1)
        assert np.abs(on_ball - 1).mean() < 0.03  # a cell's point is up to a pixel off its corner


def test_far_and_hidden_photographs_are_not_used(mesh, bank):
    views = views_of(take_photos(mesh, directions_of(bank.T_tmpl_from_obj[:3], 4.0)))
    hidden = views[0].visible.copy()
    hidden[: len(hidden) // 2] = False
    views[0] = replace(views[0], visible=hidden)
    views[1] = replace(views[1], silhouette=np.roll(views[1].silhouette, 25, axis=1))
    far = views_of(take_photos(mesh, directions_of(bank.T_tmpl_from_obj[4:5], 40.0)))
    changed, count = use_photographs(bank, mesh, mesh, [*views, *far])
    assert count == 1
    np.testing.assert_array_equal(changed.crops_rgb[[0, 1, 4]], bank.crops_rgb[[0, 1, 4]])


def test_exposure_follows_the_renders(mesh, bank):
    views = views_of(take_photos(mesh, directions_of(bank.T_tmpl_from_obj[:1], 2.0)))
    dark = [replace(view, rgb=(view.rgb * 0.6).astype(np.uint8)) for view in views]
    usual, dimmed = (use_photographs(bank, mesh, mesh, each)[0].crops_rgb[0] for each in (views, dark))
    assert np.abs(usual.astype(int) - dimmed).mean() < 3


def test_banks_with_photographs(tmp_path: Path, monkeypatch, capsys):
    place_all = build.place_views
    monkeypatch.setattr(build, "place_views", lambda diameter_m: place_all(diameter_m)[VIEWS])
    mesh = make_mesh()
    write_ply(tmp_path / "data/toy/models/obj_000002.ply", mesh)
    photos = take_photos(mesh, directions_of(place_all(mesh_diameter_m(mesh))[VIEWS][:2], 3.0))
    write_photos(tmp_path / "photos", photos)
    usual = {"dataset": "toy", "data_dir": tmp_path / "data", "renderer": "software", "workers": 1}

    def render(**changes):
        options = {"from_reference": tmp_path / "photos"} | changes
        return render_templates.run(RenderTemplatesOptions(**usual, **options))

    assert render(from_reference=None).written == [2]
    plain = read_bank(bank_path(tmp_path / "data/toy/templates", 2))
    assert render().written == [2]
    assert "2 of 6 views are photographs" in capsys.readouterr().out
    made = read_bank(bank_path(tmp_path / "data/toy/templates", 2))
    assert made.provenance.source_sha256 == plain.provenance.source_sha256
    assert not np.array_equal(made.crops_rgb[:2], plain.crops_rgb[:2])
    assert render().kept == [2]
    cv2.imwrite(str(tmp_path / "photos/images/photo_01.png"), photos[1].rgb)
    assert render().written == [2]
    assert render(from_reference=None).written == [2]
    write_ply(tmp_path / "data/toy/models/obj_000005.ply", make_box())
    with pytest.raises(PicoPoseError, match="shows one object, but there are 2 to render; choose it with --object-ids"):
        render()
    (tmp_path / "photos/cameras.json").write_text("{")
    assert "not valid JSON" in render(object_ids=(2,)).failed[2]
    with pytest.raises(PicoPoseError, match="--from-reference needs meshes"):
        render(from_images=tmp_path)
