"""InterventionService: a model's output for pictures before and after edits of their features."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any, NamedTuple

import grpc
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from vision_sae.attribution.targets import check_has_targets
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.statistics.bootstrap import Counts, interval
from vision_sae.steering.intervention import FeatureIntervention, InterventionResult
from vision_sae.tensors import to_proto
from vision_sae.v1 import intervention_service_pb2 as pb
from vision_sae.v1 import intervention_service_pb2_grpc
from vision_sae_server.requests.edits import feature_edit
from vision_sae_server.requests.targets import Targets
from vision_sae_server.runtime.interceptor import validate
from vision_sae_server.runtime.lanes import ModelLane
from vision_sae_server.runtime.streams import in_order, item_error
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import PreparedPicture, State

_DEFAULT_CLASSES = 5


class InterventionServicer(intervention_service_pb2_grpc.InterventionServiceServicer):
    """See ``intervention_service.proto``."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def Intervene(
        self, request: pb.InterveneRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.InterveneResponse:
        """The changes in a few pictures, and the effects over all of them."""
        plan = _Plan(self._state, request.plan)
        images = [await plan.outcome(image) for image in request.images]
        return pb.InterveneResponse(images=images, summary=plan.summary())

    async def StreamIntervene(
        self,
        requests: AsyncIterator[pb.StreamInterveneRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamInterveneResponse]:
        """The changes in any number of pictures, in order, and then the effects over all of
        them."""
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
                    "a stream has one plan; open another stream for another plan", field="plan"
                )
            return pb.StreamInterveneResponse(image=await plan.outcome(item.image, check=item))

        async for response in in_order(requests, answer, self._state.config.max_stream_items):
            yield response
        yield pb.StreamInterveneResponse(summary=plan.summary())


class _Effect(NamedTuple):
    """The figures of one picture that the summary needs: a stream may have many pictures."""

    group: str
    moved: NDArray[np.float64]
    """After - before, of each target (K)."""
    moved_by_control: NDArray[np.float64]
    """Control - before, for each control and target (R, K)."""
    flipped: bool
    """Whether another class leads after the edits."""


class _Plan:
    """The edits and targets of a request, and the effects measured so far."""

    def __init__(self, state: State, plan: pb.InterventionPlan) -> None:
        self._state, self._plan = state, plan
        self._served: dict[str, Served] = {}
        for edit in plan.edits:
            served, _ = state.feature(edit.feature)
            if edit.HasField("when"):
                raise InvalidInputError(
                    "only generators have steps; leave `when` out", field="plan.edits.when"
                )
            self._served[served.resource] = served
        first = next(iter(self._served.values()))
        self._model: ServedModel = first.model
        check_has_targets(self._model.model, first.resource, "plan.edits.feature")
        if {served.model.resource for served in self._served.values()} != {self._model.resource}:
            raise InvalidInputError(
                "all edits of a plan must be of dictionaries of one model",
                field="plan.edits.feature",
            )
        names = [named.id for named in plan.targets]
        if len(set(names)) < len(names):
            raise InvalidInputError(
                "the targets of a plan must have different ids", field="plan.targets.id"
            )
        self._names = names
        self._first = first
        self._targets: dict[ModelLane, Targets] = {}
        """{lane of a replica: targets that are measured there}"""
        self._effects: dict[int, _Effect] = {}
        """{number of the picture, in the order of the request: effect}"""
        self._pictures = 0

    async def outcome(
        self, image: pb.InterventionImage, check: Message | None = None
    ) -> pb.ImageIntervention:
        """The changes in one picture, or the error of this picture; ``check`` is validated
        first."""
        number = self._pictures
        self._pictures += 1
        try:
            if check is not None:
                validate(check)
            change = await self._change(image, number)
        except Exception as error:  # a failure is the answer to its picture
            return pb.ImageIntervention(id=image.id, error=item_error(error))
        return pb.ImageIntervention(id=image.id, change=change)

    async def _change(self, image: pb.InterventionImage, number: int) -> pb.ImageChange:
        picture = await self._state.picture(image.image.data, self._model)
        replica = self._model.free()
        of_replica = self._targets.setdefault(
            replica.lane, Targets(self._state, replica, self._first)
        )
        targets = [
            await of_replica.target(
                named.target, picture.geometry, field=f"plan.targets[{place}].target"
            )
            for place, named in enumerate(self._plan.targets)
        ]
        intervention = self._intervention(replica, picture)
        outcome = await replica.lane.run(lambda: intervention(picture.pixels, targets))
        self._effects[number] = _Effect(
            image.group,
            outcome.values_after - outcome.values_before,
            outcome.values_control - outcome.values_before,
            outcome.flipped,
        )
        return self._message(outcome)

    def _intervention(self, replica: ServedModel, picture: PreparedPicture) -> FeatureIntervention:
        edits = []
        for edit in self._plan.edits:
            served = self._served[edit.feature.rpartition("/features/")[0]]
            edits.append(feature_edit(edit, served, served.bundle.grid, picture.geometry))
        return FeatureIntervention(
            replica.model,
            edits,
            {
                name: SiteDictionary(served.bundle.dictionary, served.bundle.site)
                for name, served in self._served.items()
            },
            controls=self._plan.control_count,
            alive={name: served.bundle.statistics.alive for name, served in self._served.items()},
            seed=self._plan.seed,
        )

    def _message(self, outcome: InterventionResult) -> pb.ImageChange:
        plan, names = self._plan, self._model.model.class_names
        top = plan.top_classes if plan.HasField("top_classes") else _DEFAULT_CLASSES
        change = pb.ImageChange(
            targets=[self._target_change(i, outcome) for i in range(len(self._names))],
            classes=[
                pb.ClassChange(label=names[each.index] if names else "", **asdict(each))
                for each in outcome.classes(top)
            ],
            embedding_similarity=outcome.embedding_similarity,
            relative_change=outcome.relative_change,
        )
        if plan.include_embeddings:
            before, after = outcome.embeddings
            change.embedding_before.CopyFrom(to_proto(before))
            change.embedding_after.CopyFrom(to_proto(after))
        return change

    def _target_change(self, index: int, outcome: InterventionResult) -> pb.TargetChange:
        before, after = outcome.values_before[index], outcome.values_after[index]
        change = pb.TargetChange(id=self._names[index], before=before, after=after)
        control = outcome.control_change(index)
        if control is not None:
            change.control_change = control
            if change.control_change > 0:
                change.specificity = abs(after - before) / change.control_change
        return change

    def summary(self) -> pb.InterventionSummary:
        """The effects over the pictures so far, by target and group."""
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
            unread_texts={
                end.field: end for targets in self._targets.values() for end in targets.unread
            }.values(),
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

            ends = interval(difference, [len(one), len(other)], self._plan.seed)
            if ends is not None:
                contrast.lower, contrast.upper = ends
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

            ends = interval(mean, [len(moved)], self._plan.seed)
            if ends is not None:
                effect.lower, effect.upper = ends
        if self._plan.control_count:
            controls = np.mean([e.moved_by_control[:, index] for e in effects], axis=0)
            effect.control_mean = controls.mean()
            effect.control_exceeded = (np.abs(controls) < abs(effect.mean)).mean()
        return effect
