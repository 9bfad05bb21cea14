"""Accuracy and time of the crops of virtual cameras, on generated images of objects up to 55 degrees off the axis.

    python benchmarks/bench_cameras.py [--objects 8] [--images 50] [--weights FILE] [--work DIR]

For HOT3D's devices (real calibrations), --images images each: the fisheye's images, and the same scenes seen by a
pinhole of the same resolution that looks straight at each target. Then a wide pinhole's images with the default crops,
with plain ones and with those of virtual cameras alone. Localisation with rough masks and the default rules; finished
result files are kept.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from run_info import ROOT, describe_run, write_result

from picopose_cli.base.geometry import make_T, ray_rotation
from picopose_cli.base.options import InferOptions, RenderTemplatesOptions, ScoreOptions
from picopose_cli.bop.datasets import open_dataset
from picopose_cli.bop.detections import read_detections
from picopose_cli.bop.known_datasets import known_splits
from picopose_cli.bop.targets import read_targets
from picopose_cli.commands import infer, render_templates
from picopose_cli.pose import queries
from picopose_cli.pose.queries import crop_queries
from picopose_cli.runs.inputs import load_image, make_image_tasks
from picopose_cli.runs.scores import score_file
from picopose_cli.synthesis.bop_dataset import DETECTIONS
from picopose_cli.synthesis.bop_layouts import RootFiles, SceneFiles, SeenObjects, random_view, write_view
from picopose_cli.synthesis.bop_models import make_objects, textured_object, write_models
from picopose_cli.synthesis.objects import SyntheticObject
from picopose_cli.synthesis.sensors import Sensor, make_sensor, sensors_of_split
from picopose_cli.templates.perspective_crops import resolution_along

SEED = 31
TIMED_CROPS = 60
WIDE_SIDE_PX, WIDE_FOCAL_PX = 1408, 640.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--images", type=int, default=50, help="of each camera")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights/mini.safetensors")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "picopose-bench-cameras")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/bench_cameras.json")
    arguments = parser.parse_args()
    result = {**describe_run(), "objects": arguments.objects, "images": arguments.images, "seed": SEED}
    names = write_sets(arguments.work, arguments.objects, arguments.images)
    rows = {name: measure(arguments, name) for name in names}
    for method, from_deg in (("plain", 180.0), ("virtual", 0.0)):
        with virtual_crops_of_pinholes(from_deg):
            rows[f"wide, {method} crops"] = measure(arguments, "wide", method)
    for name, row in rows.items():
        print(f"{name:24} targets {row['targets']:4}  AR MSPD {row['ar_mspd']:.3f}  AR MSSD {row['ar_mssd']:.3f}")
    result["crop_ms"] = crop_ms(arguments.work, "aria")
    print(f"a crop at 1408x1408: {result['crop_ms']:.2f} ms of one core (median)")
    write_result(arguments.output, result | {"rows": rows})


def write_sets(work: Path, objects: int, images: int) -> list[str]:
    """Write the data sets that are missing and the template banks, which they share; return their names."""
    rng = np.random.default_rng(SEED)
    rows = {"aria": known_splits("hot3d")[0], "quest3": known_splits("hot3d")[1]}
    sensors = {name: sensors_of_split(row, rng, 1.0)[0] for name, row in rows.items()}
    sensors = {
        name: replace(sensor, entry={"cam_model": sensor.entry["cam_model"]}) for name, sensor in sensors.items()
    }
    sensors["wide"] = facing_pinhole(WIDE_FOCAL_PX, (WIDE_SIDE_PX, WIDE_SIDE_PX))
    names = ["aria", "aria-facing", "quest3", "quest3-facing", "wide"]
    items = write_models(work / "models", make_objects(textured_object, objects, SEED))
    for number, (name, sensor) in enumerate(sensors.items()):
        if not (work / name / DETECTIONS["rough"]).is_file():
            write_set(np.random.default_rng([SEED, number]), work / name, sensor, items, images)
            print(f"{name} written", flush=True)
    for name in names:
        if not (work / name / "models").exists():
            (work / name / "models").symlink_to(work / "models")
    render_templates.run(RenderTemplatesOptions("aria", work, templates=work / "templates", workers=1))
    return names


def write_set(
    rng: np.random.Generator, root: Path, sensor: Sensor, items: Mapping[int, SyntheticObject], images: int
) -> None:
    """Write a sensor's data set and, of a fisheye, that of pinholes that look at each of its targets."""
    facing_root, facing_id = root.with_name(f"{root.name}-facing"), 0
    content, facing_content, files, facing_files = RootFiles(), RootFiles(), SceneFiles(), SceneFiles()
    for im_id in range(images):
        seen, noise = random_view(rng, sensor, items), int(rng.integers(2**31))
        scene = root / "test/000000"
        found = write_view(np.random.default_rng(noise), sensor, scene, im_id, seen, files)
        content.add(np.random.default_rng(noise), 0, im_id, found)
        for obj_id, _ in found if root.name != "wide" else ():
            pinhole, turned = facing_view(sensor, seen, obj_id)
            scene = facing_root / "test/000000"
            of_image = write_view(np.random.default_rng(noise), pinhole, scene, facing_id, turned, facing_files)
            own = [one for one in of_image if one[0] == obj_id]
            facing_content.add(np.random.default_rng(noise), 0, facing_id, own)
            facing_id += 1
    files.write(root / "test/000000", "")
    content.write(root)
    if facing_id:
        facing_files.write(facing_root / "test/000000", "")
        facing_content.write(facing_root)


def facing_view(sensor: Sensor, seen: SeenObjects, obj_id: int) -> tuple[Sensor, SeenObjects]:
    """Return the pinhole that looks at an object, with the sensor's resolution there, and the scene in its frame."""
    centre = seen.placed[seen.obj_ids.index(obj_id)].T_cam_from_obj[:3, 3]
    R = ray_rotation(centre[None])[0]
    turned = seen.seen_from(make_T(R.T, np.zeros(3)))
    in_front = [i for i, one in enumerate(turned.placed) if one.T_cam_from_obj[2, 3] > one.item.diameter_m]
    light = replace(turned.light, direction_cam=R.T @ turned.light.direction_cam)
    obj_ids, placed = (tuple(values[i] for i in in_front) for values in (turned.obj_ids, turned.placed))
    pinhole = facing_pinhole(resolution_along(sensor.camera, R), sensor.size_hw, sensor.image_folder)
    return pinhole, replace(turned, obj_ids=obj_ids, placed=placed, light=light)


def facing_pinhole(focal_px: float, size_hw: tuple[int, int], image_folder: str = "rgb") -> Sensor:
    K = [focal_px, 0, size_hw[1] / 2, 0, focal_px, size_hw[0] / 2, 0, 0, 1]
    return make_sensor(image_folder, ".jpg", "", size_hw, {"cam_K": K, "depth_scale": 1.0}, np.eye(4))


def measure(arguments: argparse.Namespace, name: str, method: str = "default") -> dict[str, Any]:
    """Estimate a data set with rough masks, unless its result file is there, and return its scores."""
    work = arguments.work
    output = work / f"{method}_{name.replace('-', '')}-test.csv"
    if not output.is_file():
        detections = str(work / name / DETECTIONS["rough"])
        options = InferOptions(
            name, work, work / "templates", detections, arguments.weights, output=output, device="cpu", restart=True
        )
        infer.run(options)
    scores = score_file(output, ScoreOptions((output,), work, dataset=name, workers=1)).scores
    total = scores.total
    return {"targets": total.targets, "ar_mspd": total.average_recall("mspd"), "ar_mssd": total.average_recall("mssd")}


@contextmanager
def virtual_crops_of_pinholes(from_deg: float) -> Iterator[None]:
    before = queries.OFF_AXIS_DEG
    queries.OFF_AXIS_DEG = from_deg
    try:
        yield
    finally:
        queries.OFF_AXIS_DEG = before


def crop_ms(work: Path, name: str) -> float:
    """Return the median CPU time of a crop in milliseconds."""
    dataset = open_dataset(name, work)
    detections = read_detections(work / name / DETECTIONS["rough"]).by_image
    times = []
    for task in make_image_tasks(dataset, read_targets(dataset), detections):
        image = load_image(task)
        for detection, mask in zip(task.detections, image.masks, strict=True):
            one, loaded = replace(task, detections=(detection,)), replace(image, masks=(mask,))
            started = time.thread_time()
            crop_queries(one, loaded, {detection.obj_id})
            times.append(time.thread_time() - started)
    return float(np.median(times[:TIMED_CROPS])) * 1000


if __name__ == "__main__":
    main()
