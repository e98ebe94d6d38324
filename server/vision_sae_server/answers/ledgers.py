"""Answers of Attribute: the features' contributions to a target, at one or more sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vision_sae.attribution.faithfulness import Faithfulness, faithfulness
from vision_sae.attribution.ledger import (
    Ledger,
    Reference,
    ReferenceKind,
    of_picture,
    reference_of,
)
from vision_sae.attribution.maps import Factorisation, PatchMap
from vision_sae.attribution.method import (
    ABLATED,
    COMPONENTS,
    METHODS,
    NODES,
    AttributionTask,
    Method,
)
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target, check_has_targets
from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.models.vectors import vectors_at
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import ledger_pb2
from vision_sae_server.answers.site_attributions import SiteAnswer
from vision_sae_server.requests.targets import Targets
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import PreparedPicture, State

METHOD_NAMES: dict[int, str] = {
    value.number: value.name.removeprefix("ATTRIBUTION_METHOD_").lower()
    for value in ledger_pb2.AttributionMethod.DESCRIPTOR.values
    if value.number != ledger_pb2.ATTRIBUTION_METHOD_UNSPECIFIED
}
"""{method of the contract: the method's name in `METHODS`}"""

_REFERENCES: dict[int, ReferenceKind] = {
    ledger_pb2.REFERENCE_CODE_ZERO: "zero",
    ledger_pb2.REFERENCE_CODE_MEAN: "mean",
    ledger_pb2.REFERENCE_CODE_BLOCK_REMOVED: "removed",
}


@dataclass(frozen=True)
class _SiteInputs:
    """The inputs of the attribution at one site."""

    served: Served
    other: Tensor | None
    """The site vectors (P, D) of the baseline's picture; None without such a picture."""
    context: Tensor | None
    """The site vectors (N, P, D) of the context pictures, for methods that use them."""

    @property
    def features(self) -> SiteDictionary:
        return SiteDictionary(self.served.bundle.dictionary, self.served.bundle.site)


class AttributeCall:
    """One call of Attribute."""

    def __init__(self, state: State, request: pb.AttributeRequest) -> None:
        """Raises `InvalidInputError` for options or dictionaries that exclude each other."""
        self._state, self._request = state, request
        self._wire = request.method or ledger_pb2.ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS
        self._method: Method = METHODS[METHOD_NAMES[self._wire]]
        self._code = request.baseline.reference or ledger_pb2.REFERENCE_CODE_ZERO
        self._with_picture = request.baseline.WhichOneof("kind") == "image"
        self._dictionaries = [self._dictionary(name) for name in request.dictionaries]
        self._model: ServedModel = self._dictionaries[0].model.free()
        self._check()

    def _check(self) -> None:
        """Raise `InvalidInputError` for options or dictionaries that exclude each other."""
        sites = [served.bundle.site for served in self._dictionaries]
        check_has_targets(self._model.model, self._dictionaries[0].resource, "dictionaries")
        if {served.model.resource for served in self._dictionaries} != {self._model.resource}:
            raise InvalidInputError(
                "all dictionaries of a request must be of one model; send a request for each model",
                field="dictionaries",
            )
        self._method.check(
            from_zero=not self._with_picture and self._code == ledger_pb2.REFERENCE_CODE_ZERO,
            special_tokens=self._request.special_tokens,
            field="baseline",
        )
        if len(set(sites)) < len(sites):
            raise InvalidInputError(
                "no two dictionaries of a request may be of the same site; send a request for each",
                field="dictionaries",
            )

    def _dictionary(self, name: str) -> Served:
        """The dictionary with a name; for a method of neurons, the raw neurons of its site."""
        served = self._state.dictionary(name)
        if not self._method.of_neurons:
            return served
        for other in self._state.dictionaries.values():
            neurons = other.bundle.dictionary.architecture == NeuronBasis.architecture
            if neurons and other.place == served.place:
                return other
        raise NotConfiguredError(
            f"this server has no dictionary of the raw neurons of {served.bundle.site}; train one "
            "with --architecture neurons, build it, and serve it too",
            field="method",
        )

    async def response(self) -> pb.AttributeResponse:
        """The answer, with one site for each dictionary."""
        request, lane = self._request, self._model.lane
        picture = await self._state.picture(request.image.data, self._model)
        other = None
        if self._with_picture:
            other = await self._state.picture(request.baseline.image.data, self._model)
        images = request.context_images if self._method.takes_context else ()
        context = [await self._state.picture(image.data, self._model) for image in images]
        targets = Targets(self._state, self._model, self._dictionaries[0])
        sites = tuple(served.bundle.site for served in self._dictionaries)
        target = await targets.target(request.target, picture.geometry, sites)
        observation, inputs = await lane.run(
            partial(self._observe, target, sites, picture, other, context)
        )
        response = pb.AttributeResponse(unread_texts=targets.unread)
        for site_inputs in inputs:
            make = await lane.run(partial(self._compute, observation, site_inputs, picture))
            response.sites.append(await self._state.searching.run(make))
        return response

    def _observe(
        self,
        target: Target,
        sites: Sequence[str],
        picture: PreparedPicture,
        other: PreparedPicture | None,
        context: Sequence[PreparedPicture],
    ) -> tuple[Observation, list[_SiteInputs]]:
        """Run the model on the picture, and on the baseline's and the context pictures."""
        model, special = self._model.model, self._request.special_tokens
        observation = Observation(model, picture.pixels, target, sites, special_tokens=special)
        others = (
            vectors_at(model, sites, other.pixels[None], special_tokens=special) if other else {}
        )
        # One picture at a time: the vectors must not depend on the other pictures.
        further = [vectors_at(model, sites, each.pixels[None]) for each in context]
        return observation, [
            _SiteInputs(
                served,
                others[site][0] if other else None,
                torch.cat([vectors[site] for vectors in further]) if further else None,
            )
            for served, site in zip(self._dictionaries, sites, strict=True)
        ]

    def _compute(
        self, observation: Observation, site_inputs: _SiteInputs, picture: PreparedPicture
    ) -> Callable[[], ledger_pb2.SiteAttribution]:
        """Run the attribution; returns a function that fills the message without the model."""
        request = self._request
        answer = self._method.answer(
            AttributionTask(
                observation,
                site_inputs.features,
                reference=self._reference(site_inputs),
                nodes=request.nodes or NODES,
                ablated=request.top_k or ABLATED,
                context=site_inputs.context,
                components=request.components or COMPONENTS,
            )
        )
        update = observation.updates[site_inputs.features.site][observation.special :].cpu()
        start = SiteAnswer(request, site_inputs.served, picture, update)
        tested = self._faithfulness(observation, site_inputs, picture, answer)
        if isinstance(answer, Ledger):
            code = ledger_pb2.REFERENCE_CODE_UNSPECIFIED if self._with_picture else self._code
            return partial(start.of_ledger, answer, tested, self._wire, code)
        if isinstance(answer, PatchMap):
            return partial(start.of_map, answer, tested)
        return partial(start.of_components, answer, tested)

    def _faithfulness(
        self,
        observation: Observation,
        site_inputs: _SiteInputs,
        picture: PreparedPicture,
        answer: Ledger | PatchMap | Factorisation,
    ) -> Sequence[Faithfulness]:
        """The faithfulness of an answer, if the request wants it; without features, in pixels
        only."""
        if not self._request.faithfulness:
            return ()
        features = answer.per_feature.float() if isinstance(answer, Ledger) else None
        return faithfulness(
            observation, site_inputs.features, features, answer.per_patch.float(), picture.pixels
        )

    def _reference(self, site_inputs: _SiteInputs) -> Reference:
        bundle = site_inputs.served.bundle
        if site_inputs.other is not None:
            return of_picture(bundle.dictionary, site_inputs.other)
        return reference_of(_REFERENCES[self._code], bundle.dictionary, bundle)
