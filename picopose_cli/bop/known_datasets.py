"""The table of BOP data sets: the layout of the official downloads and the parameters of their scores.

Source: the parameters of the BOP toolkit and the data-set pages of the BOP challenge. Where a folder on disk differs
from its row, the folder is used (see `layouts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DEFAULT_VSD_DELTA_MM = 15.0
DEFAULT_MAX_ESTIMATES_PER_IMAGE = 100


@dataclass(frozen=True)
class KnownSplit:
    """One row: the test images of a BOP data set, named as the toolkit names them."""

    name: str
    image_size_hw: tuple[int, int]
    """(height, width) px."""
    object_ids: tuple[int, ...]
    split: str = "test"
    """Folder of the split; the toolkit writes `test_primesense` as split `test`, type `primesense`."""
    image_folder: str = "rgb"
    image_ext: str = ".png"
    suffix: str = ""
    """Appended to scene_camera, scene_gt and scene_gt_info: `_photoneo` for scene_gt_photoneo.json."""
    depth_folder: str = "depth"
    depth_ext: str = ".png"
    models: str = "models"
    """Folder of the meshes that templates are rendered from."""
    private_splits: tuple[str, ...] = ()
    """Toolkit splits whose ground truth is not public."""
    vsd_delta_mm: float = DEFAULT_VSD_DELTA_MM
    max_estimates_per_image: int = DEFAULT_MAX_ESTIMATES_PER_IMAGE
    """Detection task: number of best-scored estimates of an image that are counted."""
    parts: str | None = None
    """Start of the names of the folders that are a part of the split as it is downloaded, without `split` itself."""
    scenes: range | None = None
    """Ids of the scenes that have this sensor; None: all."""
    has_vsd: bool = True
    """False for data sets that BOP scores by detection only: it defines no VSD tolerance for them."""


def _ids(count: int) -> tuple[int, ...]:
    return tuple(range(1, count + 1))


_VGA = (480, 640)
_IPD_IDS = (0, 1, 4, 8, 10, 11, 14, 18, 19, 20)  # an object id of 0 exists: ids are keys, 0 does not mean "none"
_XYZIBD_IDS = (1, 2, 4, 5, 6, *range(8, 18))
_PRIVATE = ("test",)

KNOWN_SPLITS: tuple[KnownSplit, ...] = (
    KnownSplit("lm", _VGA, _ids(15)),
    KnownSplit("lmo", _VGA, (1, 5, 6, 8, 9, 10, 11, 12)),
    KnownSplit("tless", (540, 720), _ids(30), split="test_primesense", models="models_cad"),
    KnownSplit("tudl", _VGA, _ids(3)),
    KnownSplit("icbin", _VGA, _ids(2)),
    KnownSplit(
        "itodd",
        (960, 1280),
        _ids(28),
        image_folder="gray",
        image_ext=".tif",
        depth_ext=".tif",
        private_splits=_PRIVATE,
        vsd_delta_mm=5.0,
    ),
    KnownSplit("hb", _VGA, _ids(33), split="test_primesense", private_splits=_PRIVATE),
    KnownSplit("ycbv", _VGA, _ids(21)),
    KnownSplit("hope", (1080, 1920), _ids(28), private_splits=_PRIVATE),
    KnownSplit("hopev2", (1080, 1920), _ids(28), private_splits=_PRIVATE, has_vsd=False),
    KnownSplit("handal", (1440, 1920), _ids(40), image_ext=".jpg", private_splits=_PRIVATE, has_vsd=False),
    KnownSplit(
        "hot3d",
        (1408, 1408),
        _ids(33),
        image_ext=".jpg",
        suffix="_rgb",
        private_splits=_PRIVATE,
        parts="test_aria",
        scenes=range(3365, 3832),
        has_vsd=False,
    ),
    KnownSplit(
        "hot3d",
        (1024, 1280),
        _ids(33),
        image_folder="gray1",
        image_ext=".jpg",
        suffix="_gray1",
        private_splits=_PRIVATE,
        parts="test_quest3",
        scenes=range(1288, 1849),
        has_vsd=False,
    ),
    KnownSplit(
        "ipd",
        (1544, 2064),
        _IPD_IDS,
        image_folder="rgb_photoneo",
        suffix="_photoneo",
        depth_folder="depth_photoneo",
        private_splits=_PRIVATE,
        has_vsd=False,
    ),
    KnownSplit(
        "xyzibd",
        (1080, 1440),
        _XYZIBD_IDS,
        image_folder="gray_xyz",
        suffix="_xyz",
        depth_folder="depth_xyz",
        private_splits=_PRIVATE,
        max_estimates_per_image=200,
        has_vsd=False,
    ),
    KnownSplit(
        "itoddmv",
        (960, 1280),
        _ids(28),
        image_folder="gray_3dlong",
        image_ext=".tif",
        suffix="_3dlong",
        depth_folder="depth_3dlong",
        depth_ext=".tif",
        private_splits=_PRIVATE,
        has_vsd=False,
    ),
)


_PHOTONEO_HW = (1544, 2064)
_IPD_SIDE_HW = (2160, 3840)
_ITODD_SIDE_HW = (2838, 4224)
_SIZES_BY_FOLDER = {
    "hb": {"pbr": _VGA, "primesense": _VGA, "kinect": (1080, 1920)},
    "tless": {"primesense": (540, 720), "kinect": (540, 720), "canon": (1920, 2560), "pbr": (540, 720)},
    "tless train": {
        "primesense": (400, 400),
        "kinect": (400, 400),
        "canon": (1900, 1900),
        "render_reconst": (1024, 1280),
        "synthetless": (400, 400),
        "pbr": (540, 720),
    },
}
"""(height, width) px by the type in the name of the split's folder; "NAME SPLIT" comes before "NAME"."""
_SIZES_BY_SUFFIX = {
    "ipd": {"_photoneo": _PHOTONEO_HW} | dict.fromkeys(("_cam1", "_cam2", "_cam3"), _IPD_SIDE_HW),
    "xyzibd": {"": (1080, 1440), "_xyz": (1080, 1440), "_photoneo": _PHOTONEO_HW, "_realsense": (720, 1280)},
    "itoddmv": {"": (960, 1280), "_3dlong": (960, 1280)} | dict.fromkeys(("_cam0", "_cam1", "_cam2"), _ITODD_SIDE_HW),
    "hot3d": {"_rgb": (1408, 1408), "_gray1": (1024, 1280), "_gray2": (1024, 1280)},
}
"""(height, width) px by the suffix of the annotation files, which names the sensor."""


def known_image_size_hw(name: str, split: str, suffix: str) -> tuple[int, int] | None:
    """Return (height, width) px of a sensor in BOP's table, None if unknown.

    The split's folder or the suffix of its annotation files names the sensor.
    The toolkit scales MSPD by this width, whatever the size of the images on disk.
    """
    kind, sensor = toolkit_split(split)
    by_folder = _SIZES_BY_FOLDER.get(f"{name} {kind}") or _SIZES_BY_FOLDER.get(name)
    if by_folder is not None:
        return by_folder.get(sensor or "primesense")
    if name in _SIZES_BY_SUFFIX:
        return _SIZES_BY_SUFFIX[name].get(suffix)
    return next((row.image_size_hw for row in known_splits(name)), None)


def scored_suffixes(name: str) -> tuple[str, ...]:
    """Return the suffixes of the sensors that BOP scores, empty for a data set with one sensor or an unknown one."""
    return tuple(row.suffix for row in known_splits(name) if row.suffix)


def is_unscored_sensor(name: str, sensor: str | None) -> bool:
    """Return whether a data set has a sensor of this name (without `_`) that BOP does not score."""
    suffix = f"_{sensor}"
    return suffix in _SIZES_BY_SUFFIX.get(name, {}) and suffix not in scored_suffixes(name)


def rows_of_scene(rows: Sequence[KnownSplit], scene_id: int) -> Sequence[KnownSplit]:
    """Return the rows that a scene may have: those of its id, else all."""
    return [row for row in rows if row.scenes is not None and scene_id in row.scenes] or rows


def known_splits(name: str) -> tuple[KnownSplit, ...]:
    """Return the rows of a data set, empty for an unknown name."""
    return tuple(row for row in KNOWN_SPLITS if row.name == name)


def max_estimates_per_image(name: str) -> int:
    """Return the number of estimates per image that are counted in the detection task."""
    return next((row.max_estimates_per_image for row in known_splits(name)), DEFAULT_MAX_ESTIMATES_PER_IMAGE)


def toolkit_split(folder: str) -> tuple[str, str | None]:
    """Split a folder name as the toolkit does: test_primesense -> (test, primesense), test -> (test, None)."""
    split, _, split_type = folder.partition("_")
    return split, split_type or None
