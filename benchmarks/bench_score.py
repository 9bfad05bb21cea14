"""Time and memory of `picopose score` (BOP19: VSD, MSSD, MSPD), as a process, start-up included.

    python benchmarks/bench_score.py [--data DIR] [--workers 1 2] [--images 900] [--faces 4000]

Two inputs: a small data set with a result file (`DIR/ycbv` and `DIR/results/*.csv`; left out without --data), and a
generated data set of the size of YCB-V: 900 images of 640 x 480, 21 objects, of which 5 have a continuous and 4 a
discrete symmetry, and 4,914 estimates, all of which are scored. Writes benchmarks/results/bench_score.json and prints
the table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.geometry import make_T
from picopose_cli.base.types import Mesh, PoseEstimate
from picopose_cli.bop.results import write_results
from picopose_cli.rendering.software import render_depth

OUTPUT = ROOT / "benchmarks/results/bench_score.json"
K = np.array([[1066.778, 0, 312.9869], [0, 1067.487, 241.3109], [0, 0, 1]])
SIZE_HW = (480, 640)
OBJECTS = 21
ROWS = 4914
CONTINUOUS, DISCRETE = {1, 4, 6, 13, 18}, {2, 3, 16, 21}
TOOLKIT_S = {"fine": 55.0}
"""Seconds that the BOP toolkit took for the same file on two cores with one worker."""


def make_mesh(obj_id: int, faces: int) -> Mesh:
    """Return an ellipsoid of about `faces` triangles: of revolution for CONTINUOUS ids, with a bump if asymmetric."""
    rng = np.random.default_rng(obj_id)
    rings = max(4, round((faces / 4) ** 0.5))
    theta, phi = np.meshgrid(
        np.linspace(0, np.pi, rings + 1), np.linspace(0, 2 * np.pi, 2 * rings, endpoint=False), indexing="ij"
    )
    unit = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1).reshape(-1, 3)
    radii_m = rng.uniform(0.035, 0.09, 3)
    if obj_id in CONTINUOUS:
        radii_m[1] = radii_m[0]
    vertices = unit * radii_m
    if obj_id not in CONTINUOUS | DISCRETE:
        direction = unit[rng.integers(len(unit))]
        vertices *= 1 + 0.4 * np.exp(-8 * (1 - unit @ direction))[:, None]
    ring, segment = (grid.ravel() for grid in np.meshgrid(np.arange(rings), np.arange(2 * rings), indexing="ij"))
    a, b = ring * 2 * rings + segment, ring * 2 * rings + (segment + 1) % (2 * rings)
    below_a, below_b = a + 2 * rings, b + 2 * rings
    triangles = np.concatenate([np.stack([a, below_a, b], 1), np.stack([b, below_a, below_b], 1)])
    return Mesh(vertices, triangles.astype(np.int32))


def write_ply(path: Path, mesh: Mesh) -> None:
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(mesh.vertices_m)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(mesh.faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("indices", "<i4", 3)])
    faces["count"], faces["indices"] = 3, mesh.faces
    path.write_bytes(header.encode() + (mesh.vertices_m * 1000).astype("<f4").tobytes() + faces.tobytes())


def write_models(folder: Path, meshes: dict[int, Mesh]) -> None:
    folder.mkdir(parents=True)
    infos: dict[str, dict[str, object]] = {}
    half_turns = [np.diag(signs).ravel().tolist() for signs in ([-1, -1, 1, 1], [1, -1, -1, 1], [-1, 1, -1, 1])]
    for obj_id, mesh in meshes.items():
        write_ply(folder / f"obj_{obj_id:06d}.ply", mesh)
        infos[str(obj_id)] = {"diameter": float(np.ptp(mesh.vertices_m, axis=0).max() * 1000)}
        if obj_id in CONTINUOUS:
            infos[str(obj_id)]["symmetries_continuous"] = [{"axis": [0, 0, 1], "offset": [0, 0, 0]}]
        if obj_id in DISCRETE:
            infos[str(obj_id)]["symmetries_discrete"] = half_turns
    (folder / "models_info.json").write_text(json.dumps(infos))


def random_pose(rng: np.random.Generator) -> np.ndarray:
    Q, R = np.linalg.qr(rng.standard_normal((3, 3)))
    Q = Q * np.sign(np.diag(R))
    return make_T(
        Q * np.linalg.det(Q), np.array([rng.uniform(-0.2, 0.2), rng.uniform(-0.13, 0.13), rng.uniform(0.8, 1.1)])
    )


def write_depth(path: Path, placed: list[tuple[int, np.ndarray]], meshes: dict[int, Mesh], seed: int) -> None:
    depth_m = np.full(SIZE_HW, 1.4, np.float32)
    for obj_id, T in placed:
        rendered = render_depth(meshes[obj_id], K, T, (0, 0, SIZE_HW[1], SIZE_HW[0]))
        depth_m = np.where((rendered > 0) & (rendered < depth_m), rendered, depth_m)
    rng = np.random.default_rng(seed)
    depth_m *= rng.normal(1, 0.002, SIZE_HW).astype(np.float32)
    depth_m[cv2.resize(rng.random((30, 40)), SIZE_HW[::-1]) < 0.15] = 0
    cv2.imwrite(str(path), np.rint(depth_m * 10000).astype(np.uint16))


def noisy(T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the pose rotated by about 5 degrees and moved by about 8 mm."""
    axis = rng.normal(0, np.radians(5) / 3**0.5, 3)
    return T @ make_T(cv2.Rodrigues(axis)[0], rng.normal(0, 0.008 / 3**0.5, 3))


def write_dataset(data_dir: Path, images: int, faces: int) -> Path:
    """Write a generated data set `ycbv` and its result file; return the path of the result file."""
    rng = np.random.default_rng(0)
    meshes = {obj_id: make_mesh(obj_id, faces) for obj_id in range(1, OBJECTS + 1)}
    root = data_dir / "ycbv"
    write_models(root / "models_eval", meshes)
    six_objects = round((ROWS / 900 - 5) * images)  # number of images with six objects; the others have five
    targets, estimates, depths = [], [], []
    for scene in range(0, images, 75):
        scene_id, folder = 48 + scene // 75, root / f"test/{48 + scene // 75:06d}"
        (folder / "depth").mkdir(parents=True)
        cameras, gt, infos = {}, {}, {}
        for index in range(scene, min(scene + 75, images)):
            im_id = index - scene + 1
            obj_ids = sorted(rng.choice(OBJECTS, 6 if index < six_objects else 5, replace=False) + 1)
            placed = [(int(obj_id), random_pose(rng)) for obj_id in obj_ids]
            depths.append((folder / f"depth/{im_id:06d}.png", placed, meshes, index))
            cameras[im_id] = {"cam_K": K.ravel().tolist(), "depth_scale": 0.1}
            gt[im_id] = [
                {"obj_id": o, "cam_R_m2c": T[:3, :3].ravel().tolist(), "cam_t_m2c": (T[:3, 3] * 1000).tolist()}
                for o, T in placed
            ]
            infos[im_id] = [{"visib_fract": 1.0} for _ in placed]
            for obj_id, T in placed:
                targets.append({"scene_id": scene_id, "im_id": im_id, "obj_id": obj_id, "inst_count": 1})
                estimates.append(PoseEstimate(scene_id, im_id, obj_id, float(rng.random()), noisy(T, rng), 0.5))
        for name, content in (("camera", cameras), ("gt", gt), ("gt_info", infos)):
            (folder / f"scene_{name}.json").write_text(json.dumps(content))
    (root / "test_targets_bop19.json").write_text(json.dumps(targets))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write_depth, *zip(*depths, strict=True), chunksize=20))
    path = data_dir / "bench_ycbv-test.csv"
    write_results(path, estimates)
    return path


def memory_of_tree_mib(pid: int) -> float:
    """Return the memory of a process and its descendants, shared pages counted once (0 on systems other than Linux)."""
    total, pending = 0.0, [pid]
    while pending:
        folder = Path(f"/proc/{pending.pop()}")
        try:
            pending += [
                int(child) for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()
            ]
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
        except (OSError, ProcessLookupError):
            continue  # the process has ended meanwhile
    return total


def _has_ended(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def time_score(path: Path, data_dir: Path, workers: int, repeats: int) -> dict[str, object]:
    """Return median wall time and peak memory of `picopose score` in a process of its own."""
    command = [sys.executable, "-m", "picopose_cli", "score", str(path), "--data-dir", str(data_dir)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "scores.json"
        command += ["--workers", str(workers), "--output", str(output)]
        times_s, cpu_s, peak_mib = [], [], 0.0
        for _ in range(repeats):
            start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
            while not _has_ended(process, 0.3):
                peak_mib = max(peak_mib, memory_of_tree_mib(process.pid))
            times_s.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu_s.append(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        scores = json.loads(output.read_text())
    return {
        "workers": workers,
        "wall_s": round(statistics.median(times_s), 2),
        "cpu_s": round(statistics.median(cpu_s), 2),
        "runs_s": [round(value, 2) for value in times_s],
        "peak_mib": round(peak_mib),
        "AR": scores["bop19_average_recall"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with ycbv/ and results/*.csv")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--faces", type=int, default=4000, help="triangles of each generated mesh")
    arguments = parser.parse_args()
    run = describe_run()
    rows = []
    for path in sorted((arguments.data / "results").glob("fine*.csv")) if arguments.data else []:
        for workers in arguments.workers:
            row = time_score(path, arguments.data, workers, repeats=5)
            rows.append({"input": path.stem, "toolkit_s": TOOLKIT_S["fine"], **row})
    with tempfile.TemporaryDirectory(prefix="bench-score-") as folder:
        path = write_dataset(Path(folder), arguments.images, arguments.faces)
        name = f"{arguments.images} generated images, meshes of {arguments.faces} faces"
        rows += [{"input": name, **time_score(path, Path(folder), count, repeats=1)} for count in arguments.workers]
    write_result(OUTPUT, {**run, "rows": rows})
    print(f"{'input':56} {'workers':>7} {'seconds':>8} {'cpu s':>7} {'MiB':>6} {'AR':>7}")
    for row in rows:
        numbers = f"{row['workers']:7} {row['wall_s']:8.2f} {row['cpu_s']:7.2f} {row['peak_mib']:6} {row['AR']:7.4f}"
        print(f"{row['input']:56} {numbers}")


if __name__ == "__main__":
    main()
