"""The nouns of the project: frozen dataclasses whose shapes are checked once, when they are made.

Metres, seconds, pixels; OpenCV camera axes; points (x, y), arrays [row, col]. V views of an object, B detections of a
batch, N points. Frames: obj, cam, tmpl (a template's camera), image, crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CROP_PX = 224
"""Side of the network's square input."""
GRID_CELLS = 64
"""Side of the grid on which template points and fine correspondences live."""

Array = NDArray[Any]
"""Any NumPy array; shapes and units stand where one is used."""
MM_PER_M = 1000.0
METRES_PER_UNIT = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}
"""Units of length that meshes may have."""
MIN_VISIB_FRACT = 0.1
"""Instances with a smaller visible fraction are not targets (BOP challenge)."""


def _check_shape(name: str, array: Array, *shape: int | None) -> None:
    if array.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}, needs ({wanted})")


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh in its object frame.

    `vertices_m` (N,3) f64 metres, `faces` (F,3) i32; at most one of `vertex_rgb` (N,3) u8 or `uv` (N,2) f32 with
    `texture_rgb` (h,w,3) u8 (v = 0 at the bottom row); none of them means a mesh without colour. `notes`: what of its
    file was not used, for the user.
    """

    vertices_m: Array
    faces: Array
    vertex_rgb: Array | None = None
    uv: Array | None = None
    texture_rgb: Array | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_shape("vertices_m", self.vertices_m, None, 3)
        _check_shape("faces", self.faces, None, 3)
        if self.vertex_rgb is not None:
            _check_shape("vertex_rgb", self.vertex_rgb, len(self.vertices_m), 3)
        if (self.uv is None) != (self.texture_rgb is None):
            raise ValueError("uv and texture_rgb come together")
        if self.uv is not None and self.texture_rgb is not None:
            _check_shape("uv", self.uv, len(self.vertices_m), 2)
            _check_shape("texture_rgb", self.texture_rgb, None, None, 3)


@dataclass(frozen=True)
class RenderedView:
    """One rendered image: `rgb` (H,W,3) u8 on black, `alpha` (H,W) u8 coverage (255 inside), `depth_m` (H,W) f32.

    Depth is along the optical axis at the pixel's centre (index + 0.5), 0 where nothing is seen.
    """

    rgb: Array
    alpha: Array
    depth_m: Array

    def __post_init__(self) -> None:
        _check_shape("depth_m", self.depth_m, None, None)
        _check_shape("alpha", self.alpha, *self.depth_m.shape)
        _check_shape("rgb", self.rgb, *self.depth_m.shape, 3)


@dataclass(frozen=True)
class Provenance:
    """Where a template bank comes from, stored in its file: enough to tell whether it may be reused."""

    source: str
    """File name of the mesh, or the folder of ready-made template images."""
    source_sha256: str
    """SHA-256 of the mesh (and its texture), or of the template images."""
    mesh_unit: str
    """`mm`, `cm`, `m`, or `images` for a bank built from ready-made images."""
    renderer: str
    """`egl`, `osmesa`, `software` or `images`."""
    renderer_detail: str
    """GL_RENDERER, or the software renderer's library and version."""
    versions: str
    """Package versions, as `name=version` joined by blanks."""
    notes: str = ""
    """What of the mesh was not used or is doubtful, for the user; empty for most meshes."""


@dataclass(frozen=True)
class TemplateBank:
    """The templates of one object.

    `crops_rgb` (V,224,224,3) u8 on black; `masks` (V,224,224) bool; `depth_corner_m` and `depth_centre_m` (V,64,64)
    f32, depth at the cells' top-left pixels and at their centres, 0 outside the object; `K` (3,3);
    `A_crop_from_image` (V,3,3); `T_tmpl_from_obj` (V,4,4) metres.
    """

    obj_id: int
    crops_rgb: Array
    masks: Array
    depth_corner_m: Array
    depth_centre_m: Array
    K: Array
    A_crop_from_image: Array
    T_tmpl_from_obj: Array
    diameter_m: float
    """Diagonal of the object's axis-aligned bounding box."""
    provenance: Provenance
    centre_m: Array = field(default_factory=lambda: np.zeros(3))
    """The point (3,) of the object frame that the template cameras point at; the origin for a centred mesh."""

    def __post_init__(self) -> None:
        views = len(self.crops_rgb)
        _check_shape("crops_rgb", self.crops_rgb, None, CROP_PX, CROP_PX, 3)
        _check_shape("masks", self.masks, views, CROP_PX, CROP_PX)
        _check_shape("depth_corner_m", self.depth_corner_m, views, GRID_CELLS, GRID_CELLS)
        _check_shape("depth_centre_m", self.depth_centre_m, views, GRID_CELLS, GRID_CELLS)
        _check_shape("K", self.K, 3, 3)
        _check_shape("A_crop_from_image", self.A_crop_from_image, views, 3, 3)
        _check_shape("T_tmpl_from_obj", self.T_tmpl_from_obj, views, 4, 4)
        _check_shape("centre_m", self.centre_m, 3)

    @cached_property
    def xyz_obj_m(self) -> Array:
        """Points (V,64,64,3) f32, object frame, metres, of the cells as the released network saw them.

        See `lift_cell_corners`; computed when first asked for, rounded to whole micrometres as in banks of format 1.
        """
        from picopose_cli.base.grid import lift_cell_corners, round_to_micrometres  # imports this module

        views = zip(self.depth_corner_m, self.A_crop_from_image, self.T_tmpl_from_obj, strict=True)
        return round_to_micrometres(np.stack([lift_cell_corners(depth, self.K, A, T) for depth, A, T in views]))


@dataclass(frozen=True)
class Rle:
    """A run-length mask in COCO's format, still encoded: `size` (height, width), `counts` compressed or run lengths."""

    size: tuple[int, int]
    counts: bytes | tuple[int, ...]


@dataclass(frozen=True)
class Polygons:
    """A mask as polygons: each ring is x, y, x, y, ... px of its vertices; the mask is inside any of them."""

    rings: tuple[tuple[float, ...], ...]


MaskSource = Rle | Polygons | Path
"""Where a mask comes from, which is decoded when it is needed; a path is that of a mask image."""

NO_BOX = (math.nan,) * 4
"""The box of a detection that has only a mask."""


@dataclass(frozen=True)
class Detection:
    """One detection of an image: the object, its score (usually in [0, 1]), its box and where its mask comes from.

    Without a mask (None) the box alone decides the crop.
    `box_xywh` (x, y, w, h) px may be partly outside the image (amodal); `NO_BOX`: the mask alone decides.
    """

    obj_id: int
    score: float
    box_xywh: tuple[float, float, float, float]
    mask: MaskSource | None
    time_s: float
    """The detector's time for the whole image; negative when it is not known."""


@dataclass(frozen=True)
class Target:
    """A target of the localisation task (BOP19): `inst_count` instances of an object in an image."""

    scene_id: int
    im_id: int
    obj_id: int
    inst_count: int


@dataclass(frozen=True)
class ImageTarget:
    """A target of the detection task (BOP24): an image; its `max_estimates` best-scored estimates are counted."""

    scene_id: int
    im_id: int
    max_estimates: int


AnyTarget = Target | ImageTarget
"""The targets of a run or a result file are all of one kind."""


@dataclass(frozen=True)
class QueryBatch:
    """Crops of B detections, possibly of several images and objects.

    `inputs` (B,3,224,224) f32 normalised BGR; `masks` (B,224,224) bool; `A_crop_from_image` (B,3,3); `K` (B,3,3);
    `obj_ids` (B,).
    """

    inputs: Array
    masks: Array
    A_crop_from_image: Array
    K: Array
    obj_ids: Array

    def __post_init__(self) -> None:
        count = len(self.inputs)
        _check_shape("inputs", self.inputs, None, 3, CROP_PX, CROP_PX)
        _check_shape("masks", self.masks, count, CROP_PX, CROP_PX)
        _check_shape("A_crop_from_image", self.A_crop_from_image, count, 3, 3)
        _check_shape("K", self.K, count, 3, 3)
        _check_shape("obj_ids", self.obj_ids, count)


@dataclass(frozen=True)
class Correspondences:
    """2D-3D pairs of one hypothesis: `uv_image` (N,2) px, `xyz_obj_m` (N,3) metres, `certainty` (N,) in [0, 1]."""

    uv_image: Array
    xyz_obj_m: Array
    certainty: Array

    def __post_init__(self) -> None:
        _check_shape("uv_image", self.uv_image, None, 2)
        _check_shape("xyz_obj_m", self.xyz_obj_m, len(self.uv_image), 3)
        _check_shape("certainty", self.certainty, len(self.uv_image))


@dataclass(frozen=True)
class PoseEstimate:
    """One row of a result file: `T_cam_from_obj` (4,4) f64 with translation in metres, `time_s` of the whole image."""

    scene_id: int
    im_id: int
    obj_id: int
    score: float
    T_cam_from_obj: Array
    time_s: float

    def __post_init__(self) -> None:
        _check_shape("T_cam_from_obj", self.T_cam_from_obj, 4, 4)


@dataclass(frozen=True)
class GroundTruth:
    """One annotated instance: `T_cam_from_obj` (4,4) f64 metres, `visib_fract` up to 1 (1 where the set has none).

    At a `visib_fract` of 0, or negative where it is unknown, the pose may be a placeholder that is no rotation.
    """

    scene_id: int
    im_id: int
    gt_id: int
    """Index of the instance in its image's annotation list: names its mask file."""
    obj_id: int
    T_cam_from_obj: Array
    visib_fract: float

    def __post_init__(self) -> None:
        _check_shape("T_cam_from_obj", self.T_cam_from_obj, 4, 4)


@dataclass(frozen=True)
class ObjectInfo:
    """What `models_info.json` says of an object, in metres.

    `diameter_m`; `symmetries_discrete` (S,4,4) without the identity, S may be 0; `symmetries_continuous` tuples of
    (axis (3,), offset (3,) metres).
    """

    obj_id: int
    diameter_m: float
    symmetries_discrete: Array
    symmetries_continuous: tuple[tuple[Array, Array], ...]

    @property
    def is_symmetric(self) -> bool:
        """Whether any symmetry is known."""
        return bool(len(self.symmetries_discrete) or self.symmetries_continuous)

    def __post_init__(self) -> None:
        _check_shape("symmetries_discrete", self.symmetries_discrete, None, 4, 4)
