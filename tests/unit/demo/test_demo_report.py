"""The demo's answer as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.worlds.tiny import noise_image
from vision_sae.demo import report
from vision_sae.demo.montage import FeatureRow
from vision_sae.pictures.folder import Picture
from vision_sae.tensors import to_proto
from vision_sae.v1 import (
    attribution_service_pb2,
    description_pb2,
    dictionary_pb2,
    feature_pb2,
    image_pb2,
)

SCORE = description_pb2.Score


def activation(
    index: int, strength: float, description: description_pb2.Description
) -> attribution_service_pb2.FeatureActivation:
    return attribution_service_pb2.FeatureActivation(
        feature=feature_pb2.Feature(index=index, description=description),
        max_activation=strength,
        heatmap=to_proto(np.full((2, 2), strength, dtype=np.float32)),
    )


def label(text: str, auc: float, judged_by: str = "") -> description_pb2.Description:
    scores = [
        SCORE(metric=description_pb2.SCORE_METRIC_PMI, value=40),
        SCORE(
            metric=description_pb2.SCORE_METRIC_DETECTION_AUC,
            value=auc - 0.1,
            negatives=description_pb2.SCORE_NEGATIVES_HARD,
        ),
        SCORE(
            metric=description_pb2.SCORE_METRIC_DETECTION_AUC,
            value=auc,
            negatives=description_pb2.SCORE_NEGATIVES_RANDOM,
        ),
    ]
    judged = SCORE(metric=description_pb2.SCORE_METRIC_PRECISION, value=0.75, judge="captions")
    return description_pb2.Description(text=text, scores=[*scores, judged], judged_by=judged_by)


ANSWER = attribution_service_pb2.EncodeResponse(
    dictionary="dictionaries/planted",
    grid=image_pb2.PatchGrid(
        rows=2,
        cols=2,
        image_width=20,
        image_height=20,
        extent=image_pb2.Box(x0=0, y0=0, x1=20, y1=20),
    ),
    explained_variance=0.875,
    features=[
        activation(7, 3.0, description_pb2.Description(abstention_reason="chance")),
        activation(4, 2.0, label("fur", 0.7)),
        activation(9, 1.0, label("a <wing>", 0.8, "captions")),
        activation(2, 0.9, label("a beak", 0.9)),
        activation(3, 0.8, label("a tail", 0.6, "pixels")),
    ],
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels in the picture of the answer, from the top."""
    labels: list[str] = []
    draw = report.montage

    def montage(rows: list[FeatureRow]) -> object:
        labels.extend(row.label for row in rows)
        return draw(rows)

    monkeypatch.setattr(report, "montage", montage)
    return labels


def test_answer_in_files(tmp_path: Path, shown: list[str]) -> None:
    noise_image(20, 20).save(tmp_path / "photo.png")
    picture = Picture("photo.png", tmp_path / "photo.png", "a bird")
    index = dictionary_pb2.PatchIndex(recall_at_10=0.96)
    dictionary = dictionary_pb2.Dictionary(patch_index=index)
    out = tmp_path / "out"
    data = report.write_report(out, picture, ANSWER, dictionary, {"train": 1.5})
    assert data == json.loads((out / "answer.json").read_text())
    assert [f["feature"] for f in data["features"]] == [7, 4, 9, 2, 3]  # as they were answered
    assert [f["label"] for f in data["features"]] == [None, "fur", "a <wing>", "a beak", "a tail"]
    assert [f["judged_by"] for f in data["features"]] == [None, None, "captions", None, "pixels"]
    assert [f["detection_auc"] for f in data["features"]] == [None, 0.7, 0.8, 0.9, 0.6]
    assert (data["explained_variance"], data["recall_at_10"]) == (0.875, 0.96)
    assert shown == ["a <wing>", "a tail"]  # in the picture are the confirmed labels
    assert (out / "answer.png").is_file()
    page = (out / "index.html").read_text()
    assert "a &lt;wing&gt;" in page
    assert page.count("<section>") == 5
    assert "answer.png shows the first 5 features that have a confirmed label" in page
    assert "<h2>guess: fur</h2>" in page
    assert "<h2>a &lt;wing&gt;</h2>" in page
    assert "confirmed by captions: precision 0.75" in page
    assert "not confirmed; detection AUC 0.9" in page


def test_the_picture_of_the_answer_shows_five_confirmed_labels() -> None:
    rows = [{"label": f"{i}", "judged_by": "captions" if i % 2 else None} for i in range(14)]
    assert report.pictured(rows)[0] == [1, 3, 5, 7, 9]
    guesses, rule = report.pictured([row | {"judged_by": None} for row in rows])
    assert guesses == [0, 1, 2, 3, 4]
    assert "no label here is confirmed" in rule
    assert [report.label(row) for row in rows[:2]] == ["guess: 0", "1"]
