"""The demo's answer as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.worlds import noise_image
from vision_sae.demo import report
from vision_sae.demo.montage import Row
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


def label(text: str, auc: float) -> description_pb2.Description:
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
    return description_pb2.Description(text=text, scores=scores)


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
        activation(9, 1.0, label("a <wing>", 0.9)),
    ],
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels in the picture of the answer, from the top."""
    labels: list[str] = []
    draw = report.montage

    def montage(rows: list[Row]) -> object:
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
    assert [f["feature"] for f in data["features"]] == [7, 4, 9]  # as they fire
    assert [f["label"] for f in data["features"]] == [None, "fur", "a <wing>"]
    assert [f["detection_auc"] for f in data["features"]] == [None, 0.7, 0.9]
    assert (data["explained_variance"], data["recall_at_10"]) == (0.875, 0.96)
    # In the picture the best labels come first.
    assert shown == ["a <wing>", "fur", "no label: chance"]
    assert (out / "answer.png").is_file()
    page = (out / "index.html").read_text()
    assert "a &lt;wing&gt;" in page
    assert page.count("<section>") == 3
