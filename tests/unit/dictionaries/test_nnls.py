from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from vision_sae.dictionaries.nnls import non_negative_codes


def solve(x: Tensor, atoms: Tensor, k: int | None = None) -> Tensor:
    x, atoms = x.double(), atoms.double()
    return non_negative_codes(x @ atoms.T, atoms @ atoms.T, k)


def drawn(seed: int, rows: int, width: int, dim: int, common: float) -> tuple[Tensor, Tensor]:
    """Random vectors and atoms; ``common`` makes the atoms alike, so that many have to leave."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(width, dim, generator=generator) + common
    return torch.randn(rows, dim, generator=generator) + common, atoms


def test_codes_by_hand() -> None:
    # Alone, the atom (1, 1) would take 1.5 of (3, 0); with (1, 0) there it is better absent.
    atoms = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert solve(torch.tensor([[3.0, 0.0]]), atoms).tolist() == [[0, 3]]
    assert solve(torch.tensor([[3.0, 2.0]]), atoms).tolist() == [[2, 1]]
    # (3, -4): (1, 1) would need -4.
    assert solve(torch.tensor([[3.0, -4.0]]), atoms).tolist() == [[0, 3]]


@given(
    seed=st.integers(0, 10_000),
    width=st.integers(1, 12),
    dim=st.integers(1, 12),
    common=st.sampled_from([0.0, 0.5, 3.0]),
    twins=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_reconstruction_is_as_good_as_scipys(
    seed: int, width: int, dim: int, common: float, twins: bool
) -> None:
    x, atoms = drawn(seed, 3, width, dim, common)
    atoms = atoms.repeat(2, 1) if twins else atoms
    codes = solve(x, atoms)
    assert (codes >= 0).all()
    errors = (x - codes @ atoms).norm(dim=1).numpy()
    expected = [nnls(atoms.double().numpy().T, row.double().numpy())[1] for row in x]
    np.testing.assert_allclose(errors, expected, atol=1e-4)


@pytest.mark.parametrize("common", [0.0, 1.0])
@pytest.mark.parametrize(("width", "dim"), [(20, 40), (60, 80)])
def test_codes_of_independent_atoms_equal_scipys(width: int, dim: int, common: float) -> None:
    x, atoms = drawn(0, 20, width, dim, common)
    expected = [nnls(atoms.double().numpy().T, row.double().numpy())[0] for row in x]
    np.testing.assert_allclose(solve(x, atoms).numpy(), np.stack(expected), atol=1e-5)


def test_each_row_is_solved_alone() -> None:
    x, atoms = drawn(1, 40, 30, 20, 0.5)
    alone = torch.cat([solve(row[None], atoms) for row in x])
    torch.testing.assert_close(solve(x, atoms), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_at_most_k_atoms_are_used(k: int) -> None:
    x, atoms = drawn(2, 50, 30, 20, 0.5)
    counts = (solve(x, atoms, k) > 0).sum(1)
    assert counts.max() == k


def test_more_atoms_never_reconstruct_worse() -> None:
    x, atoms = drawn(3, 50, 30, 20, 0.5)
    errors = [(x - solve(x, atoms, k) @ atoms).norm(dim=1) for k in range(1, 31)]
    assert all((b <= a + 1e-5).all() for a, b in pairwise(errors))


def test_k_as_large_as_the_atoms_is_no_limit() -> None:
    x, atoms = drawn(4, 50, 12, 20, 0.5)
    torch.testing.assert_close(solve(x, atoms, 99), solve(x, atoms), atol=1e-5, rtol=0)


def test_the_first_atom_is_the_one_that_fits_best() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0]])
    assert solve(x, torch.eye(3), 1).tolist() == [[0, 3, 0]]


@pytest.mark.parametrize("k", [4, 12])
def test_k_atoms_are_those_of_matching_pursuit(k: int) -> None:
    x, atoms = drawn(5, 10, 40, 30, 0.3)
    atoms = torch.nn.functional.normalize(atoms)
    matrix = atoms.double().numpy()
    for row, found in zip(x.double().numpy(), solve(x, atoms, k).numpy(), strict=True):
        codes, correlations = np.zeros(40), matrix @ row
        while (codes > 0).sum() < k and correlations.max() > 1e-9:
            used = [*np.flatnonzero(codes), correlations.argmax()]
            codes = np.zeros(40)
            codes[used] = nnls(matrix[used].T, row)[0]
            correlations = matrix @ (row - codes @ matrix)
        np.testing.assert_allclose(found, codes, atol=1e-5)


def test_chosen_atoms_are_fitted_together() -> None:
    # (1, 1) / sqrt 2 enters first, with 5 / sqrt 2; once (1, 0) has joined, it keeps 2 sqrt 2.
    atoms = torch.tensor([[2**-0.5, 2**-0.5], [1.0, 0.0], [0.0, 1.0]])
    codes = solve(torch.tensor([[3.0, 2.0]]), atoms, 2)
    torch.testing.assert_close(codes, torch.tensor([[8**0.5, 1.0, 0.0]]))


def test_twin_and_empty_atoms_do_no_harm() -> None:
    atoms = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    codes = solve(torch.tensor([[3.0, 2.0]]), atoms)
    assert (codes @ atoms).tolist() == [[3, 2]]
    assert codes[0, 2] == 0


def test_no_vector_and_a_zero_vector() -> None:
    atoms = torch.eye(3)
    assert solve(torch.zeros(0, 3), atoms).shape == (0, 3)
    assert solve(torch.zeros(2, 3), atoms).tolist() == [[0, 0, 0]] * 2
