"""The square crop against the released network's inputs, and its refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import apply_affine
from picopose_cli.templates.crops import crop_affine, crop_colour, crop_mask, normalise_bgr, resize_nearest, square_box


@pytest.fixture(scope="module")
def golden(shared_dir: Path):
    with np.load(shared_dir / "golden" / "network.npz") as file:
        yield {name: file[name] for name in file.files if name.startswith(("query_", "template_"))}


def test_boxes_of_queries_and_templates(golden):
    for mask, box_xywh, expected in zip(
        golden["query_masks"], golden["query_box_xywh"], golden["query_box_yyxx"], strict=True
    ):
        assert square_box(mask, tuple(box_xywh)) == tuple(expected)
    for o in (0, 1):
        for rgba, expected in zip(golden[f"template_rgba_{o}"], golden[f"template_box_yyxx_{o}"], strict=True):
            assert square_box(rgba[..., 3]) == tuple(expected)


def test_network_inputs_of_queries(golden):
    for b, box in enumerate(map(tuple, golden["query_box_yyxx"])):
        np.testing.assert_array_equal(crop_affine(box), golden["query_in_M"][b])
        np.testing.assert_array_equal(crop_mask(golden["query_masks"][b] > 0, box), golden["query_in_mask"][b] > 0)
        inputs = normalise_bgr(crop_colour(golden["query_image_rgb"], box)[None])[0]
        np.testing.assert_allclose(inputs, golden["query_in_rgb"][b], atol=1e-6)


def test_network_input_of_a_template(golden):
    box, rgba = tuple(golden["template_box_yyxx_0"][0]), golden["template_rgba_0"][0]
    inputs = normalise_bgr(crop_colour(rgba[..., :3], box)[None])[0]
    np.testing.assert_allclose(inputs, golden["template_in_rgb_first"], atol=1e-6)


def mask_of(rows: slice, cols: slice, size_hw: tuple[int, int] = (100, 200)) -> np.ndarray:
    mask = np.zeros(size_hw, bool)
    mask[rows, cols] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "box"),
    [
        (mask_of(slice(40, 60), slice(50, 90)), (30, 70, 50, 90)),
        (mask_of(slice(40, 60), slice(50, 91)), (30, 70, 50, 90)),  # an odd side loses a pixel
        (mask_of(slice(0, 10), slice(0, 40)), (0, 40, 0, 40)),  # shifted, not shrunk
        (mask_of(slice(90, 100), slice(160, 200)), (60, 100, 160, 200)),
        (mask_of(slice(0, 100), slice(0, 200)), (0, 100, 50, 150)),  # as large as the image allows
    ],
)
def test_the_box_is_square_and_inside(mask, box):
    assert square_box(mask) == box


def test_a_few_pixels_give_way_to_the_box():
    few = mask_of(slice(3, 5), slice(3, 7))
    assert few.sum() == 8
    assert square_box(few, (50.0, 20.0, 30.0, 10.0)) == (10, 40, 50, 80)
    nine = mask_of(slice(3, 6), slice(3, 6))
    assert square_box(nine, (50.0, 20.0, 30.0, 10.0)) == (3, 5, 3, 5)


@pytest.mark.parametrize("box", [None, (np.nan, 0.0, 10.0, 10.0), (0.0, 0.0, 1.0, 1.0), (5.0, 5.0, -3.0, -3.0)])
def test_nothing_to_crop_is_refused(box):
    with pytest.raises(PicoPoseError):
        square_box(np.zeros((100, 200), bool), box)


def test_a_box_far_outside_is_moved_inside():
    assert square_box(np.zeros((100, 200), bool), (-500.0, 900.0, 40.0, 20.0)) == (60, 100, 0, 40)


def test_the_affine_takes_corners_to_corners():
    corners = np.array([[30.0, 10], [70, 10], [70, 50], [30, 50]])
    mapped = apply_affine(crop_affine((10, 50, 30, 70)), corners)
    np.testing.assert_allclose(mapped, [[0, 0], [224, 0], [224, 224], [0, 224]], atol=1e-4)


def test_u8_and_float_images_crop_alike():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    box = (5, 45, 10, 50)
    np.testing.assert_allclose(crop_colour(image, box), crop_colour(image / 255, box), atol=1e-6)
    crops = np.rint(crop_colour(image, box) * 255).astype(np.uint8)[None]
    np.testing.assert_allclose(normalise_bgr(crops), normalise_bgr(crops / np.float32(255)), atol=1e-6)


def test_nearest_takes_the_top_left_source_pixel():
    ramp = np.tile(np.arange(130, dtype=np.float32), (130, 1))
    np.testing.assert_array_equal(resize_nearest(ramp, 64)[0], np.floor(np.arange(64) * 130 / 64))
