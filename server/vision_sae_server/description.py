"""DescriptionService: what a feature means, in words, with the evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.field_mask_pb2 import FieldMask

from vision_sae.descriptions.scores.scorer import CONTROLS
from vision_sae.descriptions.store import Entry, Unit
from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.v1 import description_pb2, description_service_pb2_grpc, feature_pb2
from vision_sae.v1 import description_service_pb2 as pb
from vision_sae_server import messages
from vision_sae_server.callers import caller
from vision_sae_server.labelling import metric_names
from vision_sae_server.replies import Replies
from vision_sae_server.served import Units
from vision_sae_server.state import State
from vision_sae_server.unread import unread_texts

_EDITABLE = ("text", "abstained", "abstention_reason")
_DEFAULT_SAMPLE = 50


class DescriptionServicer(description_service_pb2_grpc.DescriptionServiceServicer):
    """See ``description_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._described, self._updated = Replies(), Replies()

    async def DescribeFeature(
        self, request: pb.DescribeFeatureRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DescribeFeatureResponse:
        """The stored description, or a new one, which is stored."""
        return await self._described.once(request, lambda: self._describe(request))

    async def _describe(self, request: pb.DescribeFeatureRequest) -> pb.DescribeFeatureResponse:
        served, index = self._state.unit(request.feature)
        name, describer = self._state.labelling.describer(request.describer)
        metrics = metric_names(request.metrics, describer.metrics, name)
        unit, labels = Unit(served.evidence.name, index), self._state.labels

        def make() -> Entry:
            made = list(describer.label(served.evidence, [index], metrics))
            labels.add(unit.parent, made, identity=served.evidence.identity)
            return _existing(labels.current(unit))

        entry = await self._state.searching.run(lambda: labels.current(unit))
        stored = entry is not None and _is_answer(entry, request)
        if not stored:
            entry = await self._state.describing.run(make)
        found = await self._state.searching.run(
            lambda: self._shown(served, _existing(entry), request)
        )
        return pb.DescribeFeatureResponse(description=found, from_store=stored)

    def _shown(
        self, served: Units, entry: Entry, request: pb.DescribeFeatureRequest
    ) -> description_pb2.Description:
        if request.view != feature_pb2.FEATURE_VIEW_FULL:
            return messages.description(served, entry)
        history = self._state.labels.history(entry.unit)
        return messages.description(served, entry, request.exemplars, history)

    async def ScoreDescription(
        self, request: pb.ScoreDescriptionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ScoreDescriptionResponse:
        """How well any text describes a feature."""
        served, index = self._state.unit(request.feature)
        text, scorer = _said(request.text, "text"), self._state.labelling.scorer
        if scorer is None:
            raise NotConfiguredError(
                "scores need a contrastive model, and this server was started without one",
                field="metrics",
            )
        wanted = request.metrics or [description_pb2.SCORE_METRIC_DETECTION_AUC]
        metrics = metric_names(wanted, scorer.metrics, "ScoreDescription")
        negatives = [messages.NEGATIVES[kind] for kind in request.negatives] or ["random", "hard"]

        def score() -> pb.ScoreDescriptionResponse:
            scores = scorer.score(
                served.evidence,
                index,
                text,
                metrics,
                negatives=negatives,
                sample=request.sample_size or _DEFAULT_SAMPLE,
                seed=request.seed,
                control_texts=self._other_texts(served, index, text, request.seed),
            )
            return pb.ScoreDescriptionResponse(
                scores=map(messages.score, scores),
                unread_texts=unread_texts(self._state.labelling.unread_text, [("text", text)]),
            )

        return await self._state.describing.run(score)

    def _other_texts(self, served: Units, index: int, text: str, seed: int) -> list[str]:
        """Texts of other features that say something else, drawn by the seed."""
        texts = self._state.labels.texts(served.evidence.name)
        others = sorted({t for i, t in texts.items() if i != index} - {text})
        count = min(CONTROLS, len(others))
        chosen = np.random.default_rng(seed).choice(len(others), count, replace=False)
        return [others[i] for i in chosen]

    async def UpdateDescription(
        self, request: pb.UpdateDescriptionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.UpdateDescriptionResponse:
        """Store what a person wrote."""
        author = caller(context, self._state.config.caller_key)
        return await self._updated.once(request, lambda: self._update(request, author))

    async def _update(
        self, request: pb.UpdateDescriptionRequest, author: str
    ) -> pb.UpdateDescriptionResponse:
        if not request.description.name:
            raise InvalidInputError("name the description", field="description.name")
        served, index = self._state.unit(request.description.name.removesuffix("/description"))
        mask = request.update_mask if request.HasField("update_mask") else None
        wanted = _edit(request.description, mask)
        unit = Unit(served.evidence.name, index)

        def update() -> pb.UpdateDescriptionResponse:
            text, reason = wanted(self._state.labels.current(unit))
            entry = self._state.labels.edit(
                unit,
                text,
                abstained=reason,
                author=author,
                etag=request.description.etag,
                identity=served.evidence.identity,
            )
            return pb.UpdateDescriptionResponse(description=messages.description(served, entry))

        return await self._state.searching.run(update)


def _is_answer(entry: Entry, request: pb.DescribeFeatureRequest) -> bool:
    """Whether a stored description is what was asked for."""
    asked = request.describer in ("", entry.description.describer)
    return entry.origin == "person" or (asked and not request.force)


def _existing(entry: Entry | None) -> Entry:
    assert entry is not None  # something was stored just before, and nothing is ever removed
    return entry


def _said(text: str, field: str) -> str:
    if not text.strip():
        raise InvalidInputError("the text is empty", field=field)
    return text.strip()


Edited = Callable[[Entry | None], tuple[str | None, str]]
"""The current version -> (the new text or None, the reason why there is none)."""


def _edit(asked: description_pb2.Description, mask: FieldMask | None) -> Edited:
    """What an update makes of the current version; refuses what contradicts itself."""
    paths = set(_EDITABLE if mask is None else mask.paths)
    if unknown := paths - set(_EDITABLE):
        raise InvalidInputError(
            f"{', '.join(sorted(unknown))} cannot be changed; what can: {', '.join(_EDITABLE)}",
            field="update_mask",
        )
    if not paths:
        raise InvalidInputError("the update mask names nothing to change", field="update_mask")
    reason = asked.abstention_reason if "abstention_reason" in paths else None
    if "text" in paths and asked.HasField("text"):
        if (asked.abstained and "abstained" in paths) or reason:
            raise InvalidInputError(
                "a description has a text or is an abstention, not both", field="description.text"
            )
        text = _said(asked.text, "description.text")
        return lambda _current: (text, "")
    abstains = "text" in paths or ("abstained" in paths and asked.abstained)

    def abstention(current: Entry | None) -> tuple[None, str]:
        if not abstains and (current is None or current.description.text is not None):
            raise InvalidInputError(
                "a reason belongs to an abstention; set abstained, too", field="update_mask"
            )
        if "abstained" in paths and not asked.abstained and "text" not in paths:
            raise InvalidInputError(
                "only a text ends an abstention; set text", field="description.abstained"
            )
        known = current.description.abstained if current else ""
        return None, known if reason is None else reason

    return abstention
