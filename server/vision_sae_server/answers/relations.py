"""Related features, within a dictionary and across matched dictionaries."""

from __future__ import annotations

from vision_sae.labels.entries import Entry
from vision_sae.models.names import shown_name
from vision_sae.resources import dictionary_resource
from vision_sae.v1 import (
    feature_pb2,
)
from vision_sae_server.served import Served

_MOST_CHILDREN = 10


def related_features(served: Served, index: int) -> list[feature_pb2.RelatedFeature]:
    """The features that are related to a feature: by relation, and strongest first."""
    relations = served.bundle.relations
    related: list[tuple[int, int, float]] = []
    for kind, others, strengths in (
        (feature_pb2.FEATURE_RELATION_NEAREST, relations.nearest, relations.cosines),
        (feature_pb2.FEATURE_RELATION_CO_ACTIVATION, relations.together, relations.correlations),
    ):
        pairs = zip(others[index].tolist(), strengths[index].tolist(), strict=True)
        related += [(kind, other, strength) for other, strength in pairs if other >= 0]
    if relations.parent[index] >= 0:
        parent, covered = int(relations.parent[index]), float(relations.covered[index])
        related.append((feature_pb2.FEATURE_RELATION_PARENT, parent, covered))
    children = relations.children(index)[:_MOST_CHILDREN].tolist()
    related += [
        (feature_pb2.FEATURE_RELATION_CHILD, child, float(relations.covered[child]))
        for child in children
    ]
    entries = served.labels.currents(served.resource, [other for _, other, _ in related])
    floor = served.bundle.manifest["nearest_floor"]
    within = [
        feature_pb2.RelatedFeature(
            feature=f"{served.resource}/features/{other}",
            relation=feature_pb2.FeatureRelation.ValueType(kind),
            similarity=strength,
            random_floor=floor if kind == feature_pb2.FEATURE_RELATION_NEAREST else None,
            **_label(entries.get(other)),
        )
        for kind, other, strength in related
    ]
    return within + _matched(served, index)


def _label(entry: Entry | None) -> dict[str, str]:
    """The label of a related feature, and the judge who confirmed it."""
    if entry is None or entry.description.text is None:
        return {}
    content = entry.description
    return {"label": content.text or "", "judged_by": shown_name(content.judged_by)}


def _matched(served: Served, index: int) -> list[feature_pb2.RelatedFeature]:
    """The counterparts of a feature in other dictionaries, the most similar first: in each
    dictionary the nearest feature and, where it differs, the partner of the one-to-one matching."""
    matched: list[feature_pb2.RelatedFeature] = []
    for name, matches in served.bundle.matches.items():
        entry = served.bundle.manifest["matches"][name]
        partner, nearest = int(matches.partner[index]), int(matches.nearest[index])
        resource = dictionary_resource(name)
        counterparts = {}
        if nearest >= 0:
            counterparts[nearest] = matches.similarities[index], entry["nearest_floor"]
        if partner >= 0:
            counterparts[partner] = matches.partner_similarities[index], entry["partner_floor"]
        labelled = served.labels.currents(resource, list(counterparts))
        matched += [
            feature_pb2.RelatedFeature(
                feature=f"{resource}/features/{other}",
                relation=feature_pb2.FEATURE_RELATION_MATCH,
                similarity=float(strength),
                random_floor=floor,
                **_label(labelled.get(other)),
            )
            for other, (strength, floor) in counterparts.items()
        ]
    return sorted(matched, key=lambda related: -related.similarity)
