from __future__ import annotations

import numpy as np
import pytest

from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.density import density_histogram


def test_histogram_by_hand() -> None:
    # Of 1000 rows: 1 is 10^-3, the first bin; 10 is 10^-2, the start of bin 4; 500 is 10^-0.30, in
    # bin 10 from -0.5 to -0.25; 900 and all of them share the last one, from -0.25 to 0.
    found = density_histogram(np.array([0, 1, 10, 500, 900, 1000, 0]), 1000)
    assert found.dead == 2
    assert found.edges.tolist() == [-3 + 0.25 * i for i in range(13)]
    assert found.counts.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 2]


def test_edges_of_different_data_line_up() -> None:
    # log10(1/777) = -2.89, so edges start at -3.
    few, many = (density_histogram(np.array([1]), rows).edges for rows in (777, 10**6))
    assert few.tolist() == many[-len(few) :].tolist()
    assert few[0] == -3


def test_a_single_row_has_one_bin() -> None:
    found = density_histogram(np.array([1, 0]), 1)
    assert (found.dead, found.counts.tolist()) == (1, [1])


@pytest.mark.parametrize(("fired", "rows"), [([5], 4), ([-1], 4), ([0], 0)])
def test_impossible_counts_are_refused(fired: list[int], rows: int) -> None:
    with pytest.raises(InvalidInputError):
        density_histogram(np.array(fired), rows)
