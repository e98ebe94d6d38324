"""Passes share the cores, and pictures a pass, as far as no answer shows it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vision_sae_server.runtime import sharing as under_test
from vision_sae_server.runtime.sharing import Sharing, sharing

from tests.worlds import tiny as worlds
from vision_sae.dictionaries.protocol import Codes, SiteDictionary
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.sdxl import SdxlModel

pytestmark = pytest.mark.usefixtures("cores")


def rounding(monkeypatch: pytest.MonkeyPatch, *, pictures: int = 99, in_one_thread: int = 0) -> Any:
    """A model on a machine that rounds otherwise from so many pictures on, and in one thread."""

    def vectors(_model: Any, _site: str, asked: torch.Tensor) -> torch.Tensor:
        other = asked.ndim == 4 and len(asked) >= pictures
        added = 1e-6 * other + 1e-6 * in_one_thread * (torch.get_num_threads() == 1)
        return asked.flatten(-3) + added

    monkeypatch.setattr(under_test, "site_vectors", vectors)
    return worlds.tiny_model(img_size=16)


@pytest.mark.parametrize(("pictures", "at_once"), [(99, 8), (8, 4), (4, 2), (3, 2), (2, 1)])
def test_batches_are_as_large_as_leave_every_picture_the_same(
    pictures: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sharing(rounding(monkeypatch, pictures=pictures), [], 8) == Sharing(3, at_once)


@pytest.mark.parametrize(("pictures", "at_once"), [(99, 8), (3, 2), (1, 1)])
def test_passes_stay_one_after_another_where_one_thread_rounds_otherwise(
    pictures: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rounding(monkeypatch, pictures=pictures, in_one_thread=1)
    assert sharing(model, [], 8) == Sharing(1, at_once)


@pytest.mark.parametrize(("rounds", "side_by_side"), [(False, 3), (True, 1)])
def test_codes_must_not_depend_on_the_threads_either(
    rounds: bool, side_by_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sae = rounding(monkeypatch), worlds.identity_sae(32, 2)
    encode = sae.encode

    def by_threads(vectors: torch.Tensor) -> Codes:
        codes = encode(vectors)
        return codes._replace(values=codes.values + 1e-3 * rounds * torch.get_num_threads())

    monkeypatch.setattr(sae, "encode", by_threads)
    found = [SiteDictionary(sae, list(model.sites)[-1])]
    assert sharing(model, found, 8) == Sharing(side_by_side, 8)


def test_a_generator_works_on_one_picture_at_a_time(tiny_generator: SdxlModel) -> None:
    assert sharing(NoisedPictures(tiny_generator), [], 8) == Sharing(1, 1)


def test_measuring_leaves_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing(rounding(monkeypatch), [], 4)
    assert torch.get_num_threads() == 3
