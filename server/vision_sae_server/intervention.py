"""InterventionService: what a model says of pictures before and after edits of their features."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from vision_sae.descriptions.scores.bootstrap import Counts, interval
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import ModelOutput
from vision_sae.steering.intervention import Intervention, Outcome
from vision_sae.tensors import to_proto
from vision_sae.v1 import intervention_service_pb2 as pb
from vision_sae.v1 import intervention_service_pb2_grpc
from vision_sae_server.edits import feature_edit
from vision_sae_server.interceptor import validate
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import Picture, State
from vision_sae_server.streams import in_order, item_error
from vision_sae_server.targets import Targets, check_has_targets

_DEFAULT_CLASSES = 5


class InterventionServicer(intervention_service_pb2_grpc.InterventionServiceServicer):
    """See ``intervention_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def Intervene(
        self, request: pb.InterveneRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.InterveneResponse:
        """Some pictures, and the effects over all of them."""
        plan = _Plan(self._state, request.plan)
        images = [await plan.outcome(image) for image in request.images]
        return pb.InterveneResponse(images=images, summary=plan.summary())

    async def StreamIntervene(
        self,
        requests: AsyncIterator[pb.StreamInterveneRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamInterveneResponse]:
        """Any number of pictures, in their order, and then the effects over all of them."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("content") != "plan":
            raise InvalidInputError(
                "the first message of the stream holds the plan; send it before the pictures",
                field="plan",
            )
        validate(first)
        plan = _Plan(self._state, first.plan)

        async def answer(item: pb.StreamInterveneRequest) -> pb.StreamInterveneResponse:
            if item.WhichOneof("content") == "plan":
                raise InvalidInputError(
                    "a stream has one plan; open another for another", field="plan"
                )
            return pb.StreamInterveneResponse(image=await plan.outcome(item.image, check=item))

        async for response in in_order(requests, answer, self._state.config.max_stream_items):
            yield response
        yield pb.StreamInterveneResponse(summary=plan.summary())


class _Effect(NamedTuple):
    """What is kept of a picture for the summary: a stream may have any number of them."""

    group: str
    moved: NDArray[np.float64]
    """After - before, of each target (K)."""
    moved_by_control: NDArray[np.float64]
    """The same under each control (R, K)."""
    flipped: bool
    """Whether another class leads after the edits."""


class _Plan:
    """What is changed and measured, and what came of it so far."""

    def __init__(self, state: State, asked: pb.InterventionPlan) -> None:
        self._state, self._asked = state, asked
        self._served: dict[str, Served] = {}
        for edit in asked.edits:
            served, _ = state.feature(edit.feature)
            if edit.HasField("when"):
                raise InvalidInputError(
                    "only generators have steps; leave `when` out", field="plan.edits.when"
                )
            self._served[served.resource] = served
        first = next(iter(self._served.values()))
        self._model: ServedModel = first.model
        check_has_targets(self._model, first.resource, "plan.edits.feature")
        if {served.model.resource for served in self._served.values()} != {self._model.resource}:
            raise InvalidInputError(
                "edits of one plan are of dictionaries of one model", field="plan.edits.feature"
            )
        names = [named.id for named in asked.targets]
        if len(set(names)) < len(names):
            raise InvalidInputError(
                "targets of one plan have ids of their own", field="plan.targets.id"
            )
        self._names = names
        self._targets = Targets(state, self._model, first)
        self._effects: dict[int, _Effect] = {}
        """By the number of the picture, whichever was done first."""
        self._pictures = 0

    async def outcome(
        self, asked: pb.InterventionImage, check: Message | None = None
    ) -> pb.ImageIntervention:
        """What the edits change in one picture, or why there is no answer."""
        number = self._pictures
        self._pictures += 1
        try:
            if check is not None:
                validate(check)
            change = await self._change(asked, number)
        except Exception as error:  # every failure belongs to its picture
            return pb.ImageIntervention(id=asked.id, error=item_error(error))
        return pb.ImageIntervention(id=asked.id, change=change)

    async def _change(self, asked: pb.InterventionImage, number: int) -> pb.ImageChange:
        picture = await self._state.picture(asked.image.data, self._model)
        targets = [
            await self._targets.target(
                named.target, picture.geometry, field=f"plan.targets[{place}].target"
            )
            for place, named in enumerate(self._asked.targets)
        ]
        intervention = self._intervention(picture)
        outcome = await self._model.lane.run(lambda: intervention(picture.pixels, targets))
        self._effects[number] = _Effect(
            asked.group,
            outcome.values_after - outcome.values_before,
            outcome.values_control - outcome.values_before,
            _flipped(outcome),
        )
        return self._message(outcome)

    def _intervention(self, picture: Picture) -> Intervention:
        edits = []
        for edit in self._asked.edits:
            served = self._served[edit.feature.rpartition("/features/")[0]]
            edits.append(feature_edit(edit, served, served.bundle.grid, picture.geometry)[0])
        return Intervention(
            self._model.model,
            edits,
            {
                name: SiteDictionary(served.bundle.dictionary, served.bundle.site)
                for name, served in self._served.items()
            },
            controls=self._asked.control_count,
            alive={
                name: np.flatnonzero(served.bundle.statistics.count)
                for name, served in self._served.items()
            },
            seed=self._asked.seed,
        )

    def _message(self, outcome: Outcome) -> pb.ImageChange:
        before, after = (o.embedding[0].float().cpu().numpy() for o in outcome[:2])
        cosine = before @ after / max(np.linalg.norm(before) * np.linalg.norm(after), 1e-12)
        change = pb.ImageChange(
            targets=[self._target_change(i, outcome) for i in range(len(self._names))],
            classes=_classes(
                outcome.before, outcome.after, self._top_classes, self._model.model.class_names
            ),
            embedding_similarity=float(cosine),
            relative_change=outcome.relative_change,
        )
        if self._asked.include_embeddings:
            change.embedding_before.CopyFrom(to_proto(before))
            change.embedding_after.CopyFrom(to_proto(after))
        return change

    @property
    def _top_classes(self) -> int:
        return self._asked.top_classes if self._asked.HasField("top_classes") else _DEFAULT_CLASSES

    def _target_change(self, index: int, outcome: Outcome) -> pb.TargetChange:
        before, after = outcome.values_before[index], outcome.values_after[index]
        change = pb.TargetChange(id=self._names[index], before=before, after=after)
        if len(outcome.values_control):
            change.control_change = np.abs(outcome.values_control[:, index] - before).mean()
            if change.control_change > 0:
                change.specificity = abs(after - before) / change.control_change
        return change

    def summary(self) -> pb.InterventionSummary:
        """The effects over the pictures so far, for each target and group."""
        groups: dict[str, list[_Effect]] = {}
        for number in sorted(self._effects):
            groups.setdefault(self._effects[number].group, []).append(self._effects[number])
        first, *others = groups or [""]
        return pb.InterventionSummary(
            effects=[
                self._effect(index, group, effects)
                for index in range(len(self._names))
                for group, effects in groups.items()
            ],
            succeeded=len(self._effects),
            failed=self._pictures - len(self._effects),
            contrasts=[
                self._contrast(index, groups[first], groups[other])
                for index in range(len(self._names))
                for other in others
            ],
            unread_texts=self._targets.unread,
        )

    def _contrast(
        self, index: int, effects: list[_Effect], others: list[_Effect]
    ) -> pb.GroupContrast:
        one, other = (np.array([e.moved[index] for e in group]) for group in (effects, others))
        contrast = pb.GroupContrast(
            id=self._names[index],
            group=effects[0].group,
            other=others[0].group,
            difference=one.mean() - other.mean(),
        )
        if min(len(one), len(other)) > 1:

            def difference(some: Counts, more: Counts) -> NDArray[np.float64]:
                return np.asarray(some @ one / some.sum(1) - more @ other / more.sum(1))

            found = interval(difference, [len(one), len(other)], self._asked.seed)
            if found is not None:
                contrast.lower, contrast.upper = found
        return contrast

    def _effect(self, index: int, group: str, effects: list[_Effect]) -> pb.TargetEffect:
        moved = np.array([e.moved[index] for e in effects])
        effect = pb.TargetEffect(
            id=self._names[index],
            group=group,
            count=len(moved),
            mean=moved.mean(),
            flipped=float(np.mean([e.flipped for e in effects])),
        )
        if len(moved) > 1:

            def mean(counts: Counts) -> NDArray[np.float64]:
                return np.asarray(counts @ moved / counts.sum(1))

            found = interval(mean, [len(moved)], self._asked.seed)
            if found is not None:
                effect.lower, effect.upper = found
        if self._asked.control_count:
            controls = np.mean([e.moved_by_control[:, index] for e in effects], axis=0)
            effect.control_mean = controls.mean()
            effect.control_exceeded = (np.abs(controls) < abs(effect.mean)).mean()
        return effect


def _flipped(outcome: Outcome) -> bool:
    """Whether another class leads after the edits."""
    before, after = outcome.before.logits, outcome.after.logits
    return before is not None and after is not None and int(before.argmax()) != int(after.argmax())


def _classes(
    before: ModelOutput, after: ModelOutput, count: int, names: Sequence[str]
) -> list[pb.ClassChange]:
    """The classes that lead before or after, by probability before."""
    if before.logits is None or after.logits is None or not count:
        return []
    rows = [o.logits[0].double() for o in (before, after) if o.logits is not None]
    logits = np.stack([row.cpu().numpy() for row in rows])
    shares = np.stack([row.softmax(0).cpu().numpy() for row in rows])
    leading = np.unique(np.argsort(-logits, axis=1, kind="stable")[:, :count])
    return [
        pb.ClassChange(
            index=int(i),
            label=names[i] if names else "",
            logit_before=logits[0, i],
            logit_after=logits[1, i],
            probability_before=shares[0, i],
            probability_after=shares[1, i],
        )
        for i in leading[np.argsort(-shares[0, leading], kind="stable")]
    ]
