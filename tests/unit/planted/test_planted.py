"""The planted world, against the probabilities it was planted with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.planted.dictionaries import PlantedWorld, planted_world
from vision_sae.errors import InvalidInputError

ROWS = 40_000


@pytest.fixture(scope="module")
def world() -> PlantedWorld:
    return planted_world(0)


@pytest.fixture(scope="module")
def on(world: PlantedWorld) -> Tensor:
    return (world.sample(ROWS).activations > 0).double()


def within_chance(counted: Tensor, probability: Tensor) -> bool:
    """Whether shares of `ROWS` rows lie within five standard deviations of their probability."""
    spread = (probability * (1 - probability) / ROWS).sqrt()
    return bool(((counted - probability).abs() < 5 * spread).all())


def test_atoms_are_unit_directions(world: PlantedWorld) -> None:
    assert world.atoms.shape == (64, 32)
    torch.testing.assert_close(world.atoms.norm(dim=1), torch.ones(64))


def test_atoms_that_fit_are_orthonormal() -> None:
    atoms = planted_world(0, atoms=24, dim=32, children=4, active=2.0).atoms
    torch.testing.assert_close(atoms @ atoms.T, torch.eye(24), atol=1e-6, rtol=0)


def test_frequencies_follow_the_power_law_and_sum_to_the_active_atoms() -> None:
    world = planted_world(0, active=2.0, exponent=0.5)
    assert float(world.frequencies.sum()) == pytest.approx(2)
    # Atom 3 has rank 4: 4 ** -0.5 is half of 1.
    assert float(world.frequencies[0] / world.frequencies[3]) == pytest.approx(2)


def test_atoms_are_on_as_often_as_planted(world: PlantedWorld, on: Tensor) -> None:
    assert within_chance(on.mean(0), world.frequencies)


def test_parents_are_at_least_twice_as_frequent(world: PlantedWorld) -> None:
    children = torch.nonzero(world.parents >= 0).flatten()
    parents = world.parents[children]
    assert len(children) == 16
    assert (world.frequencies[parents] >= 2 * world.frequencies[children]).all()
    assert (parents < children).all()


def test_children_are_on_only_where_their_parent_is(world: PlantedWorld, on: Tensor) -> None:
    for parent in set(world.parents.tolist()) - {-1}:
        for child in world.children(parent):
            assert not (on[:, child] * (1 - on[:, parent])).any()


def test_a_grandchild_needs_both_its_ancestors() -> None:
    world = planted_world(0, atoms=64, exponent=1.0, active=1.5, children=48)
    assert world.depth.max() >= 2
    on = (world.sample(ROWS).activations > 0).double()
    assert within_chance(on.mean(0), world.frequencies)
    deepest = int(world.depth.argmax())
    parent = int(world.parents[deepest])
    assert world.depth[deepest] == world.depth[parent] + 1


def test_roots_of_a_group_come_together(world: PlantedWorld, on: Tensor) -> None:
    # A group is on with probability 1/4. Its roots are then on 3 times as often, else 1/3 times:
    # (1 - 3/4) / (3/4). Two of them are on together 1/4 * 9 + 3/4 * 1/9 = 7/3 times as often as by
    # chance, roots of two groups just as often.
    roots = torch.nonzero(world.parents < 0).flatten()
    p, groups = world.frequencies[roots], world.groups[roots]
    together = on[:, roots].T @ on[:, roots] / ROWS
    same = groups[:, None] == groups
    expected = torch.outer(p, p) * torch.where(same, 7 / 3, 1.0)
    apart = ~torch.eye(len(roots), dtype=torch.bool)
    assert within_chance(together[apart], expected[apart])
    assert torch.bincount(groups).tolist() == [4] * 12


def test_without_lift_roots_are_independent() -> None:
    world = planted_world(1, lift=1.0, children=0, atoms=8)
    on = (world.sample(ROWS).activations > 0).double()
    p, apart = world.frequencies, ~torch.eye(8, dtype=torch.bool)
    assert within_chance((on.T @ on / ROWS)[apart], torch.outer(p, p)[apart])


def test_a_child_is_of_its_parents_group(world: PlantedWorld) -> None:
    children = torch.nonzero(world.parents >= 0).flatten()
    assert torch.equal(world.groups[children], world.groups[world.parents[children]])


def test_rows_are_sums_of_their_atoms() -> None:
    world = planted_world(0, noise=0.0)
    vectors, activations = world.sample(500)
    torch.testing.assert_close(vectors, activations @ world.atoms)
    assert vectors.dtype == activations.dtype == torch.float32


def test_strengths_lie_around_one(world: PlantedWorld) -> None:
    strengths = world.sample(5000).activations
    strengths = strengths[strengths > 0]
    assert strengths.min() >= 0.5
    assert strengths.max() <= 1.5
    assert float(strengths.mean()) == pytest.approx(1, abs=0.01)


def test_noise_has_the_planted_deviation() -> None:
    world = planted_world(0, noise=0.3)
    vectors, activations = world.sample(4000)
    assert float((vectors - activations @ world.atoms).std()) == pytest.approx(0.3, rel=0.01)


def test_same_seed_same_world_and_rows(world: PlantedWorld) -> None:
    again = planted_world(0)
    assert torch.equal(again.atoms, world.atoms)
    assert torch.equal(again.parents, world.parents)
    assert torch.equal(again.sample(10).vectors, world.sample(10).vectors)


def test_other_seeds_are_other_worlds_and_rows(world: PlantedWorld) -> None:
    assert not torch.equal(planted_world(1).atoms, world.atoms)
    assert not torch.equal(world.sample(10, seed=1).vectors, world.sample(10).vectors)
    # Alike in all but their directions, and yet what is on differs.
    a, b = (planted_world(seed, children=0, lift=1.0).sample(10) for seed in (0, 1))
    assert not torch.equal(a.activations, b.activations)


def test_blocks_are_the_sample_in_bounded_pieces(world: PlantedWorld) -> None:
    blocks = list(world.blocks(10_000))
    assert [len(block.vectors) for block in blocks] == [4096, 4096, 1808]
    assert torch.equal(torch.cat([b.vectors for b in blocks]), world.sample(10_000).vectors)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"atoms": 0}, "atoms"),
        ({"dim": 0}, "dim"),
        ({"group_size": 0}, "group_size"),
        ({"lift": 5.0}, "lift"),
        ({"lift": 0.5}, "lift"),
        ({"group_rate": 1.0, "lift": 1.0}, "lift"),
        ({"active": 10.0}, "active"),
        ({"exponent": 0.0}, "children"),
    ],
)
def test_arguments_without_a_world_are_refused(arguments: dict[str, float], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        planted_world(0, **arguments)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_no_rows_are_refused(world: PlantedWorld) -> None:
    with pytest.raises(InvalidInputError, match="0 rows"):
        world.sample(0)
