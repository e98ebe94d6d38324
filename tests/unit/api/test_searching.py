"""Search in a bundle without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vision_sae as vs
from tests.unit.api.conftest import World
from tests.worlds import serving
from vision_sae.bundles.patch_search import FiringPatches
from vision_sae.errors import FeatureNotFoundError, InvalidInputError


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> vs.Bundle:
    """Feature 0 fires in 20 pictures of cats, 1 in dogs, 2 in one fox; see `serving.zoo`."""
    return serving.zoo(tmp_path_factory.mktemp("zoo"))


def test_the_patches_of_a_feature_come_strongest_first(zoo: vs.Bundle) -> None:
    hits = vs.search(zoo, feature=0, top=3)
    # Pictures 38, 36 and 34 hold 39, 37 and 35 in their patch image % 4 = 2, 0 and 2.
    assert [(h.image, h.row, h.col, h.score) for h in hits] == [
        ("38.png", 1, 0, 39.0),
        ("36.png", 0, 0, 37.0),
        ("34.png", 1, 0, 35.0),
    ]
    assert hits[0].caption == "a cat"
    assert hits.numpy().tolist() == [38 * 4 + 2, 36 * 4, 34 * 4 + 2]
    assert hits[0].box == (0, 8, 8, 16)
    assert hits.recall_at_10 == 1


def test_a_code_finds_the_patches_that_have_it(zoo: vs.Bundle) -> None:
    (hit,) = vs.search(zoo, code={2: 3.0})
    assert (hit.image, hit.row, hit.col) == ("40.png", 1, 0)
    assert hit.score == pytest.approx(1)


def test_a_picture_finds_itself(world: World) -> None:
    for options in ({}, {"space": "code"}):
        hits: vs.Hits = vs.search(
            world.bundle,
            picture=world.picture,
            box=(0, 0, 12, 12),
            model=world.model,
            top=3,
            **options,  # type: ignore[arg-type]
        )
        assert hits[0].image == "003.png"
        assert hits[0].score >= hits[1].score >= hits[2].score


def test_near_duplicates_count_once(world: World) -> None:
    feature = int(world.bundle.statistics.count.argmax())
    every = vs.search(world.bundle, feature=feature, top=10_000, unique=False)
    unique = vs.search(world.bundle, feature=feature, top=10_000)
    assert len(every) == len(FiringPatches(world.bundle, feature))
    assert sum(1 + hit.duplicates for hit in unique) == len(every)


@pytest.mark.parametrize("queries", [{}, {"feature": 0, "text": "a cat"}])
def test_a_search_has_one_query(zoo: vs.Bundle, queries: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="has one query"):
        vs.search(zoo, **queries)


def test_what_there_is_not_is_refused(zoo: vs.Bundle, world: World) -> None:
    for query in ({"feature": 99}, {"code": {99: 1.0}}):
        with pytest.raises(FeatureNotFoundError):
            vs.search(zoo, **query)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="space of texts"):
        vs.search(world.bundle, text="a cat", model=world.model)
    with pytest.raises(InvalidInputError, match="needs the data of a bundle"):
        vs.search(world.dictionary, feature=0)
    with pytest.raises(InvalidInputError, match="shows nothing"):
        vs.search(zoo, feature=0, top=0)
    with pytest.raises(InvalidInputError, match="need a search by picture"):
        vs.search(zoo, feature=0, box=(0, 0, 1, 1))
    with pytest.raises(InvalidInputError, match="space is one of vector, code, text"):
        vs.search(zoo, picture=world.picture, space="time")  # type: ignore[arg-type]


def test_features_are_found_by_the_words_of_their_labels(zoo: vs.Bundle) -> None:
    assert vs.Labels.of(zoo).texts == {0: "cat", 1: "dog"}
    (hit,) = vs.search_features(zoo, "dogs and foxes: a dog")
    assert (hit.feature, hit.label, hit.match, hit.confirmed) == (1, "dog", "label", False)
    assert len(vs.search_features(zoo, "zebra")) == 0
    with pytest.raises(InvalidInputError, match="empty"):
        vs.search_features(zoo, " ")


def test_they_show_themselves(zoo: vs.Bundle, tmp_path: Path) -> None:
    hits = vs.search(zoo, feature=0, top=9)
    assert str(hits).splitlines()[0] == "9 patches of zoo by feature 0, recall@10 1"
    assert hits._repr_html_().count("<img") == 8
    assert hits.to_pandas()["image"][0] == "38.png"
    assert hits.to_pil(2).size == (4 + 4 + 4, 4)  # thumbnails of 4 x 4 pixels, and a gap
    with pytest.raises(InvalidInputError, match="nothing was found"):
        vs.search(zoo, feature=5).to_pil()
    features = vs.search_features(zoo, "cat")
    assert "cat (guess)" in str(features)
    assert "<td>cat (guess)</td>" in features._repr_html_()
    assert features.numpy().tolist() == [0] == features.to_pandas()["feature"].tolist()
    assert np.asarray(hits[0].to_pil()).shape == (4, 4, 3)
