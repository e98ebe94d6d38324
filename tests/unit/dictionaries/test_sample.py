from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.dictionaries.sample import sample
from vision_sae.errors import InvalidInputError


def numbered(rows: int) -> torch.Tensor:
    """Row r holds r in both dimensions."""
    return torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 2)


@given(
    total=st.integers(1, 60),
    rows=st.integers(1, 20),
    size=st.integers(1, 60),
    seed=st.integers(0, 9),
)
def test_sample_is_in_order_without_repeats_and_the_same_for_all_batches(
    total: int, rows: int, size: int, seed: int
) -> None:
    x = numbered(total)
    found = sample(x.split(size), rows, seed=seed)
    assert found.shape == (min(rows, total), 2)
    assert (found[:, 0].diff() > 0).all()
    assert torch.equal(found, sample([x], rows, seed=seed))


def test_another_seed_draws_other_rows() -> None:
    x = [numbered(1000)]
    assert not torch.equal(sample(x, 10, seed=0), sample(x, 10, seed=1))


def test_every_row_is_drawn_equally_often() -> None:
    # 5 of 20 rows, 1,000 times: 250 draws each, standard deviation sqrt(1000 * 1/4 * 3/4) = 14.
    x = numbered(20)
    counts = torch.zeros(20)
    for seed in range(1000):
        counts[sample(x.split(3), 5, seed=seed)[:, 0].long()] += 1
    assert (counts - 250).abs().max() < 5 * 14


def test_no_more_than_twice_the_sample_and_a_batch_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    cat, held = torch.cat, []
    monkeypatch.setattr(torch, "cat", lambda parts: held.append(sum(map(len, parts))) or cat(parts))
    sample(numbered(1000).split(7), 10, seed=0)
    assert max(held) <= 2 * 10 + 7


def test_empty_stream_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="harvest"):
        sample([], 10, seed=0)
