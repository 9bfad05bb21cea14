"""How fast template banks are made: 162 views of textured meshes of 50,000 and 500,000 faces, on two cores.

    python benchmarks/bench_render.py [--objects 6] [--output benchmarks/results/bench_render.json]

Prints a table and writes it as JSON with the machine, versions and commit. Every time is wall clock, from reading the
mesh file to the bank lying on the disk; rows named "command" include starting Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from run_info import describe_run, write_result

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.workers import run_jobs
from picopose_cli.templates.bank import read_bank, write_bank
from picopose_cli.templates.build import render_bank

CORES = 2
FACES = (50_000, 500_000)
LIMIT_S = {50_000: 4.0, 500_000: 13.0}
LIMIT_MB = 20.0
LEAST_SPEED_UP = 1.7


def write_textured_mesh(path: Path, faces: int) -> None:
    """Write a bumpy sphere of about 190 mm with texture coordinates, as a binary PLY with its picture beside it."""
    count = round(np.sqrt(faces / 2))
    v, u = np.meshgrid(np.linspace(0, 1, count + 1), np.linspace(0, 1, count + 1), indexing="ij")
    theta, phi = np.pi * v, 2 * np.pi * u
    radius = 50 * (1 + 0.15 * np.sin(5 * phi) * np.sin(theta) ** 2 + 0.1 * np.cos(7 * theta))
    xyz = radius[..., None] * np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    index = np.arange((count + 1) ** 2).reshape(count + 1, -1)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    triangles = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    vertices = np.zeros(index.size, [(name, "<f4") for name in ("x", "y", "z", "u", "v")])
    for name, values in zip("xyzuv", (*np.moveaxis(xyz, -1, 0), u, 1 - v), strict=True):
        vertices[name] = values.ravel()
    records = np.zeros(len(triangles), [("count", "u1"), ("index", "<i4", 3)])
    records["count"], records["index"] = 3, triangles
    header = f"ply\nformat binary_little_endian 1.0\ncomment TextureFile {path.stem}.png\nelement vertex {index.size}\n"
    header += "".join(f"property float {name}\n" for name in ("x", "y", "z", "texture_u", "texture_v"))
    header += f"element face {len(triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    path.write_bytes(header.encode() + vertices.tobytes() + records.tobytes())
    cv2.imwrite(str(path.with_suffix(".png")), photograph_like(2048))


def photograph_like(side: int) -> np.ndarray:
    """Noise with as much contrast at every scale, as photographs have, in colours that go together."""
    rng, image = np.random.default_rng(0), np.zeros((side, side, 3), np.float32)
    for octave in range(2, 10):
        grey, tint = rng.normal(size=(2**octave, 2**octave, 1)), rng.normal(size=(2**octave, 2**octave, 3))
        patch = (grey + 0.3 * tint).astype(np.float32)
        image += cv2.resize(patch, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 17 * image, 0, 255).astype(np.uint8)


def time_bank(mesh: Path, kind: str, threads: int) -> dict[str, Any]:
    """Seconds to read, render and write one bank in this process, its size, and seconds to read it again."""
    bank_path = mesh.with_suffix(".h5")
    started = time.perf_counter()
    write_bank(bank_path, render_bank(1, mesh, mesh_unit="mm", kind=kind, threads=threads))
    made = time.perf_counter()
    read_bank(bank_path)
    return {"s": made - started, "read_s": time.perf_counter() - made, "mb": bank_path.stat().st_size / 1e6}


def time_gl_bank(job: tuple[Path, str], _: int) -> dict[str, Any]:
    return time_bank(job[0], job[1], 1)


def time_command(data_dir: Path, objects: int, workers: int) -> float:
    """Seconds of `picopose render-templates` for some objects, start of Python included."""
    command = [sys.executable, "-m", "picopose_cli", "render-templates", "--renderer", "software", "--overwrite"]
    command += ["--dataset", "bench", "--data-dir", str(data_dir), "--workers", str(workers)]
    command += ["--object-ids", ",".join(map(str, range(1, objects + 1)))]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def bench_faces(folder: Path, faces: int, repeats: int) -> list[dict[str, Any]]:
    mesh = folder / f"mesh_{faces}.ply"
    write_textured_mesh(mesh, faces)
    best = min((time_bank(mesh, "software", CORES) for _ in range(repeats)), key=lambda row: row["s"])
    row = {"what": f"software, {faces} faces, {CORES} cores", **best, "limit_s": LIMIT_S[faces], "limit_mb": LIMIT_MB}
    return [row | {"kept": best["s"] <= LIMIT_S[faces] and best["mb"] <= LIMIT_MB}]


def bench_gl(folder: Path) -> list[dict[str, Any]]:
    mesh, rows = folder / f"mesh_{FACES[0]}.ply", []
    for kind in ("egl", "osmesa"):
        [(_, outcome)] = run_jobs(time_gl_bank, [(mesh, kind)], 1)
        failed = isinstance(outcome, PicoPoseError)
        rows.append({"what": f"{kind}, {FACES[0]} faces", **({"failed": str(outcome)} if failed else outcome)})
    return rows


def bench_workers(folder: Path, objects: int) -> list[dict[str, Any]]:
    models = folder / "bench/models"
    models.mkdir(parents=True)
    for obj_id in range(1, objects + 1):
        write_textured_mesh(models / f"obj_{obj_id:06d}.ply", FACES[0])
    alone = time_command(folder, 1, CORES)
    seconds = {workers: time_command(folder, objects, workers) for workers in (1, 2)}
    rows = [{"what": f"command, 1 object, --workers {CORES}", "s": alone}]
    rows += [
        {"what": f"command, {objects} objects, --workers {workers}", "s": s, "objects_per_minute": 60 * objects / s}
        for workers, s in seconds.items()
    ]
    ratio = seconds[1] / seconds[2]
    rows[-1] |= {"times_one_worker": ratio, "limit_times": LEAST_SPEED_UP, "kept": ratio >= LEAST_SPEED_UP}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=6, help="objects for the comparison of one and two workers")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "bench_render.json")
    arguments = parser.parse_args()
    run = describe_run()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [row for faces in FACES for row in bench_faces(folder, faces, arguments.repeats)]
        rows += bench_workers(folder, arguments.objects)
        rows += bench_gl(folder)
    for row in rows:
        numbers = {key: round(value, 2) if isinstance(value, float) else value for key, value in row.items()}
        print(f"{numbers.pop('what'):38s}", "  ".join(f"{key} {value}" for key, value in numbers.items()))
    write_result(arguments.output, {**run, "rows": rows})


if __name__ == "__main__":
    main()
