from __future__ import annotations

import math

import pytest
import torch

from vision_sae.evaluation.coherence import average_max_decoder_cosine_sim, max_cosine_to_others


def test_coherence_by_hand() -> None:
    # (1, 0) and (0, 1) are at 90 degrees to each other and at 45 to (2, 2); (0, -3) is at 90 to
    # (1, 0), its nearest.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.0, -3.0]])
    expected = [math.sqrt(0.5)] * 3 + [0]
    assert max_cosine_to_others(rows).tolist() == pytest.approx(expected)
    assert average_max_decoder_cosine_sim(rows) == pytest.approx(0.75 * math.sqrt(0.5))


def test_orthogonal_directions_are_incoherent() -> None:
    assert average_max_decoder_cosine_sim(torch.eye(5)) == 0


def test_a_direction_that_occurs_twice_has_cosine_1() -> None:
    rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [2.0, 4.0]])
    assert max_cosine_to_others(rows).tolist()[::2] == pytest.approx([1, 1])


def test_opposite_directions_are_not_alike() -> None:
    assert average_max_decoder_cosine_sim(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == -1


def test_only_direction_resembles_no_other() -> None:
    assert average_max_decoder_cosine_sim(torch.ones(1, 3)) == 0
