"""DescriptionService: descriptions of features in words, their scores and their evidence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from vision_sae.descriptions.protocol import Negatives
from vision_sae.descriptions.scoring.scorer import other_texts
from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.labels.entries import Entry, Unit
from vision_sae.v1 import description_pb2, description_service_pb2_grpc, feature_pb2
from vision_sae.v1 import description_service_pb2 as pb
from vision_sae_server.answers.descriptions import description_message, score_message
from vision_sae_server.labelling import metric_names
from vision_sae_server.requests.unread import unread_texts
from vision_sae_server.runtime.callers import caller
from vision_sae_server.runtime.replies import Replies
from vision_sae_server.served import Units
from vision_sae_server.state import State

_EDITABLE = ("text", "abstained", "abstention_reason")
_DEFAULT_SAMPLE = 50
_NEGATIVES: dict[int, Negatives] = {
    description_pb2.SCORE_NEGATIVES_RANDOM: "random",
    description_pb2.SCORE_NEGATIVES_HARD: "hard",
}
"""{negatives of the contract: the library's name}"""


class DescriptionServicer(description_service_pb2_grpc.DescriptionServiceServicer):
    """See ``description_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._described, self._updated = Replies(), Replies()

    async def DescribeFeature(
        self, request: pb.DescribeFeatureRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DescribeFeatureResponse:
        """The stored description, or a new one, which is then stored."""
        return await self._described.once(request, lambda: self._describe(request))

    async def _describe(self, request: pb.DescribeFeatureRequest) -> pb.DescribeFeatureResponse:
        served, index = self._state.unit(request.feature)
        name, describer = self._state.labelling.describer(request.describer)
        metrics = metric_names(request.metrics, describer.metrics, name)
        unit, labels = Unit(served.evidence.name, index), self._state.labels

        def label() -> Entry:
            new = list(describer.label(served.evidence, [index], metrics))
            labels.add(unit.parent, new, identity=served.evidence.identity)
            return _existing(labels.current(unit))

        entry = await self._state.searching.run(lambda: labels.current(unit))
        stored = entry is not None and _is_answer(entry, request)
        if not stored:
            entry = await self._state.describing.run(label)
        message = await self._state.searching.run(
            lambda: self._message(served, _existing(entry), request)
        )
        return pb.DescribeFeatureResponse(description=message, from_store=stored)

    def _message(
        self, served: Units, entry: Entry, request: pb.DescribeFeatureRequest
    ) -> description_pb2.Description:
        if request.view != feature_pb2.FEATURE_VIEW_FULL:
            return description_message(served, entry)
        history = self._state.labels.history(entry.unit)
        return description_message(served, entry, request.exemplars, history)

    async def ScoreDescription(
        self, request: pb.ScoreDescriptionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ScoreDescriptionResponse:
        """Measure how well any text describes a feature."""
        served, index = self._state.unit(request.feature)
        text, scorer = _stripped(request.text, "text"), self._state.labelling.scorer
        if scorer is None:
            raise NotConfiguredError(
                "scores need a contrastive model, and this server was started without one",
                field="metrics",
            )
        wanted = request.metrics or [description_pb2.SCORE_METRIC_DETECTION_AUC]
        metrics = metric_names(wanted, scorer.metrics, "ScoreDescription")
        negatives = [_NEGATIVES[kind] for kind in request.negatives] or ["random", "hard"]

        def score() -> pb.ScoreDescriptionResponse:
            scores = scorer.score(
                served.evidence,
                index,
                text,
                metrics,
                negatives=negatives,
                sample=request.sample_size or _DEFAULT_SAMPLE,
                seed=request.seed,
                control_texts=other_texts(
                    self._state.labels.texts(served.evidence.name), index, text, request.seed
                ),
            )
            return pb.ScoreDescriptionResponse(
                scores=map(score_message, scores),
                unread_texts=unread_texts(self._state.labelling.unread_text, [("text", text)]),
            )

        return await self._state.describing.run(score)

    async def UpdateDescription(
        self, request: pb.UpdateDescriptionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.UpdateDescriptionResponse:
        """Store the description that a person wrote."""
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
            return pb.UpdateDescriptionResponse(description=description_message(served, entry))

        return await self._state.searching.run(update)


def _is_answer(entry: Entry, request: pb.DescribeFeatureRequest) -> bool:
    """Whether a stored description answers the request without a new one."""
    same = request.describer in ("", entry.description.describer)
    return entry.origin == "person" or (same and not request.force)


def _existing(entry: Entry | None) -> Entry:
    assert entry is not None  # it was stored just before, and nothing is ever removed
    return entry


def _stripped(text: str, field: str) -> str:
    if not text.strip():
        raise InvalidInputError("the text is empty", field=field)
    return text.strip()


Edited = Callable[[Entry | None], tuple[str | None, str]]
"""The current version -> (the new text or None, the reason for its absence)."""


def _edit(update: description_pb2.Description, mask: FieldMask | None) -> Edited:
    """A function from the current version to the updated one. Raises `InvalidInputError` for an
    update that contradicts itself."""
    paths = set(_EDITABLE if mask is None else mask.paths)
    if unknown := paths - set(_EDITABLE):
        raise InvalidInputError(
            f"{', '.join(sorted(unknown))} cannot be changed; these can: {', '.join(_EDITABLE)}",
            field="update_mask",
        )
    if not paths:
        raise InvalidInputError("the update mask names nothing to change", field="update_mask")
    reason = update.abstention_reason if "abstention_reason" in paths else None
    if "text" in paths and update.HasField("text"):
        if (update.abstained and "abstained" in paths) or reason:
            raise InvalidInputError(
                "a description has a text or is an abstention, not both", field="description.text"
            )
        text = _stripped(update.text, "description.text")
        return lambda _current: (text, "")
    abstains = "text" in paths or ("abstained" in paths and update.abstained)

    def abstention(current: Entry | None) -> tuple[None, str]:
        if not abstains and (current is None or current.description.text is not None):
            raise InvalidInputError(
                "a reason belongs to an abstention; set abstained, too", field="update_mask"
            )
        if "abstained" in paths and not update.abstained and "text" not in paths:
            raise InvalidInputError(
                "only a text ends an abstention; set text", field="description.abstained"
            )
        known = current.description.abstained if current else ""
        return None, known if reason is None else reason

    return abstention
