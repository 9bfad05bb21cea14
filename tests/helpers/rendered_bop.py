"""A small BOP data set with simple meshes, rendered images with occlusion and exact ground truth.

Independent of the package's own writer, `picopose_cli.synthesis`: a fault there cannot hide one in a reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from helpers.meshes import make_ball, make_box, write_ply
from helpers.poses import random_rotation
from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.rendering.software import SoftwareRenderer

K = np.array([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])
HEIGHT, WIDTH = 240, 320


@dataclass(frozen=True)
class RenderedDataset:
    """Path and contents of a data set; `poses[scene_id, im_id]` is a list of (obj_id, T_cam_from_obj in m)."""

    data_dir: Path
    name: str
    poses: dict[tuple[int, int], list[tuple[int, np.ndarray]]]

    @property
    def root(self) -> Path:
        return self.data_dir / self.name


def write_bop_dataset(
    data_dir: Path, name: str = "toy", *, scenes: int = 1, images: int = 2, seed: int = 0, depth: bool = True
) -> RenderedDataset:
    """Write models 1 (box) and 2 (ellipsoid), `scenes` x `images` images with one of each, targets and detections."""
    rng = np.random.default_rng(seed)
    root = data_dir / name
    meshes = {1: make_box((0.08, 0.1, 0.06)), 2: make_ball((0.05, 0.035, 0.06))}
    _write_models(root, meshes)
    meshes = {obj_id: read_mesh(root / f"models/obj_{obj_id:06d}.ply") for obj_id in meshes}
    poses, targets, detections = {}, [], []
    for scene_id in range(1, scenes + 1):
        annotations = _SceneFiles(root / f"test/{scene_id:06d}")
        for im_id in range(images):
            placed = [
                (obj_id, make_T(random_rotation(rng), np.array([side * 0.045, 0.01 * side, 0.5 + 0.05 * rng.random()])))
                for side, obj_id in zip((-1, 1), meshes, strict=True)
            ]
            poses[scene_id, im_id] = placed
            masks = annotations.add_image(im_id, placed, meshes, rng, depth)
            for (obj_id, _), mask in zip(placed, masks, strict=True):
                targets.append({"scene_id": scene_id, "im_id": im_id, "obj_id": obj_id, "inst_count": 1})
                detections.append(cnos_entry(scene_id, im_id, obj_id, mask))
        annotations.write()
    (root / "test_targets_bop19.json").write_text(json.dumps(targets))
    (root / "detections.json").write_text(json.dumps(detections))
    return RenderedDataset(data_dir, name, poses)


def cnos_entry(scene_id: int, im_id: int, obj_id: int, mask: np.ndarray, score: float = 0.9) -> dict[str, object]:
    """One entry of a CNOS detections file, with an uncompressed run-length mask."""
    rows, cols = np.nonzero(mask)
    flat = mask.T.ravel().astype(np.int8)  # COCO counts column by column
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    box = (
        [float(cols.min()), float(rows.min()), float(np.ptp(cols) + 1), float(np.ptp(rows) + 1)]
        if len(rows)
        else [0.0] * 4
    )
    return {
        "scene_id": scene_id,
        "image_id": im_id,
        "category_id": obj_id,
        "score": score,
        "bbox": box,
        "time": 0.25,
        "segmentation": {"counts": counts, "size": list(mask.shape)},
    }


def _write_models(root: Path, meshes: dict[int, Mesh]) -> None:
    info = {}
    for obj_id, mesh in meshes.items():
        write_ply(root / f"models/obj_{obj_id:06d}.ply", mesh)
        vertices = mesh.vertices_m * 1000
        lows, sizes = vertices.min(axis=0), np.ptp(vertices, axis=0)
        diameter = max(np.linalg.norm(vertices - vertex, axis=1).max() for vertex in vertices)
        info[str(obj_id)] = {"diameter": diameter}
        info[str(obj_id)] |= {f"min_{axis}": low for axis, low in zip("xyz", lows, strict=True)}
        info[str(obj_id)] |= {f"size_{axis}": size for axis, size in zip("xyz", sizes, strict=True)}
    (root / "models/models_info.json").write_text(json.dumps(info))


class _SceneFiles:
    """Writes the images of a scene at once and its JSON files at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cameras: dict[str, object] = {}
        self.gt: dict[str, object] = {}
        self.gt_info: dict[str, object] = {}
        for name in ("rgb", "depth", "mask", "mask_visib"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add_image(
        self,
        im_id: int,
        placed: list[tuple[int, np.ndarray]],
        meshes: dict[int, Mesh],
        rng: np.random.Generator,
        depth: bool,
    ) -> list[np.ndarray]:
        views = []
        for obj_id, T in placed:
            renderer = SoftwareRenderer(meshes[obj_id], K, (HEIGHT, WIDTH))
            views.append(renderer.render(T))
            renderer.close()
        depths = np.stack([np.where(view.depth_m > 0, view.depth_m, np.inf) for view in views])
        nearest = depths.argmin(axis=0)
        image = cv2.resize(rng.integers(60, 200, (12, 16, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        visible = [(nearest == i) & np.isfinite(depths[i]) for i in range(len(views))]
        for view, mask in zip(views, visible, strict=True):
            image[mask] = view.rgb[mask]
        cv2.imwrite(str(self.folder / f"rgb/{im_id:06d}.png"), image[..., ::-1])
        if depth:
            scene_depth = np.where(np.isfinite(depths.min(axis=0)), depths.min(axis=0), 0.9)
            cv2.imwrite(str(self.folder / f"depth/{im_id:06d}.png"), (scene_depth * 10000).round().astype(np.uint16))
        self._annotate(im_id, placed, depths, visible)
        return visible

    def _annotate(
        self, im_id: int, placed: list[tuple[int, np.ndarray]], depths: np.ndarray, visible: list[np.ndarray]
    ) -> None:
        self.cameras[str(im_id)] = {"cam_K": K.ravel().tolist(), "depth_scale": 0.1}
        self.gt[str(im_id)], self.gt_info[str(im_id)] = [], []
        for gt_id, ((obj_id, T), mask) in enumerate(zip(placed, visible, strict=True)):
            full = np.isfinite(depths[gt_id])
            self.gt[str(im_id)].append(
                {
                    "obj_id": obj_id,
                    "cam_R_m2c": T[:3, :3].ravel().tolist(),
                    "cam_t_m2c": (T[:3, 3] * 1000).tolist(),
                }
            )
            box = cnos_entry(0, 0, 0, mask)["bbox"]
            self.gt_info[str(im_id)].append(
                {
                    "bbox_obj": cnos_entry(0, 0, 0, full)["bbox"],
                    "bbox_visib": box,
                    "px_count_all": int(full.sum()),
                    "px_count_valid": int(full.sum()),
                    "px_count_visib": int(mask.sum()),
                    "visib_fract": float(mask.sum() / full.sum()),
                }
            )
            for name, image in (("mask", full), ("mask_visib", mask)):
                cv2.imwrite(str(self.folder / f"{name}/{im_id:06d}_{gt_id:06d}.png"), image.astype(np.uint8) * 255)

    def write(self) -> None:
        for name, content in (("camera", self.cameras), ("gt", self.gt), ("gt_info", self.gt_info)):
            (self.folder / f"scene_{name}.json").write_text(json.dumps(content))
