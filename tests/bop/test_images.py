"""Images, masks and depth maps: formats, bit depths, and files that are missing, cut or of another size."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.bop.images import read_depth_m, read_image_rgb, read_mask
from picopose_cli.bop.rle import encode_rle


def colourful(height=40, width=60):
    rows, cols = np.mgrid[:height, :width]
    return np.stack([rows * 5 % 256, cols * 4 % 256, (rows + cols) * 2 % 256], axis=2).astype(np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("ext", [".png", ".tif", ".bmp"])
def test_colour_arrives_as_rgb(tmp_path, ext):
    image_rgb = read_image_rgb(save(tmp_path / f"image{ext}", colourful()))
    np.testing.assert_array_equal(image_rgb, colourful())
    assert image_rgb.dtype == np.uint8
    assert image_rgb.flags.c_contiguous


def test_jpeg_is_not_rotated_by_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees": masks and cameras belong to the pixels as they lie
    image_rgb = read_image_rgb(save(tmp_path / "image.jpg", colourful(), quality=100, subsampling=0, exif=exif))
    assert image_rgb.shape == (40, 60, 3)
    assert np.abs(image_rgb.astype(int) - colourful()).mean() < 2


@pytest.mark.parametrize("ext", [".png", ".jpg", ".tif"])
def test_grey_gets_three_equal_channels(tmp_path, ext):
    grey = np.tile(np.arange(60, dtype=np.uint8) * 4, (40, 1))
    image_rgb = read_image_rgb(save(tmp_path / f"image{ext}", grey))
    assert image_rgb.shape == (40, 60, 3)
    assert (np.ptp(image_rgb, axis=2) == 0).all()
    assert np.abs(image_rgb[..., 0].astype(int) - grey).max() <= 2
    image_rgb[0, 0, 0] = 1  # a copy that may be written to


@pytest.mark.parametrize("ext", [".png", ".tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, ext):
    wide = np.array([[0, 128, 129, 257, 25700, 65535]], np.uint16)
    path = tmp_path / f"image{ext}"
    assert cv2.imwrite(str(path), wide)
    np.testing.assert_array_equal(read_image_rgb(path)[0, :, 1], [0, 0, 1, 1, 100, 255])


def test_alpha_is_dropped_and_palettes_are_resolved(tmp_path):
    rgba = np.dstack([colourful(), np.zeros((40, 60), np.uint8)])
    np.testing.assert_array_equal(read_image_rgb(save(tmp_path / "rgba.png", rgba)), colourful())
    palette = Image.fromarray(np.eye(8, dtype=np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png")
    assert {tuple(pixel) for pixel in read_image_rgb(tmp_path / "palette.png").reshape(-1, 3)} == {
        (10, 20, 30),
        (200, 100, 50),
    }


def test_float_image_is_refused(tmp_path):
    path = tmp_path / "image.tif"
    cv2.imwrite(str(path), np.zeros((4, 4), np.float32))
    with pytest.raises(PicoPoseError, match="float32 values, must have 8 or 16 bits"):
        read_image_rgb(path)


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noisy = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    options = {"progressive": True} if kind == "progressive" else {}
    if kind == "thumbnail":
        inner = io.BytesIO()
        Image.fromarray(noisy[:16, :16]).save(inner, "JPEG")
        exif = Image.Exif()
        exif[0x927C] = inner.getvalue()  # an end mark before the image's own data
        options = {"exif": exif}
    Image.fromarray(noisy).save(buffer, kind.upper() if kind in ("png", "tiff", "jpeg") else "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "jpeg", "progressive", "thumbnail", "tiff"])
def test_truncated_at_any_length(tmp_path, kind):
    data = encoded(kind)
    path = tmp_path / "000001.png"
    path.write_bytes(data)
    assert read_image_rgb(path).shape == (80, 100, 3)
    for length in [1, 3, 10, *range(40, len(data), len(data) // 12), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        if kind == "tiff" and length >= len(data) - 2:
            continue  # what a TIFF ends with need not be image data
        with pytest.raises(PicoPoseError) as caught:
            read_image_rgb(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_bytes_after_the_end_do_not_matter(tmp_path, kind):
    path = tmp_path / "image"
    path.write_bytes(encoded(kind) + b"\0" * 100)
    assert read_image_rgb(path).shape == (80, 100, 3)


def test_damaged_png_is_found_by_its_checksum(tmp_path):
    data = bytearray(encoded("png"))
    data[len(data) // 2] ^= 1
    (tmp_path / "image.png").write_bytes(data)
    with pytest.raises(PicoPoseError, match="truncated or damaged"):
        read_image_rgb(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), (b"", "0 bytes"), (b"not an image at all", "is not an image")]
)
def test_missing_empty_and_other_files(tmp_path, content, words):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PicoPoseError, match=words) as caught:
        read_image_rgb(path)
    assert str(path) in str(caught.value)
    with pytest.raises(PicoPoseError, match="cannot be read"):
        read_image_rgb(tmp_path)


def test_masks_from_both_sources(tmp_path):
    mask = np.zeros((40, 60), bool)
    mask[5:9, 50:] = True
    path = save(tmp_path / "mask.png", mask.astype(np.uint8))  # 1 is inside too, not only 255
    np.testing.assert_array_equal(read_mask(path, (40, 60)), mask)
    np.testing.assert_array_equal(read_mask(encode_rle(mask), (40, 60)), mask)
    coloured = np.dstack([mask * 0, mask * 255, mask * 0, np.full(mask.shape, 255)]).astype(np.uint8)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "rgba.png", coloured), (40, 60)), mask)


def test_mask_of_another_size_names_both_sizes(tmp_path):
    mask = np.ones((40, 60), bool)
    path = save(tmp_path / "mask.png", mask.astype(np.uint8))
    for source in (encode_rle(mask), path):
        with pytest.raises(PicoPoseError, match="the mask is 60x40 px, its image 640x480"):
            read_mask(source, (480, 640))


def test_depth_in_metres(tmp_path):
    path = tmp_path / "depth.png"
    cv2.imwrite(str(path), np.array([[0, 5000, 65535]], np.uint16))
    np.testing.assert_allclose(read_depth_m(path, 0.1), [[0, 0.5, 6.5535]], rtol=1e-6)
    assert read_depth_m(path, 0.1).dtype == np.float32
    path = tmp_path / "depth.tif"
    cv2.imwrite(str(path), np.array([[np.nan, -1, np.inf, 750.5]], np.float32))
    np.testing.assert_allclose(read_depth_m(path, 1.0), [[0, 0, 0, 0.7505]], rtol=1e-6)
    with pytest.raises(PicoPoseError, match="one channel"):
        read_depth_m(save(tmp_path / "rgb.png", colourful()), 1.0)
