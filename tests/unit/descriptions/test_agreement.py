"""BERTScore of labels against people's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from vision_sae.cli import app
from vision_sae.descriptions.scoring.agreement import (
    DEMO_ENCODER,
    agreement,
    bert_score,
    text_encoder,
)
from vision_sae.errors import InvalidInputError, NotFoundError

WORDS = {"red": [1, 0, 0], "scarlet": [0.8, 0.6, 0], "dog": [0, 0, 1], "of": [0, 1, 0]}


def encode(text: str) -> NDArray[np.float32]:
    return np.array([WORDS[word] for word in text.split()], dtype=np.float32)


def test_each_token_is_matched_with_the_one_most_like_it() -> None:
    precision, recall, f1 = bert_score(encode("scarlet dog"), encode("red of dog"))
    assert precision == pytest.approx((0.8 + 1) / 2)
    assert recall == pytest.approx((0.8 + 0.6 + 1) / 3)
    assert f1 == pytest.approx(2 * 0.9 * 0.8 / (0.9 + 0.8))


def test_opposite_texts_have_no_score() -> None:
    assert bert_score(encode("red"), -encode("red")) == (-1, -1, 0)


def test_the_person_a_label_agrees_with_most_counts() -> None:
    labels = {0: "red", 1: "dog", 2: "of"}
    people = [{0: "dog", 1: "red", 7: "of"}, {0: "scarlet", 1: "dog"}]
    found = agreement(labels, people, encode)
    assert found.units == 2  # nobody said anything of unit 2, and unit 7 has no label
    assert found.f1 == pytest.approx((0.8 + 1) / 2)
    # "dog" of unit 0: somebody said so; "red" of unit 1: likewise.
    assert found.permuted_f1 == 1


def test_one_unit_cannot_be_compared_with_others() -> None:
    with pytest.raises(InvalidInputError, match="1 units have both"):
        agreement({0: "red"}, [{0: "red"}], encode)


def test_words_of_one_meaning_agree_more_than_others() -> None:
    real = text_encoder(DEMO_ENCODER)
    assert len(real("a dog")) == 2  # the tokens around a text are left out
    assert bert_score(real("a dog"), real("a dog"))[2] == pytest.approx(1, abs=1e-5)
    near, far = (bert_score(real("a dog"), real(text))[2] for text in ("a puppy", "a bridge"))
    assert near > far + 0.1


def test_an_encoder_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFoundError, match="there is no directory /nowhere"):
        text_encoder("/nowhere")


def test_tables_are_compared_layer_by_layer(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "labels.csv", tmp_path / "annotations.csv"
    ours.write_text("layer,unit,description\n1,0,a dog\n1,1,a bridge\n2,0,sky\n")
    theirs.write_text("layer,unit,summary\n1,0,dogs\n1,0,animals\n1,1,bridges\n")
    done = CliRunner().invoke(app, ["evaluate", "labels", str(ours), str(theirs)])
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    assert line.startswith("1: 2 units, BERTScore F1 0.")
    refused = CliRunner().invoke(
        app, ["evaluate", "labels", str(ours), str(ours.parent / "no.csv")]
    )
    assert refused.exit_code == 2
