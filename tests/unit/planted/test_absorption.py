from __future__ import annotations

import pytest
import torch

from tests.planted.absorption import (
    Absorption,
    AbsorptionCounter,
    AbsorptionReport,
    planted_absorption,
)
from tests.planted.dictionaries import PlantedWorld, planted_world
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError

# Ten rows: four with the parent alone, four with parent and child, two with neither.
PARENT = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
CHILD = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
# Feature 0 fires on three parents alone and on one with a child; feature 1 on the other three.
FEATURE = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1, 1, 1])
VALUE = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1, 0, 1])


def counted(width: int = 2) -> AbsorptionCounter:
    counter = AbsorptionCounter(width)
    for rows in (slice(0, 3), slice(3, 10)):
        codes = Codes(FEATURE[rows, None], VALUE[rows, None])
        counter.add(codes, PARENT[rows], CHILD[rows])
    return counter


def test_absorption_by_hand() -> None:
    # Feature 0 fires on 4 rows, all of them parents: F1 = 2 * 4 / (4 + 8). Feature 1 fires on 4
    # rows, 3 of them parents: 2 * 3 / (4 + 8). The gap of feature 0 is 3/4 - 1/4.
    found = counted().result()
    assert found == Absorption(0, pytest.approx(2 / 3), 0.75, 0.25)
    assert found.gap == 0.5


@pytest.mark.parametrize("child", [torch.zeros(10), torch.ones(10)])
def test_gap_needs_parents_with_and_without_child(child: torch.Tensor) -> None:
    counter = AbsorptionCounter(2)
    counter.add(Codes(FEATURE[:, None], VALUE[:, None]), PARENT, child.bool())
    with pytest.raises(InvalidInputError, match="more rows"):
        counter.result()


def one_family() -> PlantedWorld:
    """Orthonormal atoms without noise; one of them has a child."""
    return planted_world(0, atoms=16, dim=16, children=1, active=1.5, noise=0.0)


def oracle(world: PlantedWorld, *, absorbed: bool) -> TopKSae:
    """A feature for each atom; with ``absorbed``, a parent's is switched off by its child."""
    encoder = world.atoms.clone()
    for parent in set(world.parents.tolist()) - {-1} if absorbed else ():
        encoder[parent] -= 10 * world.atoms[world.children(parent)].sum(0)
    width, dim = world.atoms.shape
    return TopKSae(
        k=width,
        w_enc=encoder,
        b_enc=torch.full((width,), -0.1),  # strengths are 0.5 and more, rounding is 1e-7
        w_dec=world.atoms,
        b_dec=torch.zeros(dim),
    )


def test_dictionary_of_the_atoms_themselves_has_no_gap() -> None:
    world = one_family()
    report = planted_absorption(world, [oracle(world, absorbed=False)] * 3, rows=5000)
    (parent,) = report.parents
    assert [row[0] for row in report.found] == [Absorption(parent, 1, 1, 1)] * 3
    assert report.mean == 0


def test_absorbed_parent_has_the_whole_gap() -> None:
    world = one_family()
    report = planted_absorption(world, [oracle(world, absorbed=True)] * 3, rows=5000)
    (found,) = report.found[0]
    assert (found.feature, found.on_without_child, found.on_with_child) == (report.parents[0], 1, 0)
    assert report.mean == 1


def test_every_parent_of_the_world_is_measured() -> None:
    world = planted_world(3, atoms=32, dim=32, children=8, active=3.0, noise=0.0)
    report = planted_absorption(world, [oracle(world, absorbed=False)] * 3, rows=20_000)
    assert set(report.parents) == set(world.parents.tolist()) - {-1}
    assert tuple(a.feature for a in report.found[0]) == report.parents


def test_report_averages_parents_then_dictionaries() -> None:
    # Gaps of (0.2, 0.4), (0.1, 0.3), (0.6, 0.8): means 0.3, 0.2, 0.7. Their mean is 0.4, their
    # deviations -0.1, -0.2, 0.3: variance 0.14 / 2, standard error sqrt(0.07 / 3).
    rows = [(0.2, 0.4), (0.1, 0.3), (0.6, 0.8)]
    found = tuple(tuple(Absorption(0, 1.0, gap, 0.0) for gap in row) for row in rows)
    report = AbsorptionReport((1, 2), found)
    assert report.gaps == pytest.approx((0.3, 0.2, 0.7))
    assert report.mean == pytest.approx(0.4)
    assert report.standard_error == pytest.approx((0.07 / 3) ** 0.5)


def test_fewer_than_three_dictionaries_are_refused() -> None:
    world = one_family()
    with pytest.raises(InvalidInputError, match="at least 3"):
        planted_absorption(world, [oracle(world, absorbed=False)] * 2)


def test_a_world_without_hierarchy_is_refused() -> None:
    world = planted_world(0, children=0)
    with pytest.raises(InvalidInputError, match="no hierarchy"):
        planted_absorption(world, [oracle(world, absorbed=False)] * 3)
