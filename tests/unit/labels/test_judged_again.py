"""Labels that a dictionary came with, judged on the pictures of a bundle."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from vision_sae.bundles.publish import add_descriptions
from vision_sae.bundles.read import read_bundle
from vision_sae.descriptions.predicates.label import Label
from vision_sae.descriptions.predicates.wordnet import nouns
from vision_sae.descriptions.protocol import JUDGED_BY, Description
from vision_sae.labels.again import JUDGED_AGAIN, judge_again


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose features are all said to fire on submarines, as captions are to have
    confirmed; one of them by a person."""
    shutil.copytree(tiny_bundle, tmp_path / "tiny")
    opened = read_bundle(tmp_path / "tiny")
    label = Label((nouns().named("submarine")[0],))
    rows = []
    for feature in range(opened.dictionary.width):
        details = {"label": label.to_json(), JUDGED_BY: "captions"}
        rows.append(asdict(Description(feature, label.text, "", "grounded", 1, details=details)))
    add_descriptions(opened, tmp_path / "tiny", rows, {"describe": {"labelled": len(rows)}})
    return tmp_path / "tiny"


def test_what_the_pictures_speak_against_is_a_guess_and_the_rest_stays(bundle: Path) -> None:
    judged = judge_again(bundle)
    counts = judged.image_counts
    doubted = [row for row in judged.descriptions.values() if not row["details"][JUDGED_BY]]
    assert doubted
    assert judged.manifest["describe"][JUDGED_AGAIN]["doubted"] == len(doubted)
    assert all(row["text"] == "submarine" for row in judged.descriptions.values())
    assert all("0% of the strongest" in row["details"][JUDGED_AGAIN] for row in doubted)
    # Five independent pictures are needed to speak against a label.
    assert min(counts[[row["feature"] for row in doubted]]) >= 5
    (rare,) = np.nonzero(counts < 5)
    assert all(judged.descriptions[int(f)]["details"][JUDGED_BY] == "captions" for f in rare)


def test_labels_are_judged_once(bundle: Path) -> None:
    first = judge_again(bundle)
    assert judge_again(bundle).manifest_sha256 == first.manifest_sha256
    assert json.dumps(first.manifest["describe"])
