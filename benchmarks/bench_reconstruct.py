"""Objects without a CAD model: reconstructed surfaces against true ones, and poses with either.

    python benchmarks/bench_reconstruct.py [--objects 10] [--images 20] [--real DIR] [--work DIR]

Generated objects, of each 80 and 20 reference images of 640x480 with rough masks and poses that err by 1 px and 0.3
degrees. Of the reconstructions: the distance to the true surface in percent of the diameter. Then AR with the default
rules on generated images with rough masks, scored with the true models, for the true mesh, the reconstructed ones,
those with photographs as templates, and those from exact depth. With --real, the folder of a data set of one object in
a video (visp_cube): every second frame onboards, the others are estimated. What is finished is kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from run_info import describe_run, write_result
from scipy.spatial import cKDTree

from picopose_cli.base.guide_options import ReconstructOptions
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.base.types import Array, Mesh
from picopose_cli.commands import infer, reconstruct, render_templates
from picopose_cli.reconstruction.reading import find_photographs, load_views
from picopose_cli.reconstruction.surface import Surface
from picopose_cli.reconstruction.visibility import as_mesh, sight
from picopose_cli.rendering.mesh_size import exact_diameter_m
from picopose_cli.rendering.meshes import read_mesh, read_shape
from picopose_cli.runs.scores import score_file
from picopose_cli.synthesis.bop_dataset import DETECTIONS, write_procedural_dataset
from picopose_cli.synthesis.objects import SyntheticObject
from picopose_cli.synthesis.reference_images import USUAL_FAULTS, reference_images, write_reference_scene

SEED = 83
COUNTS = (80, 20)
SAMPLES = 20_000
RECONSTRUCTIONS = {"images80": (80, "off"), "images20": (20, "off"), "depth80": (80, "on")}
"""Number of reference images, and whether their depth is used."""
VARIANTS: dict[str, tuple[str, int | None]] = {
    "true mesh": ("true", None),
    "80 images": ("images80", None),
    "80 images, photographs as templates": ("images80", 80),
    "80 images with depth": ("depth80", None),
    "20 images": ("images20", None),
}
"""The models of each line, and the number of reference images that are templates, None where none are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--real", type=Path, help="folder of a data set of one object in a video")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-bench-reconstruct")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/bench_reconstruct.json")
    arguments = parser.parse_args()
    work = arguments.work
    result = {**describe_run(), "objects": arguments.objects, "images": arguments.images, "seed": arguments.seed}
    write_data(work, arguments.objects, arguments.images, arguments.seed)
    result["surfaces"] = {}
    for name in RECONSTRUCTIONS:
        result["surfaces"][name] = reconstruct_objects(work, name, arguments.objects)
        write_result(arguments.output, result)
    result["poses"] = {}
    for line, (models, photographs) in VARIANTS.items():
        result["poses"][line] = estimate(work, models, photographs)
        print(line, result["poses"][line], flush=True)
        write_result(arguments.output, result)
    if arguments.real is not None:
        result["real"] = measure_real(work / "real", arguments.real)
        write_result(arguments.output, result)


def write_data(work: Path, objects: int, images: int, seed: int) -> None:
    """Write the data set `true`, the reference images of its objects, and data sets of the same images."""
    if not (work / "true" / DETECTIONS["rough"]).is_file():
        write_procedural_dataset(work, "true", objects=objects, images=images, seed=seed)
    for count in COUNTS:
        for obj_id in range(1, objects + 1):
            folder = work / f"reference{count}" / f"obj_{obj_id:06d}"
            if not (folder / "scene_gt.json").is_file():
                item = SyntheticObject("", read_mesh(work / f"true/models/obj_{obj_id:06d}.ply"))
                shots = reference_images(item, count, 1000 * seed + obj_id, USUAL_FAULTS)
                write_reference_scene(folder, obj_id, shots, depth=True)
    for name in RECONSTRUCTIONS:
        link_images(work / "true", work / name)


def link_images(source: Path, target: Path) -> None:
    """Make a data set of the images, targets and detections of another one."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name not in ("models", "shown", "templates") and not (target / path.name).exists():
            (target / path.name).symlink_to(path.resolve())


def reconstruct_objects(work: Path, name: str, objects: int) -> dict[str, Any]:
    """Reconstruct the objects that are missing; return the distances to the true surfaces in % of the diameter."""
    count, depth = RECONSTRUCTIONS[name]
    rows = {}
    for obj_id in range(1, objects + 1):
        folder, model = work / f"reference{count}/obj_{obj_id:06d}", work / name / f"models/obj_{obj_id:06d}.ply"
        measured = model.with_suffix(".measured.json")
        if not measured.is_file():
            started = time.process_time()
            done = reconstruct.run(ReconstructOptions(folder, obj_id, model, depth=depth))
            row = surface_errors(work / f"true/models/obj_{obj_id:06d}.ply", model, folder)
            row |= {"cpu_s": time.process_time() - started, "left_out": len(done.made.left_out)}
            row["iou"] = float(np.mean([one.iou for one in done.qualities]))
            row["colour_error"] = float(np.mean([one.colour_error for one in done.qualities]))
            measured.write_text(json.dumps(row))
        rows[str(obj_id)] = json.loads(measured.read_text())
        print(name, obj_id, rows[str(obj_id)], flush=True)
    return {"mean": {key: float(np.mean([row[key] for row in rows.values()])) for key in rows["1"]}, "objects": rows}


def surface_errors(true_path: Path, model: Path, folder: Path) -> dict[str, float]:
    """Return mean distances in % of the diameter: from the model to the true surface, and from what is seen of that."""
    true, made = read_shape(true_path), read_shape(model)
    diameter_m = exact_diameter_m(true)
    of_made, of_true = surface_points(made), surface_points(true)
    seen = of_true[0][visible(true, of_true, folder)]
    to_true = cKDTree(of_true[0]).query(of_made[0])[0]
    to_made = cKDTree(of_made[0]).query(seen)[0]
    return {
        "to_true_percent": float(100 * to_true.mean() / diameter_m),
        "to_true_p90_percent": float(100 * np.quantile(to_true, 0.9) / diameter_m),
        "from_visible_percent": float(100 * to_made.mean() / diameter_m),
    }


def surface_points(mesh: Mesh) -> tuple[Array, Array]:
    """Return points (N,3) evenly spread over a surface, and the faces (N,) that they are on."""
    rng = np.random.default_rng(0)
    a, b, c = (mesh.vertices_m[mesh.faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    face = rng.choice(len(area), SAMPLES, p=area / area.sum())
    u = rng.random((SAMPLES, 2))
    u = np.where(u.sum(axis=1, keepdims=True) > 1, 1 - u, u)
    return a[face] + u[:, :1] * (b[face] - a[face]) + u[:, 1:] * (c[face] - a[face]), face


def visible(mesh: Mesh, samples: tuple[Array, Array], folder: Path) -> Array:
    """Return which points (N,) bool of a mesh a reference image sees."""
    points, face = samples
    a, b, c = (mesh.vertices_m[mesh.faces[face, i]] for i in range(3))
    surface = PointSurface(points, np.cross(b - a, c - a))
    views, _ = load_views(find_photographs(folder, None, "auto"), lambda _: None)
    return np.any([sight(view, surface, as_mesh(Surface(mesh.vertices_m, mesh.faces))).seen for view in views], axis=0)


class PointSurface(Surface):
    """Points with the normals of the faces that they are on, for `sight`."""

    def __init__(self, points: Array, normals: Array) -> None:
        super().__init__(points, np.zeros((0, 3), np.int32))
        self.__dict__["normals"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)


def estimate(work: Path, models: str, photographs: int | None) -> dict[str, Any]:
    """Estimate the data set with some models, unless that is finished; return its scores by the true models."""
    reference = None if photographs is None else work / f"reference{photographs}"
    kind = "templates" if photographs is None else "photographs"
    output, templates = work / f"{models}{kind}_true-test.csv", work / models / kind
    if not output.is_file():
        render_templates.run(
            RenderTemplatesOptions(models, work, templates, from_reference=reference, renderer="software", workers=1)
        )
        infer.run(
            InferOptions(
                models, work, templates, str(work / "true" / DETECTIONS["rough"]), output=output, device="cpu",
                workers=1, cache=False,
            )
        )  # fmt: skip
    scores = score_file(output, ScoreOptions((output,), work, dataset="true", workers=1)).scores
    total = scores.total
    errors = {f"ar_{name}": total.average_recall(name) for name in ("vsd", "mssd", "mspd")}
    return {"targets": total.targets, "ar": float(np.mean(list(errors.values())))} | errors


def measure_real(work: Path, source: Path) -> dict[str, Any]:
    """Return the scores of every second image of a video with the CAD model and with one made of the others."""
    scene = source / "test/000000"
    poses = json.loads((scene / "scene_gt.json").read_text())
    names = sorted(poses, key=int)
    onboarding = work / "onboarding"
    onboarding.mkdir(parents=True, exist_ok=True)
    for path in scene.iterdir():
        if path.name != "scene_gt.json" and not (onboarding / path.name).exists():
            (onboarding / path.name).symlink_to(path)
    (onboarding / "scene_gt.json").write_text(json.dumps({name: poses[name] for name in names[::2]}))
    made = work / "made/models/obj_000001.ply"
    if not made.is_file():
        reconstruct.run(ReconstructOptions(onboarding, 1, made))
    targets = work / "targets.json"
    targets.write_text(
        json.dumps([{"scene_id": 0, "im_id": int(name), "obj_id": 1, "inst_count": 1} for name in names[1::2]])
    )
    link_images(source, work / "made")
    link_images(source, work / "cad")
    if not (work / "cad/models").exists():
        (work / "cad/models").symlink_to(source / "models")
    lines = {"CAD model": ("cad", None), "frames": ("made", None), "frames as templates": ("made", onboarding)}
    return {"targets": len(names[1::2])} | {
        line: estimate_real(work, models, reference, targets) for line, (models, reference) in lines.items()
    }


def estimate_real(work: Path, models: str, reference: Path | None, targets: Path) -> dict[str, float]:
    kind = "templates" if reference is None else "photographs"
    output, templates = work / f"{models}{kind}_cad-test.csv", work / models / kind
    if not output.is_file():
        render_templates.run(
            RenderTemplatesOptions(models, work, templates, from_reference=reference, renderer="software", workers=1)
        )
        options = InferOptions(models, work, templates, targets=str(targets), output=output, device="cpu", workers=1)
        infer.run(options)
    total = score_file(output, ScoreOptions((output,), work, "cad", targets=str(targets), workers=1)).scores.total
    return {f"ar_{name}": total.average_recall(name) for name in ("mssd", "mspd")}


if __name__ == "__main__":
    main()
