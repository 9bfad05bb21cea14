"""The weights of the recording: each tensor of the network is drawn from its name alone, so that none is stored."""

from __future__ import annotations

import zlib

import numpy as np

EMBEDDINGS = ("cls_token", "pos_embed", "mask_token")


def seeded_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the tensor `name` of the checkpoint layout, f32 (a batch counter: i64).

    NumPy's legacy generator is used because its stream never changes. Scales keep activations of the order of one
    through the depth of the network, and the flow within the image.
    """
    part = name.split(".")[-1]
    if part == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if part == "running_var":
        noise = np.abs(noise)
    scale, mean = _scale_and_mean(name, part, len(shape))
    values = scale * noise
    if part == "weight" and len(shape) > 1:
        values = values / np.sqrt(int(np.prod(shape[1:])))
    return (mean + values).astype(np.float32)


def _scale_and_mean(name: str, part: str, dimensions: int) -> tuple[float, float]:
    if part in EMBEDDINGS:
        return 0.2, 0.0
    if part == "bias":  # a predicted scale of about 1
        return 0.02, 1.0 if name.endswith("scale_predictor.4.bias") else 0.0
    if part == "gamma":
        return 0.05, 0.3
    if part == "running_mean":
        return 0.1, 0.0
    if part == "running_var" or dimensions == 1:  # a variance, or the weight of a norm
        return 0.1, 1.0
    if name.endswith("predict_layer.weight"):
        return 0.03, 0.0
    return 0.3 if name.endswith("_predictor.4.weight") else 1.2, 0.0
