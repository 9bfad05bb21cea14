"""How the images of a data set are taken: their size, how large objects appear, and what spoils the picture."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.scenes import IMAGE_HW
from picopose_cli.synthesis.sensor import photograph

_DEFOCUS_RADIUS_PX = (2.5, 6.0)
_MOTION_LENGTH_PX = (8.0, 20.0)
_EXPOSURE = (0.06, 0.25)
"""Share of the light of a good exposure."""
_ELECTRONS = (250.0, 1500.0)
"""Electrons of a white pixel at a good exposure: their number decides about the noise."""
_READ_NOISE_ELECTRONS = 1.5
_GAIN_SHARE = (0.0, 0.6)
"""How much of the missing exposure the camera makes up for, in its logarithm."""
_CHROMA_PX = 3


@dataclass(frozen=True)
class Conditions:
    """How images are taken; lengths in pixels are those of an image of 640 columns."""

    size_hw: tuple[int, int] = IMAGE_HW
    level: float = 0.8
    """Difficulty in [0, 1]: of the light and the sensor."""
    max_objects: int = 6
    box_px: tuple[float, float] = (85.0, 250.0)
    """Range of the longest side of the first object's box."""
    framed_px: tuple[float, float] = (0.1 * IMAGE_HW[0], 0.5 * IMAGE_HW[0])
    """Range of the longest sides of all boxes that scenes are chosen for."""
    min_target_px: int = 400
    """Number of visible pixels from which on an object is a target and is detected."""
    blurred_share: float = 0.0
    """Of the images, out of focus or shaken."""
    dark_share: float = 0.0
    """Of the images, taken in the dark."""


USUAL_CONDITIONS = Conditions()


def take_photo(
    rng: np.random.Generator, damage_rng: np.random.Generator, image_rgb: Array, conditions: Conditions
) -> Array:
    """Return the photograph (h,w,3) u8 of an ideal image; `rng` is used alike whatever damage there is."""
    if damage_rng.random() < conditions.blurred_share:
        image_rgb = blur(damage_rng, image_rgb)
    photo = photograph(rng, image_rgb, conditions.level * rng.uniform(0.2, 1))
    return dim(damage_rng, photo) if damage_rng.random() < conditions.dark_share else photo


def blur(rng: np.random.Generator, image_rgb: Array) -> Array:
    """Return an image (h,w,3) u8 out of focus or, as often, shaken: the camera moved along a line or a slight arc."""
    if rng.random() < 0.5:
        kernel = _disc(rng.uniform(*_DEFOCUS_RADIUS_PX))
    else:
        kernel = _streak(rng, rng.uniform(*_MOTION_LENGTH_PX))
    return np.asarray(cv2.filter2D(image_rgb, -1, kernel, borderType=cv2.BORDER_REFLECT))


def dim(rng: np.random.Generator, image_rgb: Array) -> Array:
    """Return an image (h,w,3) u8 taken in the dark: few photons, so that noise is strong, and partly amplified."""
    exposure = float(np.exp(rng.uniform(*np.log(_EXPOSURE))))
    electrons = exposure * float(np.exp(rng.uniform(*np.log(_ELECTRONS))))
    linear = (image_rgb / 255.0) ** 2.2
    counted = rng.poisson(linear * electrons) + rng.normal(0, _READ_NOISE_ELECTRONS, image_rgb.shape)
    gain = exposure ** (1 - rng.uniform(*_GAIN_SHARE))
    seen = (255 * (counted.clip(0) / electrons * gain).clip(0, 1) ** (1 / 2.2)).astype(np.uint8)
    return _smooth_chroma(seen)


def _disc(radius_px: float) -> Array:
    """Return the kernel (k,k) f32 of an open round aperture, its border smooth."""
    half = int(np.ceil(radius_px))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = (radius_px + 0.5 - np.hypot(x, y)).clip(0, 1)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _streak(rng: np.random.Generator, length_px: float) -> Array:
    """Return the kernel (k,k) f32 of a path about its middle, straight or slightly bent."""
    half = int(np.ceil(length_px / 2)) + 1
    along = np.linspace(-0.5, 0.5, 8 * half) * length_px
    bend = rng.uniform(-0.3, 0.3) * length_px * ((2 * along / length_px) ** 2 - 1 / 3) / 2
    angle = rng.uniform(0, np.pi)
    x, y = along * np.cos(angle) - bend * np.sin(angle), along * np.sin(angle) + bend * np.cos(angle)
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    np.add.at(kernel, (np.rint(y).astype(int) + half, np.rint(x).astype(int) + half), 1)
    smooth = cv2.GaussianBlur(kernel, (3, 3), 0.6)
    return np.asarray(smooth / smooth.sum())


def _smooth_chroma(image_rgb: Array) -> Array:
    """Return an image with its colours, but not its brightness, smoothed, as cameras do against coloured noise."""
    ycrcb = cv2.cvtColor(np.ascontiguousarray(image_rgb), cv2.COLOR_RGB2YCrCb)
    ycrcb[..., 1:] = cv2.blur(ycrcb[..., 1:], (_CHROMA_PX, _CHROMA_PX))
    return np.asarray(cv2.cvtColor(ycrcb, cv2.COLOR_YCrCb2RGB))
