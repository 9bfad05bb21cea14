"""A small prepared folder with a file of every kind that picopose reads, made in seconds from a fixed seed."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from helpers.meshes import make_ball, make_box, write_ply
from helpers.networks import CROP_224, random_network
from helpers.rendered_bop import write_bop_dataset

from picopose_cli.base.geometry import make_T
from picopose_cli.base.options import RenderTemplatesOptions
from picopose_cli.base.types import Mesh, PoseEstimate
from picopose_cli.bop.results import write_results
from picopose_cli.commands import render_templates
from picopose_cli.network.checkpoint import save_network
from picopose_cli.templates import build, views

RESULT = "picopose_toy-test.csv"
TRUTH = "noisy_toy-test.csv"


def render_few_views() -> None:
    """Let this process, and those forked from it, render every 32nd view only."""
    build.place_views = lambda diameter_m: views.place_views(diameter_m)[::32]  # type: ignore[assignment]


def make_folder(root: Path, images: int = 3) -> None:
    """Write the data sets `toy` and `shapes` with banks, weights and results; `shapes` has a mesh of each format.

    The images of `toy` are a PNG, a JPEG and a TIFF in turn.
    """
    dataset = write_bop_dataset(root / "bop", "toy", images=images)
    _convert_images(dataset.root / "test/000001/rgb")
    _write_detections(dataset.root)
    _write_shapes(root / "bop/shapes/models")
    network = random_network(CROP_224)
    save_network(root / "tiny.safetensors", network)
    torch.save(network.state_dict(), root / "tiny.pth")
    torch.save({"state_dict": {f"network.{name}": value for name, value in network.state_dict().items()}, "epoch": 1},
               root / "tiny.ckpt")  # fmt: skip
    rng = np.random.default_rng(1)
    write_results(root / TRUTH, (
        PoseEstimate(scene_id, im_id, obj_id, 0.5 + obj_id / 10, T @ _small_error(rng), 0.1)
        for (scene_id, im_id), placed in dataset.poses.items() for obj_id, T in placed
    ))  # fmt: skip
    for name in ("toy", "shapes"):
        options = RenderTemplatesOptions(dataset=name, data_dir=root / "bop", renderer="software", workers=1)
        if render_templates.run(options).exit_code:
            raise SystemExit("a bank of the sound folder cannot be made")


def _small_error(rng: np.random.Generator) -> np.ndarray:
    return make_T(cv2.Rodrigues(rng.normal(0, 0.08, 3))[0], rng.normal(0, 0.006, 3))


def _convert_images(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        suffix = (".png", ".jpg", ".tif")[int(path.stem) % 3]
        image = cv2.imread(str(path))
        path.unlink()
        cv2.imwrite(str(path.with_suffix(suffix)), image)


def _write_detections(root: Path) -> None:
    """Write the detections also with gzip, and their masks as a folder of images with and without a table."""
    text = (root / "detections.json").read_text()
    (root / "detections.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    for folder in ("masks", "table"):
        (root / folder).mkdir()
    lines = ["mask,scene_id,im_id,obj_id,score,time"]
    for im_id in sorted({entry["image_id"] for entry in json.loads(text)}):
        for gt_id, obj_id in enumerate((1, 2)):
            mask = root / f"test/000001/mask_visib/{im_id:06d}_{gt_id:06d}.png"
            shutil.copy(mask, root / f"masks/000001_{im_id:06d}_{obj_id:06d}_0.png")
            shutil.copy(mask, root / f"table/{im_id}-{obj_id}.png")
            lines.append(f"{im_id}-{obj_id}.png,1,{im_id},{obj_id},{0.8 + obj_id / 100},0.5")
    (root / "table/masks.csv").write_text("\n".join(lines) + "\n")


def _write_shapes(folder: Path) -> None:
    """Write a textured PLY, an OBJ with a library and a texture, a GLB with vertex colours, and models_info.json."""
    import trimesh

    box, ball = _textured_box(), make_ball((0.05, 0.035, 0.06), 8, 12)
    write_ply(folder / "obj_000001.ply", box, binary=True, texture="obj_000001.png")
    cv2.imwrite(str(folder / "obj_000001.png"), box.texture_rgb[..., ::-1])
    _write_obj(folder, box)
    glb = trimesh.Trimesh(ball.vertices_m * 1000, ball.faces, vertex_colors=ball.vertex_rgb, process=False)
    glb.export(folder / "obj_000003.glb")
    write_ply(folder / "obj_000004.ply", make_box((0.08, 0.1, 0.06)))
    infos = {}
    for obj_id, mesh in {1: box, 2: box, 3: ball, 4: box}.items():
        spread = mesh.vertices_m[:, None] - mesh.vertices_m[None]
        infos[str(obj_id)] = {"diameter": float(np.linalg.norm(spread, axis=-1).max() * 1000)}
    infos["4"]["symmetries_discrete"] = [np.diag([-1.0, -1, 1, 1]).ravel().tolist()]
    infos["3"]["symmetries_continuous"] = [{"axis": [0, 0, 1], "offset": [0, 0, 0]}]
    (folder / "models_info.json").write_text(json.dumps(infos))


def _textured_box() -> Mesh:
    """Return a box, each side with the whole of a coloured texture."""
    uv = np.tile(np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32), (6, 1))
    texture = cv2.resize(np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8), (96, 64))
    return replace(make_box((0.08, 0.1, 0.06), coloured=False), uv=uv, texture_rgb=texture)


def _write_obj(folder: Path, mesh: Mesh) -> None:
    lines = ["mtllib obj_000002.mtl", *(f"v {x} {y} {z}" for x, y, z in (mesh.vertices_m * 1000).tolist())]
    lines += [f"vt {u} {v}" for u, v in mesh.uv.tolist()] + ["usemtl paper"]
    lines += ["f " + " ".join(f"{index + 1}/{index + 1}" for index in face) for face in mesh.faces.tolist()]
    (folder / "obj_000002.obj").write_text("\n".join(lines) + "\n")
    (folder / "obj_000002.mtl").write_text("newmtl paper\nKd 0.8 0.8 0.8\nmap_Kd obj_000002.jpg\n")
    cv2.imwrite(str(folder / "obj_000002.jpg"), mesh.texture_rgb[..., ::-1])
