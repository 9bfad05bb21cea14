"""What must hold for the scores of any data set, on small generated ones without files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.meshes import make_ball, make_box
from helpers.poses import random_rotation
from hypothesis import given, settings
from hypothesis import strategies as st

from picopose_cli.base.cameras import Pinhole
from picopose_cli.base.geometry import make_T
from picopose_cli.base.symmetries import symmetry_transforms
from picopose_cli.base.types import GroundTruth, ImageTarget, Mesh, ObjectInfo, Target
from picopose_cli.rendering.software import render_depth
from picopose_cli.scoring.detection import DetectionScores, detection_precisions
from picopose_cli.scoring.localisation import LocalisationScores, localisation_tallies
from picopose_cli.scoring.pair_errors import ObjectModel
from picopose_cli.scoring.parallel import ImageJob, ImageScorer, score_images
from picopose_cli.scoring.selection import Estimates, select_detection, select_localisation

K = np.array([[200.0, 0, 79.5], [0, 200, 60.2], [0, 0, 1]])
SIZE_HW = (120, 160)
SEEDS = st.integers(0, 2**32 - 1)
HALF_TURNS = make_T(
    np.array([np.diag([-1.0, -1, 1]), np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1])]), np.zeros((3, 3))
)

MESHES = {
    0: make_box((0.08, 0.1, 0.06)),  # ids start at 0: that is an object too
    4: make_box((0.05, 0.11, 0.08)),  # turned by half turns it looks the same
    9: make_ball((0.04, 0.04, 0.06)),  # looks the same from all sides of its axis
}
INFOS = {
    0: ObjectInfo(0, 0.1414, np.empty((0, 4, 4)), ()),
    4: ObjectInfo(4, 0.1449, HALF_TURNS, ()),
    9: ObjectInfo(9, 0.12, np.empty((0, 4, 4)), ((np.array([0.0, 0, 1]), np.zeros(3)),)),
}
OBJECTS = {
    obj_id: ObjectModel(obj_id, mesh.vertices_m, INFOS[obj_id].diameter_m, symmetry_transforms(INFOS[obj_id]))
    for obj_id, mesh in MESHES.items()
}


def render(obj_id, _, xyz_cam_m, camera, box):
    return render_depth(Mesh(xyz_cam_m, MESHES[obj_id].faces), camera, np.eye(4), box)


@dataclass(frozen=True)
class World:
    """Images of objects with their measured depth, all of them visible."""

    instances: dict
    targets: list
    depths: dict

    def results(self):
        """The ground truth as estimates with different scores."""
        everything = [instance for image in sorted(self.instances) for instance in self.instances[image]]
        return Estimates(
            np.array([instance.scene_id for instance in everything]),
            np.array([instance.im_id for instance in everything]),
            np.array([instance.obj_id for instance in everything]),
            np.linspace(0.9, 0.5, len(everything)),
            np.stack([instance.T_cam_from_obj for instance in everything]),
        )

    def localise(self, estimates):
        selection = select_localisation(estimates, self.targets, self.instances)
        return LocalisationScores(localisation_tallies(self._errors(selection)), None)

    def detect(self, estimates):
        targets = [ImageTarget(*image, max_estimates=100) for image in sorted(self.instances)]
        selection = select_detection(estimates, targets, self.instances)
        return DetectionScores(detection_precisions(self._errors(selection)), None)

    def _errors(self, selection):
        jobs = [
            ImageJob(*image, Pinhole(K), SIZE_HW, objects, depth_path=image)
            for image, objects in selection.images.items()
        ]  # no files: the "path" is the image itself
        scorer = ImageScorer(OBJECTS, 0.015, lambda _, image: self.depths[image], render)
        return [pairs for _, errors in score_images(scorer, jobs, 1) for pairs in errors]


def make_world(seed: int, objects=(0, 4, 9), *, all_targets: bool = True) -> World:
    """Two images of up to five objects; unless `all_targets`, only some of the instances are targets."""
    rng = np.random.default_rng(seed)
    instances, targets, depths = {}, [], {}
    for im_id in range(2):
        image = (7, im_id)
        places_m = rng.permutation([(-0.16, -0.07), (0.0, -0.07), (0.16, -0.07), (-0.1, 0.09), (0.1, 0.09)])
        obj_ids = rng.choice(objects, rng.integers(2, 6))
        instances[image], depths[image] = [], np.full(SIZE_HW, np.inf, np.float32)
        for gt_id, (obj_id, place) in enumerate(zip(obj_ids.tolist(), places_m, strict=False)):
            T = make_T(random_rotation(rng), np.array([*place, 0.6 + 0.1 * rng.random()]))
            instances[image].append(GroundTruth(*image, gt_id, obj_id, T, float(rng.uniform(0.1, 1))))
            depth = render_depth(MESHES[obj_id], K, T, (0, 0, SIZE_HW[1], SIZE_HW[0]))
            depths[image] = np.minimum(depths[image], np.where(depth > 0, depth, np.inf))
        depths[image][~np.isfinite(depths[image])] = rng.choice([0.0, 1.5])
        depths[image][rng.random(SIZE_HW) < 0.1] = 0
        counts = Counter(obj_ids.tolist())
        inst_counts = {
            obj_id: count if all_targets else int(rng.integers(1, count + 1)) for obj_id, count in counts.items()
        }
        targets += [Target(*image, obj_id, count) for obj_id, count in inst_counts.items()]
    return World(instances, targets, depths)


def changed(estimates: Estimates, T_cam_from_obj) -> Estimates:
    return Estimates(estimates.scene_id, estimates.im_id, estimates.obj_id, estimates.score, T_cam_from_obj)


def joined(a: Estimates, b: Estimates) -> Estimates:
    return Estimates(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in a.__dataclass_fields__))


def taken(estimates: Estimates, rows) -> Estimates:
    return Estimates(*(getattr(estimates, name)[rows] for name in estimates.__dataclass_fields__))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_ground_truth_scores_exactly_one(seed):
    world = make_world(seed)
    localised = world.localise(world.results()).summary()
    assert {localised[key] for key in localised if "recall" in key} == {1.0}
    detected = world.detect(world.results()).summary()
    assert {detected[key] for key in detected if "mAP" in key} == {1.0}


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_objects_turned_by_their_symmetries_score_one(seed):
    world, rng = make_world(seed, objects=(4, 9)), np.random.default_rng(seed)
    truth = world.results()
    turns = [OBJECTS[obj_id].symmetries for obj_id in truth.obj_id.tolist()]
    turned = np.stack([T @ rng.choice(symmetries) for T, symmetries in zip(truth.T_cam_from_obj, turns, strict=True)])
    localised = world.localise(changed(truth, turned)).summary()
    assert {localised[key] for key in localised if "recall" in key} == {1.0}
    assert world.detect(changed(truth, turned)).summary()["bop24_mAP"] == 1


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_a_lower_scored_estimate_beyond_the_count_changes_nothing(seed):
    world, rng = make_world(seed, all_targets=False), np.random.default_rng(seed)
    truth = world.results()
    noisy = changed(truth, truth.T_cam_from_obj @ make_T(np.eye(3), rng.normal(0, 0.01, (len(truth.score), 3))))
    worse = changed(noisy, noisy.T_cam_from_obj @ make_T(np.eye(3), np.array([0.0, 0.02, 0])))
    worse = Estimates(worse.scene_id, worse.im_id, worse.obj_id, worse.score - 0.5, worse.T_cam_from_obj)
    assert world.localise(joined(noisy, worse)).summary() == world.localise(noisy).summary()


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_order_of_rows_changes_nothing(seed):
    world, rng = make_world(seed, all_targets=False), np.random.default_rng(seed)
    truth = world.results()
    noisy = changed(truth, truth.T_cam_from_obj @ make_T(np.eye(3), rng.normal(0, 0.015, (len(truth.score), 3))))
    again = Estimates(truth.scene_id, truth.im_id, truth.obj_id, truth.score / 3, noisy.T_cam_from_obj)
    twice = joined(noisy, again)
    shuffled = taken(twice, rng.permutation(len(twice.score)))
    assert world.localise(shuffled).summary(per_object=True) == world.localise(twice).summary(per_object=True)
    assert world.detect(shuffled).summary(per_object=True) == world.detect(twice).summary(per_object=True)


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_worse_poses_never_score_better(seed):
    world, rng = make_world(seed, objects=(0,)), np.random.default_rng(seed)
    truth = world.results()
    directions = rng.standard_normal((len(truth.score), 3)) * [1, 1, 0]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    last = {"vsd": 1.0, "mssd": 1.0, "mspd": 1.0}
    for noise_m in (0.0, 0.002, 0.006, 0.015, 0.04):  # nobody comes near another instance
        T = truth.T_cam_from_obj.copy()
        T[:, :3, 3] += noise_m * directions
        total = world.localise(changed(truth, T)).total
        averages = {error: total.average_recall(error) for error in last}
        assert all(averages[error] <= last[error] for error in last)
        last = averages
    assert sum(last.values()) < 1


@pytest.mark.parametrize("error", ["mssd", "mspd", "vsd"])
def test_each_error_falls_with_larger_turns(error):
    world = make_world(11, objects=(0,))
    truth = world.results()
    averages = []
    for angle in np.radians([0, 4, 10, 20, 40]):
        R = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        turned = truth.T_cam_from_obj @ make_T(R, np.zeros(3))
        averages.append(world.localise(changed(truth, turned)).total.average_recall(error))
    assert averages == sorted(averages, reverse=True)
    assert averages[0] > averages[-1]
