"""The options of the commands for single images, for getting started and for looking at results; see `base.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_fields import REQUIRED, check_ranges, option, require
from picopose_cli.base.option_texts import (
    DATA_DIR_DEFAULT,
    DATA_DIR_HELP,
    DATASET_HELP,
    DEPTH_HELP,
    DEPTHS,
    ONE_DEVICE_HELP,
    PROCESSES_DEFAULT,
    SPLIT_DEFAULT,
    SPLIT_HELP,
    TARGETS_DEFAULT,
    TARGETS_HELP,
    TARGETS_VALUE,
    WEIGHTS_DEFAULT,
    WEIGHTS_HELP,
)
from picopose_cli.base.options import DEFAULT_PROCESSES, MESH_UNITS

DEPTH_USES = ("auto", "on", "off")
MASK_SOURCES = ("auto", "files", "alpha")
DEFAULT_RESOLUTION = 80
"""Cells of a reconstruction's grid: about four pixels of a photograph each, its colours are finer."""


@dataclass(frozen=True)
class ReconstructOptions:
    """Options of `picopose reconstruct`."""

    images: Path = option(
        REQUIRED,
        "Photographs: a folder with cameras.json and masks/, a BOP scene, or a folder of obj_000001_up and _down.",
        value="DIR",
    )
    object_id: int | None = option(
        None, "Id of the object.", default_text="the only one that a BOP folder shows, else 1", minimum=0
    )
    output: Path | None = option(
        None, "Mesh to write, a PLY in millimetres.", value="FILE", default_text="models/obj_000001.ply"
    )
    masks: str = option(
        "auto", "Masks of a folder with cameras.json; auto: masks/ if there, else alpha.", choices=MASK_SOURCES
    )
    depth: str = option(
        "auto", "Use the depth images beside the photographs; auto: where there are any.", choices=DEPTH_USES
    )
    resolution: int = option(
        DEFAULT_RESOLUTION, "Cells of the grid along the object's longest side.", minimum=16, below=257
    )

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class EstimateOptions:
    """Options of `picopose estimate`."""

    image: Path = option(REQUIRED, "Image, or a folder of images.", argument=True)
    camera: str = option(
        REQUIRED,
        "Camera in pixels, or a file with it: JSON with fx, fy, cx, cy or cam_K, BOP's scene_camera.json, or a text of "
        "4 or 9 numbers.",
        value="FX,FY,CX,CY|FILE",
    )
    mesh: Path | None = option(None, "Mesh of the object: .ply, .obj or .glb.", value="FILE")
    mask: Path | None = option(
        None, "Mask image of the object, or a folder with a mask named like each image.", value="FILE|DIR"
    )
    depth: Path | None = option(
        None,
        "Depth image registered to the image, or a folder with one named like each image, such as the depth/ beside "
        "rgb/: poses are finished on it.",
        value="FILE|DIR",
        default_text="none: poses by RGB alone",
    )
    depth_scale: float | None = option(
        None,
        "Millimetres of one unit of the depth image.",
        default_text="the camera file's depth_scale, or 1",
        positive=True,
    )
    box: tuple[float, ...] = option(
        (), "Box of the object in pixels, in place of a mask.", value="X,Y,W,H", default_text="none"
    )
    objects: Path | None = option(None, "JSON list of several objects, each with mesh, and mask or box.", value="FILE")
    mesh_unit: str = option("mm", "Unit of length of the meshes.", choices=MESH_UNITS)
    output: Path = option(Path("picopose-poses"), "Folder of the poses (JSON) and pictures.", value="DIR")
    weights: Path | None = option(None, WEIGHTS_HELP, value="FILE", default_text=WEIGHTS_DEFAULT)
    device: str = option("auto", ONE_DEVICE_HELP, value="DEVICE")
    cache: Path | None = option(
        None,
        "Folder of the templates of each mesh, made once.",
        value="DIR",
        default_text="PICOPOSE_CACHE, else ~/.cache/picopose",
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        useful = self.depth is not None or self.depth_scale is None
        require(useful, "--depth-scale is given without depth", "pass --depth FILE")
        if self.objects is not None:
            alone = self.mesh is None and self.mask is None and not self.box
            require(alone, "--objects has the meshes, masks and boxes", "drop --mesh, --mask and --box")
            return
        require(self.mesh is not None, "no mesh is given", "pass --mesh FILE, or several with --objects FILE")
        areas = (self.mask is not None) + bool(self.box)
        require(areas == 1, f"{areas} of --mask and --box are given", "pass one of them: it says where the object is")
        if self.box and len(self.box) != 4:
            raise PicoPoseError(f"--box has {len(self.box)} numbers, needs 4: x,y,width,height")


@dataclass(frozen=True)
class ReportOptions:
    """Options of `picopose report`."""

    results: tuple[Path, ...] = option(REQUIRED, "Result files of one data set; two are compared.", argument=True)
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text="that of the run, or BOP_PATH")
    dataset: str | None = option(None, DATASET_HELP, value="NAME|DIR", default_text="that of the run")
    split: str | None = option(None, SPLIT_HELP, value="NAME", default_text="that of the run")
    targets: str | None = option(None, TARGETS_HELP, value=TARGETS_VALUE, default_text="the kind of the run, or bop19")
    mesh_unit: str = option("mm", "Unit of length of the meshes.", choices=MESH_UNITS)
    output: Path = option(Path("report.html"), "Page to write.", value="FILE")
    workers: int = option(
        DEFAULT_PROCESSES, "Processes that compute pose errors.", default_text=PROCESSES_DEFAULT, minimum=1
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        require(len(self.results) > 0, "no result file is given", "name at least one")
        require(len(set(self.results)) == len(self.results), "a result file is named twice", "name each once")


@dataclass(frozen=True)
class DoctorOptions:
    """Options of `picopose doctor`."""

    dataset: str | None = option(
        None, "BOP data set to look at: its name, or the path of its folder.", argument=True, default_text="none"
    )
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text=DATA_DIR_DEFAULT)
    split: str | None = option(None, SPLIT_HELP, value="NAME", default_text=SPLIT_DEFAULT)
    detections: Path | None = option(
        None, "Detections to look at.", value="PATH", default_text="those that infer would take"
    )
    weights: Path | None = option(None, WEIGHTS_HELP, value="FILE", default_text=WEIGHTS_DEFAULT)
    json: bool = option(False, "Print the lines as JSON.")

    def __post_init__(self) -> None:
        check_ranges(self)


DOWNLOAD_PARTS = ("base", "models", "test", "detections", "onboarding")
WEIGHTS_NAME = "weights"
"""In place of a data set: the network that the PicoPose authors released."""


@dataclass(frozen=True)
class DownloadOptions:
    """Options of `picopose download`."""

    names: tuple[str, ...] = option(
        REQUIRED, "BOP data sets, for example ycbv, or weights: the released network.", argument=True
    )
    what: tuple[str, ...] = option(
        DOWNLOAD_PARTS[:4],
        "Parts of the data sets, as a list.",
        default_text=",".join(DOWNLOAD_PARTS[:4]),
        choices=DOWNLOAD_PARTS,
    )
    data_dir: Path | None = option(
        None, "Folder of the data sets; that of the weights.", value="DIR", default_text=DATA_DIR_DEFAULT
    )
    dry_run: bool = option(False, "List the files and their sizes, and download nothing.")

    def __post_init__(self) -> None:
        check_ranges(self)
        require(len(self.names) > 0, "nothing is named", "name data sets, or weights")
        require(len(self.what) > 0, "--what names no part", f"choose from {', '.join(DOWNLOAD_PARTS)}")
        for name in self.names:
            plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
            require(plain, f"{name!r} is not the name of a data set", "use names such as ycbv")


@dataclass(frozen=True)
class RunOptions:
    """Options of `picopose run`."""

    dataset: str = option(REQUIRED, "BOP data set: its name, or the path of its folder.", argument=True)
    data_dir: Path | None = option(None, DATA_DIR_HELP, value="DIR", default_text=DATA_DIR_DEFAULT)
    detections: str | None = option(
        None,
        "Detections: a JSON file, a folder of mask images, or gt for ground-truth masks.",
        value="PATH",
        default_text="those that infer would take",
    )
    weights: Path | None = option(None, WEIGHTS_HELP, value="FILE", default_text=WEIGHTS_DEFAULT)
    split: str | None = option(None, SPLIT_HELP, value="NAME", default_text=SPLIT_DEFAULT)
    targets: str | None = option(None, TARGETS_HELP, value=TARGETS_VALUE, default_text=TARGETS_DEFAULT)
    output: Path | None = option(
        None, "Result file in BOP's CSV format.", value="FILE", default_text="picopose_DATASET-SPLIT.csv"
    )
    depth: str = option("off", DEPTH_HELP, choices=DEPTHS)
    device: str = option("auto", ONE_DEVICE_HELP, value="DEVICE")
    plan: bool = option(False, "Print the plan and do nothing.")

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class DemoOptions:
    """Options of `picopose demo`."""

    output: Path = option(
        Path("picopose-demo"), "Folder of all files of the demo: new, empty, or of an earlier demo.", value="DIR"
    )
    objects: int = option(5, "Number of objects to generate.", minimum=1)
    images: int = option(10, "Number of images to generate.", minimum=1)
    weights: Path | None = option(None, WEIGHTS_HELP, value="FILE", default_text=WEIGHTS_DEFAULT)
    device: str = option("auto", ONE_DEVICE_HELP, value="DEVICE")

    def __post_init__(self) -> None:
        check_ranges(self)
