"""`picopose estimate`: the poses of objects in single images, without a BOP folder."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.environment import available_cores
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.guide_options import EstimateOptions
from picopose_cli.base.types import Mesh
from picopose_cli.bop.images import write_png
from picopose_cli.network.devices import limit_threads
from picopose_cli.pictures.overlays import OBJECT_COLOURS_RGB, DrawnPose, draw_poses
from picopose_cli.pose.estimator import PoseEstimator
from picopose_cli.rendering.meshes import read_mesh
from picopose_cli.runs.image_inputs import ImageInputs, image_warnings, open_image, read_image_inputs, symmetries_of
from picopose_cli.runs.pose_files import EstimateReport, pose_text, write_poses
from picopose_cli.runs.progress import add_bar, progress_bar

_VIEWS = 162


def run(options: EstimateOptions) -> EstimateReport:
    """Estimate the poses of one or several objects in images; see `picopose estimate --help`.

    Raises PicoPoseError when nothing can be done: image, meshes, masks, camera, weights or output unusable.
    """
    console, report, started = Console(markup=False, highlight=False, soft_wrap=True), EstimateReport(), time.time()
    inputs = read_image_inputs(options)
    for warning in image_warnings(inputs):
        console.print(f"warning: {warning}")
    meshes = [read_mesh(one.mesh, one.unit) for one in inputs.objects]
    limit_threads(available_cores())
    estimator = PoseEstimator(options.weights, device=options.device)
    with progress_bar(console) as progress:
        ids = _add_objects(estimator, inputs, progress)
        console.print(f"templates are ready after {time.time() - started:.1f} s")
        bar = add_bar(progress, "images", len(inputs.images), "images")
        for image in inputs.images:
            try:
                lines = _estimate(image, inputs, meshes, estimator, ids)
                report.written.append(options.output / f"{image.stem}.json")
            except PicoPoseError as error:
                if len(inputs.images) == 1:
                    raise
                lines = [f"failed: {error}"]
                report.failed[str(image)] = str(error)
            for line in lines:
                console.print(f"{image.name}: {line}")
            progress.advance(bar)
    if not report.written:
        first = next(iter(report.failed.values()))
        raise PicoPoseError(f"no image can be used ({first})", where=options.image)
    console.print(f"{len(report.written)} of {len(inputs.images)} images in {time.time() - started:.1f} s")
    console.print(f"poses (NAME.json) and pictures (NAME_overlay.png): {options.output}")
    return report


def _add_objects(estimator: PoseEstimator, inputs: ImageInputs, progress: Progress) -> list[int]:
    """Add each mesh once; return the id of each wanted object."""
    ids: dict[tuple[Path, str], int] = {}
    for one in inputs.objects:
        key = one.mesh, one.unit
        if key not in ids:
            bar = add_bar(progress, one.name, _VIEWS, "views")
            advance = partial(progress.advance, bar)
            ids[key] = estimator.add_mesh(
                *key, symmetries_of(one.mesh), cache_dir=inputs.options.cache, on_progress=advance
            )
            progress.remove_task(bar)
    return [ids[one.mesh, one.unit] for one in inputs.objects]


def _estimate(
    image: Path, inputs: ImageInputs, meshes: list[Mesh], estimator: PoseEstimator, ids: list[int]
) -> list[str]:
    """Estimate an image, write its poses and its picture, and return a line for each pose."""
    opened, output = open_image(inputs, image), inputs.options.output
    wanted = list(zip(ids, opened.areas, strict=True))
    poses = estimator.estimate(opened.image_rgb, opened.K, wanted, depth_m=opened.depth_m)
    drawn = [
        DrawnPose(
            mesh, pose.T_cam_from_obj, OBJECT_COLOURS_RGB[index % len(OBJECT_COLOURS_RGB)],
            f"{one.name}: {pose.confidence:.2f}",
        )
        for index, (one, mesh, pose) in enumerate(zip(inputs.objects, meshes, poses, strict=True))
    ]  # fmt: skip
    write_png(output / f"{image.stem}_overlay.png", draw_poses(opened.image_rgb, Pinhole(opened.K), drawn))
    modality = "RGB" if opened.depth_m is None else "RGB-D"
    write_poses(output / f"{image.stem}.json", image, opened.K, inputs.objects, poses, modality)
    return [pose_text(one, pose) for one, pose in zip(inputs.objects, poses, strict=True)]
