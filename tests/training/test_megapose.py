"""MegaPose's web-dataset shards: read in order, shuffled, shared out, resumed; broken entries passed over."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from picopose_cli.base.errors import PicoPoseError
from picopose_cli.base.geometry import make_T, rotation_angle_rad
from picopose_cli.base.types import Mesh, Provenance
from picopose_cli.bop.rle import encode_rle
from picopose_cli.rendering.software import SoftwareRenderer
from picopose_cli.synthesis.objects import make_distinct_mesh
from picopose_cli.synthesis.placement import look_at
from picopose_cli.synthesis.samples import Sample
from picopose_cli.templates.bank import bank_path, write_bank
from picopose_cli.templates.build import join_templates, make_template
from picopose_cli.templates.views import TEMPLATE_SIZE_HW, place_views, template_camera
from picopose_cli.training import megapose
from picopose_cli.training.megapose import ShardOptions, ShardSource
from picopose_cli.training.megapose_files import read_shard

K = np.array([[500.0, 0, 160], [0, 500, 120], [0, 0, 1]])
VIEWS = slice(0, None, 12)
Parts = dict[str, bytes]


def mesh_of(obj_id: int) -> Mesh:
    return make_distinct_mesh([obj_id], (0.1, 0.14), 64)


def write_object_bank(folder: Path, obj_id: int) -> None:
    mesh = mesh_of(obj_id)
    diameter = float(np.linalg.norm(np.ptp(mesh.vertices_m, axis=0)))
    poses, K_tmpl = place_views(diameter)[VIEWS], template_camera()
    renderer = SoftwareRenderer(mesh, K_tmpl, TEMPLATE_SIZE_HW)
    templates = [make_template(renderer.render(T)) for T in poses]
    source = Provenance("toy", "0" * 64, "mm", "software", "", "")
    write_bank(bank_path(folder, obj_id), join_templates(obj_id, templates, K_tmpl, poses, diameter, source))


def image_parts(rng: np.random.Generator, obj_ids: tuple[int, ...] = (1, 2)) -> Parts:
    """An image of objects side by side, in the files of one key."""
    rgb, depth = np.full((240, 320, 3), 70, np.uint8), np.zeros((240, 320), np.float32)
    truths, infos, masks = [], [], {}
    for gt_id, obj_id in enumerate(obj_ids):
        T = make_T(look_at(rng.normal(size=3), 1.0), np.array([-0.08 + 0.16 * gt_id, 0.01, 0.55]))
        view = SoftwareRenderer(mesh_of(obj_id), K, (240, 320)).render(T)
        mask = (view.depth_m > 0) & (depth == 0)
        rgb[mask], depth[mask] = view.rgb[mask], view.depth_m[mask]
        truths.append(
            {"obj_id": obj_id, "cam_R_m2c": T[:3, :3].ravel().tolist(), "cam_t_m2c": (T[:3, 3] * 1000).tolist()}
        )
        infos.append({"px_count_visib": int(mask.sum()), "visib_fract": 1.0})
        rle = encode_rle(mask, compressed=gt_id == 0)  # both kinds occur
        counts = rle.counts.decode() if isinstance(rle.counts, bytes) else list(rle.counts)
        masks[str(gt_id)] = {"counts": counts, "size": list(rle.size)}
    return {
        "rgb.jpg": bytes(cv2.imencode(".jpg", rgb[..., ::-1])[1]),
        "depth.png": bytes(cv2.imencode(".png", np.rint(depth * 10_000).astype(np.uint16))[1]),
        "camera.json": json.dumps({"cam_K": K.ravel().tolist(), "depth_scale": 0.1}).encode(),
        "gt.json": json.dumps(truths).encode(),
        "gt_info.json": json.dumps(infos).encode(),
        "mask_visib.json": json.dumps(masks).encode(),
    }


def write_shard(path: Path, images: dict[str, Parts]) -> None:
    with tarfile.open(path, "w") as archive:
        for key, parts in images.items():
            for name, data in parts.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def banks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("banks")
    for obj_id in (1, 2):
        write_object_bank(folder, obj_id)
    return folder


@pytest.fixture(scope="module")
def images() -> dict[str, Parts]:
    rng = np.random.default_rng(0)
    return {f"{index:06d}_000000": image_parts(rng) for index in range(8)}


def write_folder(folder: Path, images: dict[str, Parts], per_shard: int = 2) -> None:
    keys, shard_of = list(images), {}
    for start in range(0, len(keys), per_shard):
        part = {key: images[key] for key in keys[start : start + per_shard]}
        write_shard(folder / f"shard-{start // per_shard:06d}.tar", part)
        shard_of |= dict.fromkeys(part, start // per_shard)
    (folder / "key_to_shard.json").write_text(json.dumps(shard_of))
    (folder / "gso_models.json").write_text(
        json.dumps([{"obj_id": 1, "gso_id": "cup"}, {"obj_id": 2, "gso_id": "toy"}])
    )


@pytest.fixture(scope="module")
def options(tmp_path_factory, banks, images) -> ShardOptions:
    folder = tmp_path_factory.mktemp("shards")
    write_folder(folder, images)
    return ShardOptions(folder, banks, seed=3, shuffle=4, colour_share=0)


def take(options: ShardOptions, count: int, worker: int = 0, workers: int = 1, start: int = 0) -> list[Sample]:
    return list(islice(ShardSource(options).samples(worker, workers, start), count))


def crops(samples: list[Sample]) -> list[bytes]:
    return [sample.observation.crop_rgb.tobytes() for sample in samples]


def test_samples_hold_what_was_written(options):
    poses = {obj_id: place_views(1.0)[VIEWS] for obj_id in (1, 2)}
    for sample in take(options, 12):
        view, template = sample.observation, sample.template
        assert sample.object_key in {"gso-1", "gso-2"}
        obj_id = int(sample.object_key[-1])
        mesh = mesh_of(obj_id)
        drawn = SoftwareRenderer(mesh, view.K, (240, 320)).render(view.T_cam_from_obj)
        side = 224 / view.A_crop_from_image[0, 0]
        x0, y0 = -view.A_crop_from_image[:2, 2] / view.A_crop_from_image[0, 0]
        index = ((np.arange(64) + 0.5) * side / 64).astype(int)
        expected = drawn.depth_m[np.ix_(round(y0) + index, round(x0) + index)]
        seen = view.depth_centre_m > 0
        assert seen.any()
        assert np.allclose(view.depth_centre_m[seen], expected[seen], atol=1e-4)
        assert view.mask.mean() > 0.1
        angle = min(rotation_angle_rad(pose[:3, :3], template.T_cam_from_obj[:3, :3]) for pose in poses[obj_id])
        assert angle < 1e-6
        assert (template.depth_centre_m > 0).any()


def test_streams_repeat_resume_and_are_shuffled(options):
    first = take(options, 20)
    assert crops(take(options, 20)) == crops(first)
    assert crops(take(options, 4, start=9)) == crops(first[9:13])
    assert crops(take(replace(options, seed=4), 20)) != crops(first)
    assert len(set(crops(first))) > 10


@pytest.mark.parametrize(("worker", "workers"), [(0, 1), (1, 2), (3, 8)])
def test_a_resumed_stream_opens_only_the_shards_that_it_needs(options, monkeypatch, worker, workers):
    """Images before the start are counted once per shard by their annotations, whatever the number of epochs."""
    whole = take(options, 205, worker, workers)
    read = []

    def counted(path: Path, wanted: object = None) -> Iterator[tuple[str, Parts]]:
        for key, parts in read_shard(path, wanted):
            read.append((key, len(parts["rgb.jpg"]) > 0))
            yield key, parts

    monkeypatch.setattr(megapose, "read_shard", counted)
    assert crops(take(options, 5, worker, workers, start=200)) == crops(whole[200:])
    images = [is_read for _, is_read in read]
    assert 2 <= images.count(True) <= 40 * workers
    assert images.count(False) <= 8 * workers


def test_a_resumed_stream_counts_what_follows_only(tmp_path, banks, images):
    changed = dict(images)
    keys = list(changed)
    changed[keys[1]] = BREAK["broken image"](changed[keys[1]])
    changed[keys[4]] = BREAK["no JSON"](changed[keys[4]])
    write_folder(tmp_path, changed)
    options = ShardOptions(tmp_path, banks, shuffle=3, colour_share=0)

    def skipped(start: int, count: int) -> Counter[str]:
        source = ShardSource(options)
        list(islice(source.samples(0, 1, start), count))
        return source.skipped

    whole = skipped(0, 60)
    assert len(whole) == 2
    for first in (7, 20, 21, 33):
        assert skipped(0, first) + skipped(first, 60 - first) == whole


def test_colours_of_most_observations_change_and_nothing_else(options):
    plain, changed = take(options, 40), take(replace(options, colour_share=0.8), 40)
    differ = [a != b for a, b in zip(crops(plain), crops(changed), strict=True)]
    assert 0.6 < np.mean(differ) < 0.95
    for before, after in zip(plain, changed, strict=True):
        np.testing.assert_array_equal(before.observation.T_cam_from_obj, after.observation.T_cam_from_obj)
        np.testing.assert_array_equal(before.observation.mask, after.observation.mask)
        np.testing.assert_array_equal(before.template.crop_rgb, after.template.crop_rgb)


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_share_the_images(options, workers):
    """Two workers get two shards each; eight share every shard's images, there being only four shards."""
    epoch = 16 // workers
    shares = []
    for worker in range(workers):
        shares += [(found.key, found.gt_id) for found in islice(ShardSource(options)._in_order(worker, workers), epoch)]
    assert len(set(shares)) == len(shares) == 16


def test_rarely_seen_instances_are_left_out(tmp_path, banks, images):
    changed = dict(images)
    for key in list(changed)[:7]:
        infos = json.loads(changed[key]["gt_info.json"])
        infos[0]["visib_fract"], infos[1]["px_count_visib"] = 0.29, 1023
        changed[key] = changed[key] | {"gt_info.json": json.dumps(infos).encode()}
    write_folder(tmp_path, changed)
    assert len(set(crops(take(ShardOptions(tmp_path, banks, shuffle=3, colour_share=0), 12)))) == 2


EMPTY_MASKS = json.dumps({key: {"counts": [76800], "size": [240, 320]} for key in "01"}).encode()
BREAK: dict[str, Callable[[Parts], Parts]] = {
    "no image": lambda parts: {name: data for name, data in parts.items() if name != "rgb.jpg"},
    "broken image": lambda parts: parts | {"rgb.jpg": b"\xff\xd8nothing"},
    "empty depth": lambda parts: parts | {"depth.png": b""},
    "no JSON": lambda parts: parts | {"gt.json": b"{["},
    "other JSON": lambda parts: parts | {"gt_info.json": b'{"a": 1}'},
    "lists differ": lambda parts: parts | {"gt_info.json": json.dumps([json.loads(parts["gt_info.json"])[0]]).encode()},
    "NaN pose": lambda parts: parts | {"gt.json": parts["gt.json"].replace(b'"cam_t_m2c": [', b'"cam_t_m2c": [NaN, ')},
    "no camera": lambda parts: parts | {"camera.json": b"{}"},
    "no mask": lambda parts: parts | {"mask_visib.json": b"{}"},
    "wrong mask": lambda parts: parts | {"mask_visib.json": b'{"0": {"counts": "zz", "size": [240, 320]}, "1": 3}'},
    "odd mask": lambda parts: (
        parts | {"mask_visib.json": b'{"0": {"counts": [5], "size": [5, 1]}, "1": {"counts": {}, "size": [9, 9]}}'}
    ),
    "empty mask": lambda parts: parts | {"mask_visib.json": EMPTY_MASKS},
}


@pytest.mark.parametrize("fault", BREAK)
def test_broken_entries_are_counted_and_passed_over(tmp_path, banks, images, fault):
    changed = dict(images)
    for key in list(changed)[1:4]:
        changed[key] = BREAK[fault](changed[key])
    write_folder(tmp_path, changed)
    options = ShardOptions(tmp_path, banks, shuffle=3, colour_share=0)
    source = ShardSource(options)
    samples = list(islice(source.samples(0, 1, 0), 24))
    assert sum(source.skipped.values()) >= 3
    assert len(set(crops(samples))) == 10
    for start in (3, 7, 8):  # a resumed run yields the same samples, also after unusable ones
        assert crops(take(options, 5, start=start)) == crops(samples[start : start + 5])


def test_objects_without_a_bank_are_passed_over(tmp_path, options, banks):
    (tmp_path / "obj_000001.h5").write_bytes((banks / "obj_000001.h5").read_bytes())
    source = ShardSource(replace(options, templates=tmp_path))
    assert {sample.object_key for sample in islice(source.samples(0, 1, 0), 10)} == {"gso-1"}
    assert source.skipped["no template bank"] == 1
    with pytest.raises(PicoPoseError, match="no usable instance"):
        take(replace(options, templates=tmp_path / "nowhere"), 1)


def test_shards_that_cannot_be_read_are_errors(tmp_path, options):
    whole = (options.folder / "shard-000000.tar").read_bytes()
    path = tmp_path / "shard-000000.tar"
    for data in (whole[: len(whole) // 2], b"", b"no tar at all" * 100):
        path.write_bytes(data)
        with pytest.raises(PicoPoseError, match="download it again"):
            list(read_shard(path))


def test_incomplete_folders(tmp_path, options, banks, caplog):
    with pytest.raises(PicoPoseError, match="cannot be listed"):
        ShardSource(ShardOptions(tmp_path / "nowhere", banks))
    with pytest.raises(PicoPoseError, match="no shard"):
        ShardSource(ShardOptions(tmp_path, banks))
    (tmp_path / "shard-000001.tar").write_bytes((options.folder / "shard-000001.tar").read_bytes())
    (tmp_path / "key_to_shard.json").write_text('{"a": 0, "b": 1}')
    with pytest.raises(PicoPoseError, match="contains neither"):
        ShardSource(ShardOptions(tmp_path, banks))
    assert "1 of 2 shards are missing" in caplog.text
    (tmp_path / "shapenet_models.json").write_text('[{"obj_id": 1}, 5]')
    source = ShardSource(ShardOptions(tmp_path, banks, shuffle=1))
    assert {sample.object_key for sample in islice(source.samples(0, 1, 0), 6)} == {"shapenet-1", "obj_000002"}
