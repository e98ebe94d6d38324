from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worlds.tiny import identity_sae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.errors import CorruptArtifactError


def random_sae(dim: int = 5, width: int = 12, k: int = 3) -> TopKSae:
    generator = torch.Generator().manual_seed(0)
    return TopKSae(
        w_enc=torch.randn(width, dim, generator=generator),
        b_enc=torch.randn(width, generator=generator),
        w_dec=torch.randn(width, dim, generator=generator),
        b_dec=torch.randn(dim, generator=generator),
        k=k,
    )


def test_topk_sae_is_a_dictionary() -> None:
    assert isinstance(random_sae(), Dictionary)


def test_encode_by_hand() -> None:
    codes = identity_sae(4, 2).encode(torch.tensor([[1.0, 5.0, -9.0, 3.0]]))
    assert codes.indices.tolist() == [[1, 3]]
    assert codes.values.tolist() == [[5, 3]]


def test_negative_pre_activations_do_not_fire() -> None:
    codes = identity_sae(3, 2).encode(torch.tensor([[-1.0, 2.0, -3.0]]))
    assert codes.values.max() == 2
    assert (codes.values > 0).sum() == 1


def test_encode_equals_the_dense_definition() -> None:
    sae, x = random_sae(), torch.randn(50, 5)
    pre = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc).relu()
    kept = pre.topk(3, dim=1)
    dense = torch.zeros_like(pre).scatter_(1, kept.indices, kept.values)
    codes = sae.encode(x)
    torch.testing.assert_close(
        torch.zeros_like(pre).scatter_(1, codes.indices, codes.values), dense
    )


def test_indices_ascend() -> None:
    indices = random_sae().encode(torch.randn(50, 5)).indices
    assert (indices.diff(dim=1) > 0).all()


def test_decode_adds_the_bias() -> None:
    sae = random_sae()
    codes = Codes(torch.tensor([[1, 4, 7]]), torch.tensor([[2.0, 0.0, 3.0]]))
    expected = 2 * sae.w_dec[1] + 3 * sae.w_dec[7] + sae.b_dec
    torch.testing.assert_close(sae.decode(codes)[0], expected)


def test_code_does_not_depend_on_who_shares_the_batch() -> None:
    sae, x = random_sae(64, 256, 8), torch.randn(30, 64)
    together, alone = sae.encode(x), [sae.encode(row[None]) for row in x]
    assert torch.equal(together.indices, torch.cat([c.indices for c in alone]))
    torch.testing.assert_close(together.values, torch.cat([c.values for c in alone]))


def test_rows_beyond_one_chunk_are_encoded_like_others() -> None:
    sae, x = random_sae(), torch.randn(5000, 5)
    torch.testing.assert_close(sae.encode(x).values[4990:], sae.encode(x[4990:]).values)


def test_saved_weights_come_back(tmp_path: Path) -> None:
    sae, x = random_sae(), torch.randn(7, 5)
    back = TopKSae.load(tmp_path, sae.save(tmp_path))
    assert torch.equal(back.encode(x).values, sae.encode(x).values)
    assert torch.equal(back.decode(back.encode(x)), sae.decode(sae.encode(x)))


def test_file_holds_the_canonical_orientation(tmp_path: Path) -> None:
    from safetensors import safe_open

    random_sae().save(tmp_path)
    with safe_open(tmp_path / "weights.safetensors", "np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes == {"W_enc": (5, 12), "b_enc": (12,), "W_dec": (12, 5), "b_dec": (5,)}


def test_shapes_that_differ_from_the_manifest_are_refused(tmp_path: Path) -> None:
    described = random_sae().save(tmp_path)
    with pytest.raises(CorruptArtifactError, match=r"weights\.safetensors"):
        TopKSae.load(tmp_path, described | {"width": 13})
