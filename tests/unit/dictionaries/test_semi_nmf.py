from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import nnls
from torch import Tensor

from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kinds import semi_nmf
from vision_sae.dictionaries.kinds.semi_nmf import SemiNmf, factorisations
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.protocol import Dictionary, to_dense
from vision_sae.errors import InvalidInputError


def planted(rows: int = 2000, width: int = 6, dim: int = 16) -> tuple[Tensor, Tensor]:
    """(vectors, atoms of either sign): sparse non-negative mixtures, noise, and an offset."""
    generator = torch.Generator().manual_seed(0)
    atoms = F.normalize(torch.randn(width, dim, generator=generator))
    codes = torch.rand(rows, width, generator=generator)
    codes = 5 * codes * (torch.rand(rows, width, generator=generator) < 0.3)
    return codes @ atoms + 0.05 * torch.randn(rows, dim, generator=generator) + 1, atoms


def problem(seed: int, dim: int = 5, width: int = 4, columns: int = 30) -> tuple[Tensor, Tensor]:
    """A (D, N) and a first Y (F, N), float64."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(dim, columns, generator=generator, dtype=torch.float64)
    return a, torch.rand(width, columns, generator=generator, dtype=torch.float64)


def test_semi_nmf_is_a_dictionary() -> None:
    assert isinstance(SemiNmf(w_dec=torch.eye(2), b_dec=torch.zeros(2)), Dictionary)


def test_first_updates_by_hand() -> None:
    # Z = A Y' / Y Y' = (2 + 4) / 2 = 3, |(2, 4) - (3, 3)|^2 = 2. Then Z'A = (6, 12), Z'Z Y = 9, so
    # Y = (sqrt(6/9), sqrt(12/9)).
    a, y = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 1.0]])
    first, second = islice(factorisations(a, y), 2)
    torch.testing.assert_close(first.z, torch.tensor([[3.0]]))
    assert first.objective == pytest.approx(2)
    torch.testing.assert_close(second.y, torch.tensor([[(2 / 3) ** 0.5, (4 / 3) ** 0.5]]))


def test_update_is_that_of_the_paper() -> None:
    a, y = problem(0)
    first, second = islice(factorisations(a, y), 2)
    z, y = first.z.numpy(), y.numpy()
    along, gram = z.T @ a.numpy(), z.T @ z
    up = (abs(along) + along) / 2 + (abs(gram) - gram) / 2 @ y
    down = (abs(along) - along) / 2 + (abs(gram) + gram) / 2 @ y
    np.testing.assert_allclose(second.y.numpy(), y * np.sqrt(up / down))
    np.testing.assert_allclose(z, a.numpy() @ y.T @ np.linalg.inv(y @ y.T))


@pytest.mark.parametrize("seed", range(5))
def test_objective_never_rises(seed: int) -> None:
    a, y = problem(seed)
    objectives = [state.objective for state in islice(factorisations(a, y), 100)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(objectives))
    assert objectives[-1] < 0.8 * objectives[0]


@pytest.mark.parametrize("seed", range(5))
def test_objective_never_rises_within_a_support(seed: int) -> None:
    a, y = problem(seed)
    support = torch.rand(5, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
    states = list(islice(factorisations(a, y, support), 100))
    objectives = [state.objective for state in states]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(objectives))
    assert all(not state.z[~support].any() for state in states)


def test_objective_is_that_of_the_factors() -> None:
    a, y = problem(1)
    for state in islice(factorisations(a, y), 3):
        assert state.objective == pytest.approx(float((a - state.z @ state.y).square().sum()))


def test_a_feature_that_never_fires_does_no_harm() -> None:
    a, y = problem(2)
    y[1] = 0
    objectives = [state.objective for state in islice(factorisations(a, y), 20)]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(objectives))


def test_vectors_in_pieces_give_the_same_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    a, y = problem(3)
    whole = list(islice(factorisations(a, y), 5))[-1]
    monkeypatch.setattr(semi_nmf, "_COLUMNS", 7)
    pieces = list(islice(factorisations(a, y), 5))[-1]
    torch.testing.assert_close(pieces.z, whole.z)
    torch.testing.assert_close(pieces.y, whole.y)


def test_planted_atoms_are_found_again() -> None:
    x, atoms = planted()
    found = SemiNmf.fit(x.split(300), width=6)
    assert evaluate(found, [x]).explained_variance > 0.9
    assert (found.decoder @ atoms.T).max(0).values.mean() > 0.8


def test_fit_goes_on_until_the_objective_falls_by_less_than_the_tolerance() -> None:
    x, _ = planted(500)
    few, many = (
        evaluate(SemiNmf.fit([x], width=6, tolerance=tolerance), [x]).explained_variance
        for tolerance in (1, 1e-4)
    )
    assert many > few + 0.01


def test_directions_have_unit_norm_and_the_bias_is_the_mean() -> None:
    x, _ = planted()
    found = SemiNmf.fit([x], width=6)
    torch.testing.assert_close(found.decoder.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(found.bias, x.mean(0))


def test_codes_are_the_ridge_optimum() -> None:
    # A ridge of 1e-3 is least squares with 6 further rows sqrt(1e-3) * identity, all to be 0.
    x, _ = planted(100)
    found = SemiNmf.fit([x], width=6)
    matrix = np.vstack([found.decoder.numpy().T, 1e-3**0.5 * np.eye(6)]).astype(np.float64)
    wanted = np.hstack([(x - found.bias).numpy(), np.zeros((100, 6))]).astype(np.float64)
    expected = np.stack([nnls(matrix, row)[0] for row in wanted])
    np.testing.assert_allclose(to_dense(found.encode(x), 6).numpy(), expected, atol=1e-4)


def test_directions_that_cancel_do_not_make_huge_codes() -> None:
    # (1, 0) and (-1, 1e-5) sum to almost nothing: without a ridge 1e5 of each would make (0, 1).
    w_dec = F.normalize(torch.tensor([[1.0, 0.0], [-1.0, 1e-5]]))
    codes = SemiNmf(w_dec=w_dec, b_dec=torch.zeros(2)).encode(torch.tensor([[0.0, 1.0]]))
    assert codes.values.max() < 1


def test_code_does_not_depend_on_who_shares_the_batch() -> None:
    x, _ = planted(100)
    found = SemiNmf.fit([x], width=6)
    alone = torch.cat([to_dense(found.encode(row[None]), 6) for row in x])
    torch.testing.assert_close(to_dense(found.encode(x), 6), alone)


def test_k_limits_the_features_of_a_row() -> None:
    x, _ = planted(200)
    codes = SemiNmf.fit([x], width=6, k=2).encode(x)
    assert (codes.values > 0).sum(1).max() == 2


def test_nonzeros_limits_the_dimensions_of_a_direction() -> None:
    x, _ = planted()
    sparse = SemiNmf.fit([x], width=6, nonzeros=3)
    assert (sparse.decoder != 0).sum(1).tolist() == [3] * 6


def test_sparse_directions_are_fitted_again_not_only_cut() -> None:
    x, _ = planted()
    whole = SemiNmf.fit([x], width=6)
    kept = whole.decoder.abs().topk(6, dim=1).indices
    cut = torch.zeros(6, 16).scatter_(1, kept, whole.decoder.gather(1, kept))
    merely_cut = SemiNmf(w_dec=F.normalize(cut), b_dec=whole.bias)
    fitted = SemiNmf.fit([x], width=6, nonzeros=6)
    gain = evaluate(fitted, [x]).mse / evaluate(merely_cut, [x]).mse
    assert gain < 0.98


def test_same_seed_same_directions_however_the_stream_is_cut() -> None:
    x, _ = planted(300)
    a, b = (SemiNmf.fit(x.split(size), width=4, rows=100, seed=2) for size in (11, 300))
    assert torch.equal(a.decoder, b.decoder)


def test_more_features_than_vectors_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="10 site vectors"):
        SemiNmf.fit([torch.randn(10, 3)], width=11)


def test_directions_without_dimensions_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="nonzeros is 0"):
        SemiNmf.fit([torch.randn(10, 3)], width=2, nonzeros=0)


def test_saved_directions_come_back(tmp_path: Path) -> None:
    x, _ = planted(200)
    found = SemiNmf.fit([x], width=6, k=3)
    back = read_weights(tmp_path, found.save(tmp_path))
    assert torch.equal(back.encode(x).values, found.encode(x).values)
    torch.testing.assert_close(back.decode(back.encode(x)), found.decode(found.encode(x)))
