from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.decomposition import MiniBatchNMF
from torch import Tensor

from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kinds.nmf import Nmf
from vision_sae.dictionaries.protocol import Dictionary, to_dense
from vision_sae.errors import InvalidInputError


def parts(rows: int = 200, width: int = 4, dim: int = 12) -> Tensor:
    """Non-negative mixtures of ``width`` non-negative parts."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.rand(width, dim, generator=generator)
    codes = torch.rand(rows, width, generator=generator)
    return codes * (codes > 0.5) @ atoms


def two_parts(k: int | None = None) -> Nmf:
    return Nmf(w_dec=torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]), b_dec=torch.zeros(3), k=k)


def test_nmf_is_a_dictionary() -> None:
    assert isinstance(two_parts(), Dictionary)


def test_encode_by_hand() -> None:
    nmf = two_parts()
    # 2 * (1, 0, 0) + 5 * (0, 0.6, 0.8), and (1, 0, 0) * 3 with something that no part can reach.
    codes = nmf.encode(torch.tensor([[2.0, 3.0, 4.0], [3.0, -1.0, 0.0]]))
    assert codes.indices.tolist() == [[0, 1], [0, 0]]
    torch.testing.assert_close(codes.values, torch.tensor([[2.0, 5.0], [3.0, 0.0]]))
    torch.testing.assert_close(nmf.decode(codes), torch.tensor([[2.0, 3.0, 4.0], [3.0, 0.0, 0.0]]))


def test_codes_equal_scipys_non_negative_least_squares() -> None:
    x = parts()
    nmf = Nmf.fit([x], width=4)
    expected = [nnls(nmf.decoder.double().numpy().T, row.double().numpy())[0] for row in x]
    np.testing.assert_allclose(to_dense(nmf.encode(x), 4).numpy(), np.stack(expected), atol=1e-4)


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")
def test_reconstruction_is_at_least_as_good_as_scikit_learns() -> None:
    x = parts()
    theirs = MiniBatchNMF(3, random_state=0).fit(x.numpy())
    ours = Nmf.fit(x.split(64), width=3, seed=0)
    error = (x - ours.decode(ours.encode(x))).norm()
    reconstructed = theirs.transform(x.numpy()) @ theirs.components_
    assert error <= np.linalg.norm(x.numpy() - reconstructed) * (1 + 1e-6)


def test_planted_parts_explain_nearly_everything() -> None:
    x = parts()
    nmf = Nmf.fit([x], width=4)
    assert (x - nmf.decode(nmf.encode(x))).norm() < 0.1 * x.norm()


def test_parts_are_non_negative_of_unit_norm_without_bias() -> None:
    nmf = Nmf.fit([parts()], width=4)
    assert (nmf.decoder >= 0).all()
    torch.testing.assert_close(nmf.decoder.norm(dim=1), torch.ones(4))
    assert not nmf.bias.any()


def test_k_limits_the_parts_of_a_row() -> None:
    codes = two_parts(k=1).encode(torch.tensor([[2.0, 3.0, 4.0]]))
    assert codes.indices.tolist() == [[1]]
    torch.testing.assert_close(codes.values, torch.tensor([[5.0]]))


def test_code_does_not_depend_on_who_shares_the_batch() -> None:
    x = parts()
    nmf = Nmf.fit([x], width=4)
    alone = torch.cat([to_dense(nmf.encode(row[None]), 4) for row in x])
    torch.testing.assert_close(to_dense(nmf.encode(x), 4), alone)


def test_negative_vectors_are_refused_and_told_the_way_out() -> None:
    x = parts()
    x[7, 3] = -0.25
    with pytest.raises(InvalidInputError, match=r"-0\.25.*semi_nmf"):
        Nmf.fit([x], width=4)


def test_a_negative_value_that_was_not_drawn_is_refused_too() -> None:
    x = parts()
    with pytest.raises(InvalidInputError, match="semi_nmf"):
        Nmf.fit([x, -x[:1]], width=1, rows=1, seed=0)


def test_same_seed_same_parts() -> None:
    x = parts()
    a, b = (Nmf.fit(x.split(size), width=3, rows=50, seed=1) for size in (7, 200))
    assert torch.equal(a.decoder, b.decoder)


def test_no_features_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least 1"):
        Nmf.fit([parts()], width=0)


def test_saved_parts_come_back(tmp_path: Path) -> None:
    x = parts()
    nmf = Nmf.fit([x], width=4, k=2)
    back = read_weights(tmp_path, nmf.save(tmp_path))
    assert torch.equal(back.encode(x).values, nmf.encode(x).values)
    torch.testing.assert_close(back.decode(back.encode(x)), nmf.decode(nmf.encode(x)))
