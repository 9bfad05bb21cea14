"""Make the README's picture from a finished `picopose demo` folder: the estimates on the images that show them largest.

picopose demo && python benchmarks/make_readme_picture.py picopose-demo
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.files import atomic_write_bytes
from picopose_cli.base.geometry import project_points, transform_points
from picopose_cli.base.types import Array
from picopose_cli.bop.datasets import Dataset, mesh_path, open_dataset, read_scene_cameras
from picopose_cli.bop.images import read_image_rgb
from picopose_cli.bop.results import ResultTable, read_results
from picopose_cli.commands.demo import DATASET, RESULTS_NAME
from picopose_cli.pictures.judged_results import LEGEND
from picopose_cli.pictures.overlays import CORRECT_RGB, WRONG_RGB, DrawnPose, draw_poses
from picopose_cli.pictures.result_overlays import draw_result_overlays
from picopose_cli.rendering.meshes import read_mesh

OUTPUT = Path(__file__).parent / "results/demo.png"
TILE_PX = 320
GAP_PX = 6
LEGEND_PX = 32
LEGEND_FONT = (cv2.FONT_HERSHEY_SIMPLEX, 0.5)
MARGIN = 0.1
"""Space around the outlines of a tile, as a fraction of the larger side of their box."""
COLOURS = 256
"""Colours of the PNG's palette: photographs with noise would otherwise take megabytes."""
MAX_BYTES = 300_000


def main() -> None:
    """Write the picture and print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of a finished `picopose demo`")
    parser.add_argument("--images", type=int, default=3, help="images side by side")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    png = encode(make_picture(arguments.demo, arguments.images))
    if len(png) > MAX_BYTES:
        parser.error(f"the picture has {len(png)} bytes, more than {MAX_BYTES}: use fewer --images")
    atomic_write_bytes(arguments.output, png)
    print(f"{arguments.output}: {len(png)} bytes")


def make_picture(demo: Path, images: int) -> Array:
    """Return the picture (h,w,3) u8 RGB of the `images` images that show their objects largest, in their order."""
    dataset, table = open_dataset(DATASET, demo), read_results(demo / RESULTS_NAME)
    with tempfile.TemporaryDirectory() as scratch:
        judged = draw_result_overlays(dataset, demo / RESULTS_NAME, Path(scratch))
    correct = np.array([bool(judged.is_correct(row)) for row in range(len(judged.error))])
    keys = np.unique(np.stack([table.scene_id, table.im_id], axis=1), axis=0).tolist()
    crops = [Crop(dataset, table, correct, *key) for key in keys]
    largest = sorted(np.argsort([-crop.side_px for crop in crops], kind="stable")[:images])
    gap = np.full((TILE_PX, GAP_PX, 3), 255, np.uint8)
    row = np.concatenate([part for index in largest for part in (gap, crops[index].draw())][1:], axis=1)
    return np.concatenate([row, legend_strip(row.shape[1])])


class Crop:
    """The square part of an image around its estimates."""

    def __init__(self, dataset: Dataset, table: ResultTable, correct: Array, scene_id: int, im_id: int) -> None:
        rows = np.flatnonzero((table.scene_id == scene_id) & (table.im_id == im_id))
        self.image_rgb = read_image_rgb(dataset.image_path(scene_id, im_id))
        self.K = read_scene_cameras(dataset, scene_id)[im_id].K
        meshes = [read_mesh(mesh_path(dataset, obj_id)) for obj_id in table.obj_id[rows]]
        self.posed = list(zip(meshes, table.T_cam_from_obj[rows], strict=True))
        self.correct = correct[rows].tolist()
        uv_image = [project_points(self.K, transform_points(T, mesh.vertices_m)) for mesh, T in self.posed]
        self.low, self.high = np.concatenate(uv_image).min(axis=0), np.concatenate(uv_image).max(axis=0)
        self.side_px = (1 + 2 * MARGIN) * (self.high - self.low).max()

    def draw(self) -> Array:
        """Return the crop (TILE_PX,TILE_PX,3) u8 RGB with the outline of each estimate."""
        A_tile_from_image = self._tile_affine()
        size_hw = (TILE_PX, TILE_PX)
        tile = cv2.warpAffine(self.image_rgb, A_tile_from_image[:2], size_hw, flags=cv2.INTER_LINEAR)
        poses = [
            DrawnPose(mesh, T, CORRECT_RGB if correct else WRONG_RGB)
            for (mesh, T), correct in zip(self.posed, self.correct, strict=True)
        ]
        return draw_poses(tile, Pinhole(A_tile_from_image @ self.K), poses, axes=False)

    def _tile_affine(self) -> Array:
        """Return the affine (3,3) from image to tile pixels; the crop is moved into the image where it leaves it."""
        height, width = self.image_rgb.shape[:2]
        side = min(self.side_px, height, width)
        corner = np.clip((self.low + self.high) / 2 - side / 2, 0, np.array([width, height]) - side)
        scale = TILE_PX / side
        return np.array([[scale, 0, -scale * corner[0]], [0, scale, -scale * corner[1]], [0, 0, 1]])


def legend_strip(width: int) -> Array:
    """Return a strip (LEGEND_PX,width,3) u8 RGB with the meaning of the two colours."""
    strip = np.full((LEGEND_PX, width, 3), 255, np.uint8)
    x, middle = 0, LEGEND_PX // 2
    for text, colour in zip(LEGEND, (CORRECT_RGB, WRONG_RGB), strict=True):
        strip[middle - 2 : middle + 2, x : x + 40] = np.array(colour) * 3 // 4  # darker on white than on photographs
        cv2.putText(strip, text, (x + 52, middle + 6), *LEGEND_FONT, (0, 0, 0), 1, cv2.LINE_AA)
        x += 52 + cv2.getTextSize(text, *LEGEND_FONT, 1)[0][0] + 48
    return strip


def encode(picture_rgb: Array) -> bytes:
    """Return a PNG with a palette of `COLOURS` colours."""
    buffer = io.BytesIO()
    palette = Image.fromarray(picture_rgb).quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE)
    palette.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
