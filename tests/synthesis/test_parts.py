"""Parts without texture: closed solids, plates with holes, and the symmetries that are found in shapes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.meshes import count_open_edges, signed_volume

from picopose_cli.base.types import Mesh
from picopose_cli.synthesis.holed import plate
from picopose_cli.synthesis.outlines import signed_area
from picopose_cli.synthesis.parts import PART_KINDS
from picopose_cli.synthesis.shape_symmetries import find_symmetries
from picopose_cli.synthesis.shapes import Shape, bent_box, centred
from picopose_cli.synthesis.solids import circle, joined, moved, rectangle, rod


def symmetries_of(*solids: Shape):
    shape = centred(joined(solids), 0.1)
    return find_symmetries(Mesh(shape.vertices, shape.faces))


@pytest.mark.parametrize("seed", range(8))
def test_a_plate_is_closed_and_lacks_its_holes(seed):
    rng = np.random.default_rng(seed)
    centres = [(x, y) for x in (-0.6, 0, 0.6) for y in (-0.6, 0, 0.6) if rng.random() < 0.7]
    holes = [circle(rng.uniform(0.05, 0.25), centre, int(rng.integers(3, 25))) for centre in centres]
    shape = plate(rectangle(2, 2, 0.3 * (seed % 2)), holes, 0.4)
    area = signed_area(rectangle(2, 2, 0.3 * (seed % 2))) - sum(signed_area(hole) for hole in holes)
    assert count_open_edges(shape) == 0
    assert signed_volume(shape) == pytest.approx(0.4 * area)


def test_a_hole_that_is_not_inside_is_refused():
    with pytest.raises(ValueError, match="cross"):
        plate(rectangle(1, 1), [circle(0.3, (0.5, 0))], 0.1)


@pytest.mark.parametrize("kind", PART_KINDS, ids=lambda kind: kind.__name__)
def test_the_solids_of_a_part_are_closed_and_turned_outward(kind):
    for seed in range(4):
        for solid in kind(np.random.default_rng(seed)):
            assert signed_volume(solid) > 0
            assert count_open_edges(solid) == 0


@pytest.mark.parametrize(
    ("solids", "discrete", "continuous"),
    [
        ([bent_box(np.array([1.0, 0.7, 0.4]))], 3, 0),
        ([bent_box(np.ones(3))], 23, 0),
        ([rod(0.3, 1, (0, 0, 0))], 1, 1),
        ([rod(0.3, 1, (0, 0, 0)), rod(0.5, 0.2, (0, 0, 0))], 0, 1),
        ([rod(0.5, 0.6, (0, 0, 0), steps=6)], 11, 0),
        ([bent_box(np.array([1.0, 0.7, 0.4])), rod(0.15, 0.5, (0, 0, 0))], 1, 0),
        ([bent_box(np.array([1.0, 0.7, 0.4])), moved(rod(0.15, 0.5, (0, 0, 0)), (0.3, 0.1, 0))], 0, 0),
    ],
    ids=("box", "cube", "cylinder", "flanged", "hexagon", "boss in the middle", "boss at a corner"),
)
def test_the_symmetries_of_known_shapes(solids, discrete, continuous):
    found = symmetries_of(*solids)
    assert (len(found.discrete), len(found.continuous)) == (discrete, continuous)


def test_a_hardly_visible_difference_makes_symmetries_ambiguous():
    box = bent_box(np.array([1.0, 0.7, 0.4]))
    assert symmetries_of(box, moved(rod(0.1, 0.02, (0, 0, 0.2)), (0.3, 0.1, 0))) is None
