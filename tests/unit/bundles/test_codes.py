from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vision_sae.bundles.codes import CodesBuilder, SparseRows, by_feature, load, save
from vision_sae.dictionaries.protocol import Codes
from vision_sae.errors import InvalidInputError


def built(*batches: tuple[list[list[int]], list[list[float]]]) -> SparseRows:
    builder = CodesBuilder()
    for indices, values in batches:
        builder.add(Codes(torch.tensor(indices), torch.tensor(values)))
    return builder.by_patch()


def test_by_patch_by_hand() -> None:
    rows = built(([[0, 2], [1, 2]], [[1.0, 2.0], [0.0, 3.0]]), ([[0, 1]], [[0.0, 0.0]]))
    # Patch 0 fires 0 and 2, patch 1 only 2, patch 2 nothing.
    assert rows.indptr.tolist() == [0, 2, 3, 3]
    assert rows.indices.tolist() == [0, 2, 2]
    assert rows.values.tolist() == [1, 2, 3]


def test_by_feature_by_hand() -> None:
    rows = built(([[0, 2], [1, 2], [2, 3]], [[1.0, 2.0], [5.0, 3.0], [2.0, 7.0]]))
    postings = by_feature(rows, width=5)
    # 0: patch 0. 1: patch 1. 2: patch 1 (3), then 0 and 2 (2 each). 3: patch 2. 4: nothing.
    assert postings.indptr.tolist() == [0, 1, 2, 5, 6, 6]
    assert postings.indices.tolist() == [0, 1, 1, 0, 2, 2]
    assert postings.values.tolist() == [1, 5, 3, 2, 2, 7]


def test_row_is_the_span_of_its_pointers() -> None:
    rows = built(([[0, 2], [1, 2]], [[1.0, 2.0], [0.0, 3.0]]))
    indices, values = rows.row(1)
    assert (indices.tolist(), values.tolist()) == ([2], [3])


def test_activation_that_float16_rounds_to_zero_is_dropped() -> None:
    assert built(([[0, 1]], [[1e-9, 1.0]])).indices.tolist() == [1]


def test_activation_beyond_float16_is_refused_and_never_infinite() -> None:
    with pytest.raises(InvalidInputError, match="70000"):
        built(([[0, 1]], [[7e4, 1.0]]))


@pytest.mark.parametrize("value", [1e-7, 1e-9])
def test_activations_that_float16_loses_are_refused(value: float) -> None:
    with pytest.raises(InvalidInputError, match="too small for float16") as caught:
        built(([[0, 1]], [[value, 1.7 * value]]))
    assert caught.value.field == "site"
    # Faint ones among others of usual size are no loss.
    assert built(([[0]], [[1.0]]), ([[0]], [[value]])).values[0] == 1


def test_no_code_at_all() -> None:
    postings = by_feature(built(([[0], [1]], [[0.0], [0.0]])), width=3)
    assert postings.indptr.tolist() == [0, 0, 0, 0]


def test_saved_rows_come_back(tmp_path: Path) -> None:
    rows = built(([[0, 2], [1, 2]], [[1.0, 2.0], [0.0, 3.0]]))
    save(rows, tmp_path / "codes", "features")
    back = load(tmp_path / "codes", "features")
    assert all(np.array_equal(a, b) for a, b in zip(rows, back, strict=True))
    assert [a.dtype for a in back] == [np.int64, np.uint32, np.float16]
