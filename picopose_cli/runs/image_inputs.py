"""The inputs of `picopose estimate`: images without a BOP folder, their cameras, and where their objects are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.files import require_writable
from picopose_cli.base.guide_options import EstimateOptions
from picopose_cli.base.json_numbers import finite_numbers
from picopose_cli.base.options import MESH_UNITS
from picopose_cli.base.tasks import DepthSource, ImageTask
from picopose_cli.base.types import Array, ObjectInfo
from picopose_cli.bop.camera_files import read_depth_scale, read_K
from picopose_cli.bop.datasets import read_models_info
from picopose_cli.bop.images import read_image_rgb, read_mask
from picopose_cli.bop.json_files import read_json_list
from picopose_cli.bop.layouts import IMAGE_EXTENSIONS
from picopose_cli.runs.depth_inputs import read_depth
from picopose_cli.runs.input_warnings import input_warnings

_KEYS = {"mesh", "mask", "box", "mesh_unit", "name"}
Box = tuple[float, ...]


@dataclass(frozen=True)
class WantedObject:
    """One object to find in each image: its mesh, and its mask (a file, or a folder by image) or its box, px."""

    name: str
    mesh: Path
    unit: str
    mask: Path | None
    box: Box | None

    def area(self, image: Path, image_rgb: Array) -> Array | Box:
        """Return the mask (H,W) bool or the box of the object; raises PicoPoseError when there is none to read."""
        if self.mask is None:
            assert self.box is not None
            return self.box
        path = _file_of(self.mask, image, "mask") if self.mask.is_dir() else self.mask
        return read_mask(path, (image_rgb.shape[0], image_rgb.shape[1]))


@dataclass(frozen=True)
class ImageInputs:
    """The images to estimate and the objects in them."""

    options: EstimateOptions
    images: Sequence[Path]
    objects: Sequence[WantedObject]


@dataclass(frozen=True)
class OpenedImage:
    """An image (H,W,3) u8 RGB with its camera (3,3) px and the mask (H,W) or box of each wanted object.

    `depth_m` (H,W) f32 metres, 0 where nothing was measured; None for poses by RGB alone.
    """

    image_rgb: Array
    K: Array
    areas: Sequence[Array | Box]
    depth_m: Array | None = None


def read_image_inputs(options: EstimateOptions) -> ImageInputs:
    """Find the images and objects of the options.

    Raises PicoPoseError when an image, a mesh or a mask does not exist, or the output cannot be written.
    """
    images = _find_images(options.image)
    if options.output.resolve() == images[0].parent.resolve():
        raise PicoPoseError("is the folder of the images", where=options.output, fix="choose another --output")
    for stem in {image.stem for image in images}:
        same = [image.name for image in images if image.stem == stem]
        if len(same) > 1:
            what = f"{' and '.join(same)} would have the same output {stem}.json"
            raise PicoPoseError(what, where=options.image, fix="rename one of them")
    objects = _read_objects(options)
    for one in objects:
        for path, what in ((one.mesh, "mesh"), (one.mask, "mask")):
            if path is not None and not path.exists():
                raise PicoPoseError(f"the {what} does not exist", where=path, fix="check the path")
    if options.depth is not None and not options.depth.exists():
        raise PicoPoseError("the depth does not exist", where=options.depth, fix="check the path")
    if options.camera:
        read_K(options.camera, images[0])
    require_writable(options.output / f"{images[0].stem}.json")
    return ImageInputs(options, images, objects)


def open_image(inputs: ImageInputs, image: Path) -> OpenedImage:
    """Read an image with its camera and masks; raises PicoPoseError when one of them cannot be used."""
    image_rgb = read_image_rgb(image)
    areas = [one.area(image, image_rgb) for one in inputs.objects]
    depth_m = _read_depth(inputs.options, image, image_rgb)
    return OpenedImage(image_rgb, read_K(inputs.options.camera, image), areas, depth_m)


def _read_depth(options: EstimateOptions, image: Path, image_rgb: Array) -> Array | None:
    """Return the depth of an image; raises PicoPoseError when it is missing, damaged or of another size."""
    if options.depth is None:
        return None
    path = _file_of(options.depth, image, "depth image") if options.depth.is_dir() else options.depth
    scale = read_depth_scale(options.camera, image) if options.depth_scale is None else options.depth_scale
    depth_m = read_depth(DepthSource(path, scale), (image_rgb.shape[0], image_rgb.shape[1]))
    if isinstance(depth_m, PicoPoseError):
        raise depth_m
    return depth_m


def image_warnings(inputs: ImageInputs) -> list[str]:
    """Return what may be wrong with images and cameras although they can be used; see `input_warnings`."""
    tasks = []
    for index, image in enumerate(inputs.images):
        try:
            camera = Pinhole(read_K(inputs.options.camera, image))
        except PicoPoseError:
            continue  # reported when it is estimated
        tasks.append(ImageTask(0, index, image, camera, ()))
    names = {f"image {index}": image.name for index, image in enumerate(inputs.images)}
    warnings = (text.removeprefix("scene 0: ") for text in input_warnings(tasks))
    return [re.sub(r"image \d+", lambda match: names.get(match[0], match[0]), text) for text in warnings]


def symmetries_of(mesh: Path) -> ObjectInfo | None:
    """Return the entry of a mesh obj_000001.ply in the models_info.json beside it, None where there is none.

    Raises PicoPoseError when the file is invalid.
    """
    digits, path = mesh.stem.removeprefix("obj_"), mesh.with_name("models_info.json")
    if not path.is_file() or digits == mesh.stem or not (digits.isascii() and digits.isdigit()):
        return None
    info = read_models_info(path).get(int(digits))
    return info if info is not None and info.is_symmetric else None


def _find_images(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise PicoPoseError("the image does not exist", where=path, fix="check the path")
    found = sorted(one for one in path.iterdir() if one.suffix.lower() in IMAGE_EXTENSIONS and one.is_file())
    if not found:
        raise PicoPoseError("there are no images in this folder", where=path, fix="name an image, or another folder")
    return found


def _file_of(folder: Path, image: Path, kind: str) -> Path:
    """Return the mask or depth of an image: the file of a folder with the image's name, whatever its extension."""
    found = [one for one in sorted(folder.glob(f"{image.stem}.*")) if one.suffix.lower() in IMAGE_EXTENSIONS]
    if not found:
        raise PicoPoseError(f"there is no {kind} {image.stem}.png", where=folder, fix=f"name {kind}s like their images")
    return found[0]


def _read_objects(options: EstimateOptions) -> list[WantedObject]:
    if options.objects is None:
        assert options.mesh is not None
        return [WantedObject(options.mesh.stem, options.mesh, options.mesh_unit, options.mask, options.box or None)]
    entries = read_json_list(options.objects)
    if not entries:
        raise PicoPoseError("there are no objects", where=options.objects, fix="list at least one")
    return [_parse_object(entry, index, options) for index, entry in enumerate(entries)]


def _parse_object(entry: Any, index: int, options: EstimateOptions) -> WantedObject:
    """Return one entry of the list of objects; its paths are relative to the file."""
    path = options.objects
    assert path is not None

    def wrong(what: str) -> PicoPoseError:
        example = '{"mesh": "mug.ply", "mask": "mug.png"} or {"mesh": "mug.ply", "box": [x, y, width, height]}'
        return PicoPoseError(f"entry {index} {what}", where=path, fix=f"write it like {example}")

    if not isinstance(entry, dict):
        raise wrong("is not an object")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise wrong(f"has the unknown key {unknown[0][:40]!r}")
    texts = {key: entry.get(key) for key in ("mesh", "mask", "name", "mesh_unit")}
    broken = next((key for key, value in texts.items() if value is not None and not isinstance(value, str)), None)
    if broken or texts["mesh"] is None:
        raise wrong(f"has no text in {broken or 'mesh'}")
    box = None if entry.get("box") is None else finite_numbers(entry["box"], 4)
    if (texts["mask"] is None) == (box is None):
        raise wrong("needs a mask or a box of four numbers")
    unit = texts["mesh_unit"] or options.mesh_unit
    if unit not in MESH_UNITS:
        raise wrong(f"has a mesh_unit other than {', '.join(MESH_UNITS)}")
    mesh, mask = path.parent / str(texts["mesh"]), texts["mask"]
    return WantedObject(
        texts["name"] or mesh.stem,
        mesh,
        unit,
        path.parent / mask if mask else None,
        None if box is None else tuple(box.tolist()),
    )
