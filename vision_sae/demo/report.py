"""The demo's answer as files: ``answer.json``, overlays, ``answer.png`` and a page to open."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_sae.demo.montage import FeatureRow, montage
from vision_sae.pictures.folder import Picture
from vision_sae.places import check_output_folder
from vision_sae.tensors import from_proto
from vision_sae.v1 import attribution_service_pb2, description_pb2, dictionary_pb2, image_pb2

FILES = (
    *("answer.json", "answer.png", "index.html", "picture.*"),
    *("*-feature-*.png", "*-exemplar-*.jpg", "clip", "steered"),
)
"""Patterns of all files in a folder of the demo's answers."""
_EXEMPLARS = 6
_MONTAGE_ROWS = 5
_AUC = description_pb2.SCORE_METRIC_DETECTION_AUC
_RANDOM = description_pb2.SCORE_NEGATIVES_RANDOM
_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.4 }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
section { display: grid; grid-template-columns: 16rem 1fr; gap: 1rem; margin: 1.5rem 0;
          border-top: 1px solid #8884; padding-top: 1rem }
img { max-width: 100%; border-radius: 4px }
figure { display: inline-block; margin: 0 .4rem .4rem 0; width: 8rem; vertical-align: top }
figcaption, .quiet { font-size: .8rem; opacity: .75 }
"""


def _box(box: image_pb2.Box) -> list[float]:
    return [round(value, 2) for value in (box.x0, box.y0, box.x1, box.y1)]


def _detection_auc(description: description_pb2.Description) -> float | None:
    """Detection AUC of the label against random pictures; None without that score."""
    for score in description.scores:
        if (score.metric, score.negatives) == (_AUC, _RANDOM):
            return round(score.value, 4)
    return None


def answer_json(
    picture: Picture,
    answer: attribution_service_pb2.EncodeResponse,
    dictionary: dictionary_pb2.Dictionary,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """The answer in plain JSON; a label is null where the describer abstained, and ``judged_by`` is
    null where no independent judge has confirmed it."""
    features = []
    for item in answer.features:
        description = item.feature.description
        features.append(
            {
                "feature": item.feature.index,
                "activation": round(item.max_activation, 4),
                "label": description.text if description.HasField("text") else None,
                "judged_by": description.judged_by or None,
                "detection_auc": _detection_auc(description),
                "abstention": description.abstention_reason or None,
                "patches": [
                    {"box": _box(p.box), "activation": round(p.activation, 4)} for p in item.patches
                ],
                "exemplars": [
                    {
                        "image": e.image,
                        "box": _box(e.box),
                        "activation": round(e.activation, 4),
                    }
                    for e in item.feature.exemplars
                ],
            }
        )
    return {
        "image": picture.id,
        "dictionary": answer.dictionary,
        "explained_variance": round(answer.explained_variance, 4),
        "recall_at_10": round(dictionary.patch_index.recall_at_10, 4),
        "features": features,
        "seconds": seconds,
    }


def label(row: dict[str, Any]) -> str:
    """The label of a feature of `answer_json`, with guesses marked, or the reason for none."""
    if row["label"] is None:
        return f"no label: {row['abstention'] or 'not described'}"
    text: str = row["label"]
    return text if row["judged_by"] else f"guess: {text}"


def pictured(features: Sequence[dict[str, Any]]) -> tuple[list[int], str]:
    """The features of `answer_json` to show in ``answer.png``, and the rule of the choice in words.

    The features are ordered from the most informative one.
    """
    confirmed, labels = [], set[str]()
    for place, row in enumerate(features):
        if row["label"] and row["judged_by"] and row["label"] not in labels:
            labels.add(row["label"])
            confirmed.append(place)
    if not confirmed:
        return list(range(len(features)))[:_MONTAGE_ROWS], (
            f"answer.png shows the first {_MONTAGE_ROWS} features: no label here is confirmed."
        )
    return confirmed[:_MONTAGE_ROWS], (
        f"answer.png shows the first {_MONTAGE_ROWS} features that have a confirmed label, "
        "each label once."
    )


def _judged(description: description_pb2.Description) -> str:
    """The scores by the judge who confirmed the label; for a guess, the detection AUC."""
    if not description.judged_by:
        auc = _detection_auc(description)
        return f"not confirmed; detection AUC {'-' if auc is None else auc}"
    measured = [
        f"{description_pb2.ScoreMetric.Name(score.metric).removeprefix('SCORE_METRIC_').lower()} "
        f"{score.value:.2f}"
        for score in description.scores
        if score.judge == description.judged_by
    ]
    return ": ".join(filter(None, [f"confirmed by {description.judged_by}", ", ".join(measured)]))


def write_report(
    out: Path,
    picture: Picture,
    answer: attribution_service_pb2.EncodeResponse,
    dictionary: dictionary_pb2.Dictionary,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write everything into ``out``, over an earlier answer of the demo; returns what
    ``answer.json`` holds."""
    from vision_sae_client.overlay import open_picture, overlay, png

    check_output_folder(out, FILES, overwrite=True)
    out.mkdir(parents=True, exist_ok=True)
    data = answer_json(picture, answer, dictionary, seconds)
    shutil.copyfile(picture.path, out / f"picture{picture.path.suffix}")
    seen = open_picture(picture.path)
    sections, rows = [], []
    for rank, item in enumerate(answer.features, start=1):
        name = f"{rank:02d}-feature-{item.feature.index}.png"
        drawn = overlay(seen, from_proto(item.heatmap), answer.grid, item.patches)
        (out / name).write_bytes(png(drawn))
        exemplars = []
        for place, exemplar in enumerate(item.feature.exemplars[:_EXEMPLARS]):
            thumbnail = f"{rank:02d}-exemplar-{place}.jpg"
            (out / thumbnail).write_bytes(exemplar.thumbnail.data)
            exemplars.append(
                f'<figure><img src="{thumbnail}" alt=""><figcaption>'
                f"{exemplar.activation:.2f} {html.escape(exemplar.caption)}</figcaption></figure>"
            )
        row = data["features"][rank - 1]
        figures = f"feature {row['feature']}, activation {row['activation']:.2f}"
        judged = _judged(item.feature.description)
        thumbnails = [e.thumbnail.data for e in item.feature.exemplars]
        rows.append(FeatureRow(drawn, label(row), f"{figures}; {judged}", thumbnails))
        sections.append(
            f'<section><img src="{name}" alt="where feature {row["feature"]} fires"><div>'
            f"<h2>{html.escape(label(row))}</h2>"
            f'<p class="quiet">{html.escape(f"{figures}; {judged}")}</p>'
            f"{''.join(exemplars)}</div></section>"
        )
    chosen, rule = pictured(data["features"])
    montage([rows[place] for place in chosen]).save(out / "answer.png")
    (out / "index.html").write_text(
        "<!doctype html><html lang=en><meta charset=utf-8><title>vision_sae</title>"
        f"<style>{_STYLE}</style><h1>Which features fire in this picture?</h1>"
        f'<img src="picture{picture.path.suffix}" alt="{html.escape(picture.caption)}">'
        f"<p>{html.escape(picture.caption)}. The dictionary <b>{answer.dictionary}</b> explains "
        f"{data['explained_variance']:.1%} of it; recall@10 of its patch index is "
        f"{data['recall_at_10']:.3f}.</p><p>The most informative features come first: "
        "confirmed labels, then features that are strong here and rare elsewhere. A guess is a "
        f"label that no independent judge has confirmed. {rule}</p>{''.join(sections)}</html>"
    )
    (out / "answer.json").write_text(json.dumps(data, indent=1) + "\n")
    return data
