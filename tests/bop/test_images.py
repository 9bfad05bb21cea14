"""Images, masks and depth maps: formats, bit depths, and files that are missing, cut or of another size."""

from __future__ import annotations

import io
import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.types import Polygons
from picopose_cli.bop.image_headers import ImageHeader, read_image_header
from picopose_cli.bop.images import read_depth_m, read_image_rgb, read_mask, read_used_bits
from picopose_cli.bop.jpeg import decode_jpeg
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


@pytest.mark.parametrize("orientation", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("ext", [".jpg", ".png", ".tif", ".webp"])
def test_no_format_is_rotated_by_exif(tmp_path, ext, orientation):
    """Masks and cameras belong to the pixels in the order in which they are stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(ext, {})
    path = save(tmp_path / f"image{ext}", colourful(), exif=exif, **options)
    image_rgb = read_image_rgb(path)
    assert image_rgb.shape == (40, 60, 3)
    assert np.abs(image_rgb.astype(int) - colourful()).mean() < 2
    assert read_image_header(path) == ImageHeader((40, 60), orientation)


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


@pytest.mark.parametrize(("largest", "bits"), [(200, 8), (1023, 10), (1024, 12), (4095, 12), (9000, 14), (16384, 16)])
def test_sixteen_bits_are_scaled_by_the_bits_that_the_image_uses(tmp_path, largest, bits):
    """Cameras of 10 or 12 bits write 16-bit files whose values end at 1023 or 4095."""
    wide = np.array([[0, largest // 2, largest]], np.uint16)
    assert cv2.imwrite(str(tmp_path / "image.png"), wide)
    expected = np.round(wide[0].astype(float) * 255 / (2**bits - 1))
    np.testing.assert_array_equal(read_image_rgb(tmp_path / "image.png")[0, :, 1], expected)
    assert read_used_bits(tmp_path / "image.png") == bits


@pytest.mark.parametrize("ext", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_header_has_the_bits(tmp_path, ext, shape):
    for dtype, bits in ((np.uint8, 8), (np.uint16, 16)):
        assert cv2.imwrite(str(tmp_path / f"image{ext}"), np.zeros(shape, dtype))
        assert read_image_header(tmp_path / f"image{ext}") == ImageHeader((4, 5), bits=bits)


def test_alpha_does_not_count_as_used_bits(tmp_path):
    rgba = np.full((4, 4, 4), 1000, np.uint16)
    rgba[..., 3] = 65535
    assert cv2.imwrite(str(tmp_path / "image.png"), rgba)
    assert read_used_bits(tmp_path / "image.png") == 10
    assert read_used_bits(save(tmp_path / "eight.png", colourful())) is None


@pytest.mark.parametrize("ext", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_header_has_the_size_in_every_format(tmp_path, ext):
    path = save(tmp_path / f"image{ext}", colourful())
    assert read_image_header(path) == ImageHeader((40, 60))
    data = path.read_bytes()
    for length in range(0, min(len(data), 200), 7):
        path.write_bytes(data[:length])
        read_image_header(path)  # None or the size, without an exception
    assert read_image_header(tmp_path / "missing.png") is None


def big_tiff(width, height):
    entries = [struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in ((256, width), (257, height))]
    return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries)) + b"".join(entries) + bytes(8)


def test_size_is_checked_before_anything_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "image.png")
    (tmp_path / "image.tif").write_bytes(big_tiff(20_000, 20_000))
    monkeypatch.setattr(cv2, "imdecode", None)
    for name in ("image.png", "image.tif"):
        with pytest.raises(PicoPoseError, match="has 20000x20000 px, more than 100 million"):
            read_image_rgb(tmp_path / name)


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


def test_bytes_before_the_end_that_an_encoder_adds_do_not_matter(tmp_path, capfd):
    data = encoded("jpeg")
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    sound = read_image_rgb(path)
    path.write_bytes(data[:-2] + bytes(40) + data[-2:])
    np.testing.assert_array_equal(read_image_rgb(path), sound)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["zeros", "cut", "reversed"])
def test_damaged_jpeg_is_an_error(tmp_path, capfd, kind):
    """The decoder alone would fill what is lost with grey and go on."""
    data = encoded("jpeg")
    start, end = len(data) // 2, len(data) // 2 + 600
    middle = {"zeros": bytes(end - start), "cut": b"", "reversed": data[start:end][::-1]}[kind]
    (tmp_path / "image.jpg").write_bytes(data[:start] + middle + data[end:])
    with pytest.raises(PicoPoseError, match="the image is damaged"):
        read_image_rgb(tmp_path / "image.jpg")
    assert capfd.readouterr().err == ""


def test_decoding_a_jpeg_keeps_what_other_threads_write_to_stderr(capfd, monkeypatch):
    decode = cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: (os.write(2, b"a warning"), decode(*arguments))[1])
    assert decode_jpeg(encoded("jpeg"))[1] is None
    assert capfd.readouterr().err == "a warning"


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


def test_missing_image_names_what_is_there_instead(tmp_path):
    for number in range(5):
        save(tmp_path / f"frame{number}.png", colourful())
    with pytest.raises(PicoPoseError, match=r"its folder contains frame0.png, frame1.png, frame2.png, \.\.\.\)"):
        read_image_rgb(tmp_path / "000001.png")
    with pytest.raises(PicoPoseError, match="neither does its folder"):
        read_image_rgb(tmp_path / "rgb/000001.png")


def test_polygons_cover_the_pixels_whose_centre_they_contain():
    square = Polygons(((2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0), (-5.0, 6.0, 3.0, 6.0, 3.0, 20.0, -5.0, 20.0)))
    expected = np.zeros((8, 10), bool)
    expected[1:4, 2:6] = True
    expected[6:, :3] = True  # cut off at the image's border
    np.testing.assert_array_equal(read_mask(square, (8, 10)), expected)


def test_polygons_agree_with_a_test_of_each_pixel():
    generator = np.random.default_rng(0)
    rows, cols = np.mgrid[:30, :40]
    for _ in range(20):
        ring = generator.uniform(-5, 45, (7, 2))
        inside = np.zeros((30, 40), bool)
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            between = (y0 <= rows + 0.5) != (y1 <= rows + 0.5)
            inside ^= between & (cols + 0.5 >= x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0))
        np.testing.assert_array_equal(read_mask(Polygons((tuple(ring.ravel()),)), (30, 40)), inside)


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
