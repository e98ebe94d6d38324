from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kinds.kmeans import KMeans
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.sample import sample
from vision_sae.errors import InvalidInputError


def two_clusters(first: float, second: float) -> KMeans:
    """Mean (1, 1), centroids at (1 + first, 1) and (1, 1 + second)."""
    return KMeans(
        w_dec=torch.eye(2), b_dec=torch.ones(2), radii=torch.tensor([first, second]).float()
    )


def blobs(rows: int = 200) -> tuple[Tensor, Tensor]:
    """(vectors, which of three far blobs each belongs to)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 30.0]])
    labels = torch.randint(3, (rows,), generator=generator)
    return centres[labels] + torch.randn(rows, 3, generator=generator), labels


def test_kmeans_is_a_dictionary() -> None:
    assert isinstance(two_clusters(4, 2), Dictionary)


def test_nearest_centroid_fires_with_the_coefficient_of_its_direction() -> None:
    # (4, 3) is (3, 2) about the mean: |(3, 2) - (4, 0)|^2 = 5, |(3, 2) - (0, 2)|^2 = 9; the
    # first is nearer, and 3 along its direction.
    kmeans = two_clusters(4, 2)
    codes = kmeans.encode(torch.tensor([[4.0, 3.0]]))
    assert (codes.indices.tolist(), codes.values.tolist()) == ([[0]], [[3]])
    assert kmeans.decode(codes).tolist() == [[4, 1]]


def test_the_nearest_centroid_need_not_have_the_largest_coefficient() -> None:
    # (3, 2) about the mean is 2 along the second, 3 along the first, whose centroid is far: 10.
    codes = two_clusters(10, 2).encode(torch.tensor([[4.0, 3.0]]))
    assert (codes.indices.tolist(), codes.values.tolist()) == ([[1]], [[2]])


def test_a_vector_opposite_its_nearest_centroid_decodes_to_the_mean() -> None:
    # (-3, 0) about the mean is nearest to (0.5, 0), and -3 along it.
    kmeans = two_clusters(0.5, 10)
    codes = kmeans.encode(torch.tensor([[-2.0, 1.0]]))
    assert codes.values.tolist() == [[0]]
    assert kmeans.decode(codes).tolist() == [[1, 1]]


def test_a_centroid_decodes_to_itself() -> None:
    x, _ = blobs()
    kmeans = KMeans.fit([x], width=3)
    centroids = kmeans.bias + kmeans.radii[:, None] * kmeans.decoder
    codes = kmeans.encode(centroids)
    assert codes.indices[:, 0].tolist() == [0, 1, 2]
    torch.testing.assert_close(kmeans.decode(codes), centroids)


def test_fit_finds_the_blobs() -> None:
    x, labels = blobs()
    kmeans = KMeans.fit(x.split(50), width=3)
    found = kmeans.encode(x).indices[:, 0]
    assert len({(int(a), int(b)) for a, b in zip(found, labels, strict=True)}) == 3
    centroids = kmeans.bias + kmeans.radii[:, None] * kmeans.decoder
    expected = torch.stack([x[found == i].mean(0) for i in range(3)])
    torch.testing.assert_close(centroids, expected, atol=0.2, rtol=0)


def test_bias_is_the_mean() -> None:
    x, _ = blobs()
    torch.testing.assert_close(KMeans.fit(x.split(50), width=3).bias, x.mean(0))


def test_code_is_the_nearest_by_brute_force_whoever_shares_the_batch() -> None:
    x = torch.randn(300, 8) + 2
    kmeans = KMeans.fit([x], width=20)
    centroids = kmeans.bias + kmeans.radii[:, None] * kmeans.decoder
    nearest = torch.cdist(x, centroids).argmin(1)
    assert torch.equal(kmeans.encode(x).indices[:, 0], nearest)
    assert torch.equal(torch.cat([kmeans.encode(row[None]).indices[0] for row in x]), nearest)


def test_same_seed_same_clusters() -> None:
    x = torch.randn(100, 4)
    a, b = (KMeans.fit(x.split(size), width=5, seed=3) for size in (10, 100))
    assert torch.equal(a.decoder, b.decoder)


def test_only_a_sample_of_the_rows_asked_for_is_clustered() -> None:
    x = torch.randn(50, 3)
    kmeans = KMeans.fit([x], width=2, rows=5, seed=4)
    torch.testing.assert_close(kmeans.bias, sample([x], 5, seed=4).mean(0))


@pytest.mark.parametrize("width", [0, 11])
def test_more_clusters_than_vectors_are_refused(width: int) -> None:
    with pytest.raises(InvalidInputError, match="10 site vectors make 1 to 10"):
        KMeans.fit([torch.randn(10, 2)], width=width)


def test_saved_clusters_come_back(tmp_path: Path) -> None:
    x, _ = blobs()
    kmeans = KMeans.fit([x], width=3)
    back = read_weights(tmp_path, kmeans.save(tmp_path))
    assert torch.equal(back.encode(x).indices, kmeans.encode(x).indices)
    torch.testing.assert_close(back.decode(back.encode(x)), kmeans.decode(kmeans.encode(x)))
