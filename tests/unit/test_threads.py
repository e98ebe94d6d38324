"""One thread where steps are small, and afterwards as many as before."""

from __future__ import annotations

import faiss
import pytest
import torch

from vision_sae.config import DescribeConfig
from vision_sae.descriptions.toolbox import threads_for
from vision_sae.threads import one_thread


@pytest.fixture
def two_threads() -> None:
    """A process that computes with two, whatever the machine has."""
    torch.set_num_threads(2)
    faiss.omp_set_num_threads(2)


def threads() -> tuple[int, int]:
    return torch.get_num_threads(), faiss.omp_get_max_threads()


@pytest.mark.usefixtures("two_threads")
def test_the_body_has_one_thread() -> None:
    with one_thread():
        assert threads() == (1, 1)
    assert threads() == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_the_body_gives_them_back_too() -> None:
    with pytest.raises(ValueError, match="no"), one_thread():
        raise ValueError("no")
    assert threads() == (2, 2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("describer", "count"), [("contrastive", 1), ("milan", 2)])
def test_describers_that_run_a_model_for_each_unit_keep_them(describer: str, count: int) -> None:
    with threads_for(DescribeConfig(describer=describer)):
        assert threads() == (count, count)
