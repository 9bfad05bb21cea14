"""Sensor effects of a random camera: blur, exposure, colour cast, vignetting, noise, JPEG; some images are grey."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from picopose_cli.base.types import Array
from picopose_cli.synthesis.image_files import encode_image

_NOISE_SIDE = 1024


def photograph(rng: np.random.Generator, image_rgb: Array, strength: float) -> Array:
    """Return an image (h,w,3) u8 with the sensor effects of a random camera; their `strength` is within [0, 1]."""
    image = _blurred(rng, image_rgb, strength)
    image = cv2.LUT(image, _tone_curves(rng, strength))
    if rng.random() < 0.25 * strength:
        image = _vignetted(rng, image)
    if rng.random() < 0.15 * strength:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.8:
        image = _noisy(rng, image, strength)
    if rng.random() < 0.6 * strength:
        image = _compressed(image, int(rng.uniform(35, 95)))
    return np.asarray(image)


def _blurred(rng: np.random.Generator, image: Array, strength: float) -> Array:
    kind = rng.random()
    if kind < 0.45 * strength:
        sigma = float(rng.uniform(0.3, 0.5 + 1.5 * strength))
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))
    if kind < 0.6 * strength:
        return np.asarray(cv2.filter2D(image, -1, _motion(rng, 1 + 6 * strength)))
    if kind > 1 - 0.15 * strength:  # sharpened in the camera
        return np.asarray(cv2.addWeighted(image, 1.6, cv2.GaussianBlur(image, (0, 0), 1.0), -0.6, 0))
    return image


def _motion(rng: np.random.Generator, longest_px: float) -> Array:
    """Return the kernel (k,k) f32 of motion blur along a straight line."""
    length, angle = rng.uniform(1, longest_px), rng.uniform(0, np.pi)
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    for share in np.linspace(-1, 1, 4 * half + 1):
        x, y = np.rint(half + share * reach).astype(int)
        kernel[y, x] += 1
    return np.asarray(kernel / kernel.sum())


def _tone_curves(rng: np.random.Generator, strength: float) -> Array:
    """Return the lookup table (256,1,3) u8 of exposure, contrast, gamma and colour cast, one curve per channel."""
    level = np.linspace(0, 1, 256)[:, None] ** np.exp(np.clip(rng.normal(0, 0.3 * strength), -0.6, 0.5))
    cast = np.exp(rng.normal(0, 0.1 * strength, 3) * (rng.random() < 0.7))
    contrast = np.exp(rng.normal(0, 0.25 * strength))
    exposure = np.exp(np.clip(rng.normal(0, 0.28 * strength), -0.5, 0.5))
    curves = ((level - 0.5) * contrast + 0.5 + rng.normal(0, 0.04 * strength)) * exposure * cast
    return np.asarray((curves * 255).clip(0, 255).astype(np.uint8)[:, None])


def _vignetted(rng: np.random.Generator, image: Array) -> Array:
    height, width = image.shape[:2]
    x = (np.arange(width, dtype=np.float32) - width * rng.uniform(0.2, 0.8)) / width
    y = (np.arange(height, dtype=np.float32)[:, None] - height * rng.uniform(0.2, 0.8)) / height
    fall = (1 - rng.uniform(0.1, 0.5) * (x**2 + y**2)).clip(0, 1)
    return np.asarray(cv2.multiply(image, cv2.cvtColor(fall, cv2.COLOR_GRAY2RGB), dtype=cv2.CV_8U))


def _noisy(rng: np.random.Generator, image: Array, strength: float) -> Array:
    """Add normal noise, equal or independent in the channels, sometimes blurred as after demosaicing."""
    height, width = image.shape[:2]
    top, left = (int(rng.integers(max(_NOISE_SIDE - side, 0) + 1)) for side in (height, width))
    noise = _noise_pool()[top : top + height, left : left + width]
    if noise.shape[:2] != (height, width):
        rows, cols = height - noise.shape[0], width - noise.shape[1]
        noise = cv2.copyMakeBorder(noise, 0, rows, 0, cols, cv2.BORDER_REFLECT)
    if rng.random() < 0.3:
        noise = cv2.cvtColor(np.ascontiguousarray(noise[..., 0]), cv2.COLOR_GRAY2RGB)
    if rng.random() < 0.3:
        noise = cv2.blur(noise, (2, 2)) * 2
    sigma = rng.uniform(0.5, 2 + 10 * strength * rng.random())
    return np.asarray(cv2.add(image, noise * np.float32(sigma), dtype=cv2.CV_8U))


@lru_cache(maxsize=1)
def _noise_pool() -> Array:
    """Return normal noise (1024,1024,3) f32 to crop from: sampling new noise for each image would take too long."""
    return np.random.default_rng(20240917).standard_normal((_NOISE_SIDE, _NOISE_SIDE, 3), np.float32)


def _compressed(image: Array, quality: int) -> Array:
    data = encode_image(image[..., ::-1], ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(np.asarray(decoded)[..., ::-1])
