from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kinds.pca import Pca, mean_and_covariance
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import CorruptArtifactError, InvalidInputError

# About the mean (5, 7), the first axis varies more than the second, and they do not correlate.
CROSS = torch.tensor([[7.0, 7.0], [3.0, 7.0], [5.0, 8.0], [5.0, 6.0]])


def correlated(rows: int, dim: int, mean: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(dim, dim, generator=generator)
    return torch.randn(rows, dim, generator=generator) @ mix + mean


def test_pca_is_a_dictionary() -> None:
    assert isinstance(Pca.fit([CROSS]), Dictionary)


def test_a_component_is_two_features_of_opposite_direction() -> None:
    pca = Pca.fit([CROSS])
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(pca.decoder, expected)
    assert pca.bias.tolist() == [5, 7]


def test_encode_by_hand() -> None:
    # (8, 6) is (3, -1) about the mean: 3 along axis 0 (feature 0), 1 against axis 1 (feature 3).
    codes = Pca.fit([CROSS]).encode(torch.tensor([[8.0, 6.0]]))
    assert codes.indices.tolist() == [[0, 3]]
    torch.testing.assert_close(codes.values, torch.tensor([[3.0, 1.0]]))


def test_components_are_those_of_the_largest_variance() -> None:
    # Only axis 0 is kept, so (8, 6) loses its -1 along axis 1.
    pca = Pca.fit([CROSS], components=1)
    torch.testing.assert_close(
        pca.decode(pca.encode(torch.tensor([[8.0, 6.0]]))), torch.tensor([[8.0, 7.0]])
    )


@pytest.mark.parametrize("components", [1, 5, 12])
def test_reconstruction_equals_that_of_scikit_learn(components: int) -> None:
    x = correlated(300, 12)
    theirs = PCA(components).fit(x.numpy())
    ours = Pca.fit(x.split(64), components=components)
    expected = theirs.inverse_transform(theirs.transform(x.numpy()))
    np.testing.assert_allclose(ours.decode(ours.encode(x)).numpy(), expected, atol=1e-4)


def test_all_components_reconstruct_everything() -> None:
    x = correlated(100, 8)
    pca = Pca.fit([x])
    torch.testing.assert_close(pca.decode(pca.encode(x)), x, atol=1e-4, rtol=0)


def test_each_direction_has_a_positive_largest_entry() -> None:
    positive = Pca.fit([correlated(200, 9)]).decoder[:9]
    assert (positive.gather(1, positive.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("size", [1, 7, 100])
def test_covariance_does_not_depend_on_the_batches(size: int) -> None:
    x = correlated(100, 4)
    mean, covariance = mean_and_covariance(x.split(size))
    np.testing.assert_allclose(mean.numpy(), x.double().mean(0).numpy(), rtol=1e-10)
    np.testing.assert_allclose(covariance.numpy(), np.cov(x.double().numpy().T), rtol=1e-10)


def test_a_large_mean_costs_no_precision() -> None:
    # In float64 the squares of 1e6 leave 4 digits of a variance of 1e-4; about a row all are left.
    x = 1e6 + 1e-2 * torch.randn(1000, 2, dtype=torch.float64)
    _, covariance = mean_and_covariance(x.split(100))
    np.testing.assert_allclose(covariance.numpy(), np.cov((x - 1e6).numpy().T), rtol=1e-6)


def test_k_keeps_the_largest_projections() -> None:
    x = correlated(50, 6)
    pca = Pca.fit([x], k=2)
    along = (x - pca.bias) @ pca.decoder[:6].T
    # Orthonormal directions: what is left out is the error.
    left_out = along.abs().sort(dim=1).values[:, :4]
    error = (x - pca.decode(pca.encode(x))).norm(dim=1)
    torch.testing.assert_close(error, left_out.norm(dim=1), atol=1e-4, rtol=1e-4)


def test_code_does_not_depend_on_who_shares_the_batch() -> None:
    x = correlated(30, 16)
    pca = Pca.fit([x], k=3)
    together, alone = pca.encode(x), [pca.encode(row[None]) for row in x]
    assert torch.equal(together.indices, torch.cat([c.indices for c in alone]))
    torch.testing.assert_close(together.values, torch.cat([c.values for c in alone]))


def test_rows_beyond_one_chunk_are_encoded_like_others() -> None:
    x = correlated(5000, 3)
    pca = Pca.fit([x])
    torch.testing.assert_close(pca.decode(pca.encode(x)), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("components", [0, 3])
def test_more_components_than_dimensions_are_refused(components: int) -> None:
    with pytest.raises(InvalidInputError, match="2 dimensions have 1 to 2"):
        Pca.fit([CROSS], components=components)


@pytest.mark.parametrize("batches", [[], [CROSS[:1]]])
def test_fewer_than_two_vectors_are_refused(batches: list[Tensor]) -> None:
    with pytest.raises(InvalidInputError, match="harvest more pictures"):
        Pca.fit(batches)


def test_saved_components_come_back(tmp_path: Path) -> None:
    x = correlated(40, 5)
    pca = Pca.fit([x], components=3, k=2)
    back = read_weights(tmp_path, pca.save(tmp_path))
    assert torch.equal(back.encode(x).values, pca.encode(x).values)
    torch.testing.assert_close(back.decode(back.encode(x)), pca.decode(pca.encode(x)))


def test_file_holds_the_canonical_orientation(tmp_path: Path) -> None:
    from safetensors import safe_open

    Pca.fit([correlated(40, 5)], components=2).save(tmp_path)
    with safe_open(tmp_path / "weights.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {"W_dec": (4, 5), "b_dec": (5,)}


def test_shapes_that_differ_from_the_manifest_are_refused(tmp_path: Path) -> None:
    described = Pca.fit([CROSS]).save(tmp_path)
    with pytest.raises(CorruptArtifactError, match=r"weights\.safetensors"):
        read_weights(tmp_path, described | {"width": 6})
