"""The options of the commands for single images, for getting started and for looking at results; see `base.options`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.option_fields import REQUIRED, check_ranges, option, require
from picopose_cli.base.option_texts import ONE_DEVICE_HELP, WEIGHTS_DEFAULT, WEIGHTS_HELP
from picopose_cli.base.options import MESH_UNITS


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
        if self.objects is not None:
            alone = self.mesh is None and self.mask is None and not self.box
            require(alone, "--objects has the meshes, masks and boxes", "drop --mesh, --mask and --box")
            return
        require(self.mesh is not None, "no mesh is given", "pass --mesh FILE, or several with --objects FILE")
        areas = (self.mask is not None) + bool(self.box)
        require(areas == 1, f"{areas} of --mask and --box are given", "pass one of them: it says where the object is")
        if self.box and len(self.box) != 4:
            raise PicoPoseError(f"--box has {len(self.box)} numbers, needs 4: x,y,width,height")
