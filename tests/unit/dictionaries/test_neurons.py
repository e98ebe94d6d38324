from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError

X = torch.tensor([[1.0, -2.0, 3.0]])


def test_neuron_basis_is_a_dictionary() -> None:
    assert isinstance(NeuronBasis.fit([X]), Dictionary)


def test_positive_neurons_fire_with_their_value_and_number() -> None:
    codes = NeuronBasis.fit([X]).encode(X)
    assert codes.indices.tolist() == [[0, 2]]
    assert codes.values.tolist() == [[1, 3]]


def test_a_layer_has_as_many_features_as_neurons() -> None:
    basis = NeuronBasis.fit([X])
    assert torch.equal(basis.decoder, torch.eye(3))
    assert torch.equal(basis.bias, torch.zeros(3))


def test_decoding_puts_the_positive_values_back() -> None:
    basis = NeuronBasis.fit([X])
    assert basis.decode(basis.encode(X)).tolist() == [[1, 0, 3]]


def test_signed_feature_d_plus_i_fires_with_the_negative_of_dimension_i() -> None:
    codes = NeuronBasis.fit([X], signed=True).encode(X)
    # x_0 = 1 and x_2 = 3 as before; x_1 = -2 is feature 3 + 1 = 4 with 2.
    assert codes.indices.tolist() == [[0, 2, 4]]
    assert codes.values.tolist() == [[1, 3, 2]]


def test_signed_reconstruction_is_exact() -> None:
    x = torch.randn(100, 7)
    basis = NeuronBasis.fit([x], signed=True)
    assert torch.equal(basis.decode(basis.encode(x)), x)


def test_decoder_says_what_decode_does() -> None:
    x = torch.randn(20, 5)
    basis = NeuronBasis.fit([x], signed=True)
    dense = torch.cat([x.relu(), (-x).relu()], dim=1)
    torch.testing.assert_close(dense @ basis.decoder + basis.bias, basis.decode(basis.encode(x)))


def test_k_keeps_the_largest() -> None:
    x = torch.tensor([[1.0, 5.0, 3.0, 4.0], [-1.0, -2.0, 6.0, -3.0]])
    codes = NeuronBasis.fit([x], k=2).encode(x)
    # Row 0 keeps 5 and 4; row 1 has only one positive value, and a slot left over.
    assert codes.indices.tolist() == [[1, 3], [2, 0]]
    assert codes.values.tolist() == [[5, 4], [6, 0]]


def test_k_beyond_the_width_keeps_all() -> None:
    assert NeuronBasis.fit([X], k=99).encode(X).values.tolist() == [[1, 3]]


def test_k_counts_both_signs_together() -> None:
    codes = NeuronBasis.fit([X], signed=True, k=1).encode(X * -1)
    assert (codes.indices.tolist(), codes.values.tolist()) == ([[5]], [[3]])


@pytest.mark.parametrize("k", [0, -1])
def test_k_without_features_is_refused(k: int) -> None:
    with pytest.raises(InvalidInputError, match="at least one feature"):
        NeuronBasis.fit([X], k=k)


def test_only_the_first_batch_is_read() -> None:
    def batches() -> Iterator[Tensor]:
        yield X
        raise AssertionError("the stream was read on")

    assert NeuronBasis.fit(batches()).dim == 3


@pytest.mark.parametrize("signed", [False, True])
def test_saved_basis_comes_back(signed: bool, tmp_path: Path) -> None:
    basis = NeuronBasis.fit([X], signed=signed, k=2)
    back = read_weights(tmp_path, basis.save(tmp_path))
    assert isinstance(back, NeuronBasis)
    assert (back.signed, back.k) == (signed, 2)
    assert torch.equal(back.decode(back.encode(X)), basis.decode(basis.encode(X)))
