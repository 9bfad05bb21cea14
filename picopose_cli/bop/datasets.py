"""BOP data sets on disk: paths of their files, cameras and object descriptions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from picopose_cli.base.cameras import Camera, parse_camera
from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.json_numbers import finite_number, finite_numbers
from picopose_cli.base.symmetries import MAX_SYMMETRIES, symmetry_count
from picopose_cli.base.types import MM_PER_M, Array, ObjectInfo
from picopose_cli.bop.json_files import read_indexed
from picopose_cli.bop.known_datasets import (
    DEFAULT_VSD_DELTA_MM,
    KnownSplit,
    is_unscored_sensor,
    known_image_size_hw,
    known_splits,
    scored_suffixes,
    toolkit_split,
)
from picopose_cli.bop.layouts import (
    MODELS_FOLDERS,
    ImageLayout,
    find_image_layouts,
    find_models,
    find_scenes,
    find_split,
    images_by_id,
    list_folders,
    mesh_files,
    models_folders,
    require_sensor,
    sensors_of,
    split_folders,
)
from picopose_cli.bop.result_names import drop_separators

_LOG = logging.getLogger(__name__)
_MODELS_INFO = "models_info.json"
_EVALUATION_MODELS = ("models_eval", "object_models_eval")


@dataclass(frozen=True)
class Dataset:
    """A split of a BOP data set on disk; made by `open_dataset`."""

    name: str
    root: Path
    split: str
    """Folder of the split, such as `test_primesense`; HOT3D's `test` may be downloaded in parts instead."""
    sensor: str | None
    """The sensor that was asked for in place of the one that BOP scores."""
    models_dir: Path
    """Folder of the meshes that templates are rendered from; may be missing."""
    eval_models_dir: Path
    """Folder of the meshes that scores are computed with: models_eval if it exists."""
    scenes: Mapping[int, Path]
    """Folders of the scenes on disk by id, sorted."""
    layout: ImageLayout
    """That of the first scene, for scenes that have none of their own."""
    layouts: Mapping[int, ImageLayout]
    """By scene, which may have different sensors."""
    has_public_gt: bool
    """Whether there is ground truth on disk that is not private."""
    has_private_gt: bool
    """Whether BOP keeps the ground truth of the split secret."""
    has_vsd: bool
    """Whether BOP scores the data set by VSD."""
    vsd_delta_m: float

    @property
    def split_dir(self) -> Path:
        """The folder of the split."""
        return self.root / self.split

    @property
    def result_split(self) -> str:
        """The split as written in result file names: `test` for tless' test_primesense, `test-TYPE` for other types.

        A sensor that was asked for is its type, too.
        """
        split, split_type = toolkit_split(self.split)
        usual = any(row.split == self.split for row in known_splits(self.name)[:1])
        parts = (split, None if usual else split_type, self.sensor)
        return "-".join(part.replace("_", "") for part in parts if part is not None)

    def scene_dir(self, scene_id: int) -> Path:
        """Return the folder of a scene."""
        return self.scenes.get(scene_id, self.split_dir / f"{scene_id:06d}")

    def scene_ids(self) -> list[int]:
        """Return the sorted ids of the scenes on disk."""
        return list(self.scenes)

    def layout_of(self, scene_id: int) -> ImageLayout:
        """Return the layout of a scene."""
        return self.layouts.get(scene_id, self.layout)

    def known_size_hw(self, scene_id: int) -> tuple[int, int] | None:
        """Return (height, width) px of a scene's sensor in BOP's table, None if unknown; images on disk may differ."""
        return known_image_size_hw(self.name, self.split, self.layout_of(scene_id).suffix)

    def annotation_path(self, scene_id: int, stem: str) -> Path:
        """Return the path of a scene's `scene_camera`, `scene_gt` or `scene_gt_info` file."""
        return self.scene_dir(scene_id) / f"{stem}{self.layout_of(scene_id).suffix}.json"

    def has_gt_files(self) -> bool:
        """Return whether any scene has ground truth on disk, public or not."""
        return any(self.annotation_path(scene_id, "scene_gt").is_file() for scene_id in self.scene_ids())

    def image_path(self, scene_id: int, im_id: int) -> Path:
        """Return the path of an image with its extension on disk, or the usual one where it is missing."""
        layout = self.layout_of(scene_id)
        return _existing(self.scene_dir(scene_id) / layout.image_folder, im_id, layout.image_ext)

    def depth_path(self, scene_id: int, im_id: int) -> Path:
        """Return the path of an image's depth map, which may be missing."""
        layout = self.layout_of(scene_id)
        return _existing(self.scene_dir(scene_id) / layout.depth_folder, im_id, layout.depth_ext)

    def mask_visib_path(self, scene_id: int, im_id: int, gt_id: int) -> Path:
        """Return the path of the mask of an instance's visible part, which may be missing."""
        suffix = self.layout_of(scene_id).suffix
        folder = self.scene_dir(scene_id) / f"mask_visib{suffix}"
        if suffix and not folder.is_dir():
            folder = self.scene_dir(scene_id) / "mask_visib"
        return folder / f"{im_id:06d}_{gt_id:06d}.png"


def open_dataset(
    name: str,
    data_dir: Path,
    *,
    split: str | None = None,
    models: str | None = None,
    need_images: bool = True,
    sensor: str | None = None,
) -> Dataset:
    """Return a data set below `data_dir` with its layout: that of BOP's table, except where the folder differs.

    `split` and `models` name folders inside the data set and override the search; `split` may omit the type (`test` for
    `test_primesense`), or have a sensor as its type (`test_cam1`), as result files have it. `sensor` asks for another
    than the one that BOP scores. Without `need_images` a data set that has only meshes is accepted.
    Raises PicoPoseError when the folder, split, sensor or models folder is missing.
    """
    root = _find_root(name, data_dir)
    rows = known_splits(root.name)
    if sensor is None and split is not None:
        split, sensor = _without_sensor(root, split, rows)
    if f"_{sensor}" in scored_suffixes(root.name):
        sensor = None
    folder = _split_or_default(root, split, rows, need_images)
    row = _row_of(folder, rows)
    scenes = find_scenes(root, folder, rows)
    preferred = tuple(dict.fromkeys((*((row.models,) if row else ()), *MODELS_FOLDERS)))
    models_dir = find_models(root, models, preferred)
    own_rows = tuple(dict.fromkeys((*((row,) if row else ()), *rows)))
    layout, layouts = find_image_layouts(scenes, own_rows, sensor)
    if need_images:
        require_sensor(scenes, layout, layouts, sensor)
    dataset = Dataset(
        name=root.name,
        root=root,
        split=folder,
        sensor=sensor,
        models_dir=models_dir,
        eval_models_dir=models_dir if models else find_models(root, None, (*_EVALUATION_MODELS, models_dir.name)),
        scenes=scenes,
        layout=layout,
        layouts=layouts,
        has_public_gt=False,
        has_private_gt=False,
        has_vsd=row is None or row.has_vsd,
        vsd_delta_m=(row.vsd_delta_mm if row else DEFAULT_VSD_DELTA_MM) / MM_PER_M,
    )
    dataset = _with_ground_truth(dataset, row)
    _LOG.info("data set %s: split %s, images %s, meshes %s", root, folder, dataset.layout, dataset.models_dir.name)
    return dataset


def _without_sensor(root: Path, split: str, rows: tuple[KnownSplit, ...]) -> tuple[str, str | None]:
    """Return a split without the sensor that is its type (`test_cam1`), and that sensor; None where it has none."""
    kind, sensor = toolkit_split(split)
    if sensor is None or split in split_folders(root):
        return split, None
    if is_unscored_sensor(root.name, sensor) or sensor in sensors_of(find_scenes(root, kind, rows)):
        return kind, sensor
    return split, None


def require_dataset(name: str, data_dir: Path) -> None:
    """Raise PicoPoseError when there is no data set of this name below `data_dir`."""
    _find_root(name, data_dir)


def read_scene_cameras(dataset: Dataset, scene_id: int) -> dict[int, Camera]:
    """Return the cameras of a scene by image id; an image without a valid camera has model None and a problem.

    Raises PicoPoseError when the scene_camera file itself is missing or unreadable, or has pinholes and fisheyes.
    """
    path = dataset.annotation_path(scene_id, "scene_camera")
    cameras = {im_id: parse_camera(entry) for im_id, entry in read_indexed(path).items()}
    kinds = {type(camera.model): im_id for im_id, camera in cameras.items() if camera.model is not None}
    if len(kinds) > 1:
        images = ", ".join(f"image {im_id} {kind.__name__}" for kind, im_id in kinds.items())
        what = f"the cameras of the scene are of several kinds ({images})"
        raise PicoPoseError(what, where=path, fix="write a scene_camera file, and a folder of images, for each sensor")
    return cameras


def object_ids(dataset: Dataset) -> list[int]:
    """Return the sorted ids of the objects with a mesh in `models_dir`; raises PicoPoseError when there are none."""
    found = mesh_files(dataset.models_dir)
    if not found:
        names = ", ".join(models_folders(dataset.root)) or "none"
        raise PicoPoseError(
            f"no meshes obj_000001.ply, .obj or .glb in this folder (models folders of the data set: {names})",
            where=dataset.models_dir,
            fix="unpack the models of the data set or pass their folder with --models",
        )
    return list(found)


def mesh_path(dataset: Dataset, obj_id: int, *, evaluation: bool = False) -> Path:
    """Return the path of an object's mesh, for templates or `evaluation`; raises PicoPoseError when there is none."""
    folder = dataset.eval_models_dir if evaluation else dataset.models_dir
    found = mesh_files(folder)
    if obj_id not in found:
        ids = ", ".join(map(str, found)) or "none"
        raise PicoPoseError(f"no mesh of object {obj_id} (found: {ids})", where=folder, fix="check the object id")
    return found[obj_id]


def models_info_path(dataset: Dataset) -> Path:
    """Return the path of models_info.json: in the evaluation models' folder, unless only the other one has it."""
    evaluation, usual = dataset.eval_models_dir / _MODELS_INFO, dataset.models_dir / _MODELS_INFO
    return usual if usual.is_file() and not evaluation.is_file() else evaluation


def read_object_infos(dataset: Dataset) -> dict[int, ObjectInfo]:
    """Return diameters and symmetries of the objects in metres, by object id, from models_info.json.

    Raises PicoPoseError naming the object whose entry is invalid.
    """
    return read_models_info(models_info_path(dataset))


def read_models_info(path: Path) -> dict[int, ObjectInfo]:
    """Return what a models_info.json says of its objects; raises PicoPoseError as `read_object_infos` does."""
    return {obj_id: _object_info(path, obj_id, entry) for obj_id, entry in read_indexed(path).items()}


def _find_root(name: str, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise PicoPoseError("the data folder does not exist", where=data_dir, fix="check --data-dir or BOP_PATH")
    if not name or Path(name).name != name:
        raise PicoPoseError(f"{name!r} is not the name of a data set", fix="pass the folder above with --data-dir")
    present = list_folders(data_dir)
    if name in present:
        return data_dir / name
    # names of result files have no `_`, `-` and `.` in the data set (see result_names.result_file_name)
    matching = [folder for folder in present if drop_separators(folder) == name]
    if len(matching) == 1:
        return data_dir / matching[0]
    fix = "pass the folder above the data set as --data-dir" if data_dir.resolve().name == name else "check the name"
    names = ", ".join(_dataset_names(data_dir, present)[:20]) or "none"
    raise PicoPoseError(f"there is no data set {name!r} (found: {names})", where=data_dir, fix=fix)


def _dataset_names(data_dir: Path, folders: list[str]) -> list[str]:
    """Return the folders that have models or scenes, as data sets do."""
    return [name for name in folders if models_folders(data_dir / name) or split_folders(data_dir / name)]


def _split_or_default(root: Path, split: str | None, rows: tuple[KnownSplit, ...], need_images: bool) -> str:
    try:
        return find_split(root, split, rows)
    except PicoPoseError:
        if need_images:
            raise
        return split or (rows[0].split if rows else "test")


def _row_of(folder: str, rows: tuple[KnownSplit, ...]) -> KnownSplit | None:
    return next((row for row in rows if row.split == folder), rows[0] if rows else None)


def _with_ground_truth(dataset: Dataset, row: KnownSplit | None) -> Dataset:
    private = row is not None and toolkit_split(dataset.split)[0] in row.private_splits
    return replace(dataset, has_private_gt=private, has_public_gt=dataset.has_gt_files() and not private)


def _existing(folder: Path, im_id: int, usual_ext: str) -> Path:
    """Return the image of a folder with another extension or another number of digits where the usual is missing."""
    usual = folder / f"{im_id:06d}{usual_ext}"
    return usual if usual.exists() else images_by_id(folder).get(im_id, usual)


def _object_info(path: Path, obj_id: int, entry: Any) -> ObjectInfo:
    def broken(field: str, needed: str) -> PicoPoseError:
        return PicoPoseError(f"object {obj_id}: {field} is not {needed}", where=path, fix="correct the file")

    if not isinstance(entry, dict):
        raise broken("the entry", "an object")
    diameter_mm = finite_number(entry.get("diameter"))
    if diameter_mm is None or diameter_mm <= 0:
        raise broken("diameter", "a positive number of mm")
    discrete, continuous = _listed(entry, "symmetries_discrete"), _listed(entry, "symmetries_continuous")
    count = symmetry_count(len(discrete or ()), len(continuous or ()))
    if count > MAX_SYMMETRIES:
        raise PicoPoseError(
            f"object {obj_id} has {count} symmetry transformations, more than {MAX_SYMMETRIES}",
            where=path,
            fix="list each symmetry once; a sphere has three axes",
        )
    matrices = [finite_numbers(item, 16) for item in discrete or ()]
    if discrete is None or any(matrix is None for matrix in matrices):
        raise broken("symmetries_discrete", "a list of 4x4 matrices")
    symmetries = np.array(matrices, np.float64).reshape(-1, 4, 4)
    symmetries[:, :3, 3] /= MM_PER_M
    axes = [_continuous(item) for item in continuous or ()]
    if continuous is None or any(axis is None for axis in axes):
        raise broken("symmetries_continuous", "a list of {axis, offset}")
    return ObjectInfo(obj_id, diameter_mm / MM_PER_M, symmetries, tuple(axis for axis in axes if axis is not None))


def _listed(entry: dict[str, Any], key: str) -> list[Any] | None:
    value = entry.get(key, [])
    return value if isinstance(value, list) else None


def _continuous(item: Any) -> tuple[Array, Array] | None:
    if not isinstance(item, dict):
        return None
    axis, offset_mm = finite_numbers(item.get("axis"), 3), finite_numbers(item.get("offset"), 3)
    if axis is None or offset_mm is None or not axis.any():
        return None
    return axis, offset_mm / MM_PER_M
