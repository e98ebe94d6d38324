"""Answers of Attribute: what a picture's features contribute to a target, at one or more sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.attribution import ledger as books
from vision_sae.attribution import maps
from vision_sae.attribution.faithfulness import Faithfulness, faithfulness
from vision_sae.attribution.ledger import Ledger, Reference, Scene
from vision_sae.dictionaries.neurons import NeuronBasis
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError, NotConfiguredError
from vision_sae.models.artifacts import artifacts
from vision_sae.tensors import to_proto
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import ledger_pb2, tensor_pb2
from vision_sae_server import messages
from vision_sae_server.encodings import (
    DEFAULT_PATCHES,
    DEFAULT_TOP_K,
    explained,
    maps_of,
)
from vision_sae_server.served import Served, ServedModel
from vision_sae_server.state import Picture, State
from vision_sae_server.targets import Targets, check_has_targets
from vision_sae_server.vectors import vectors_at

_DEFAULT_NODES = 8
_DEFAULT_COMPONENTS = 6
_INTEGRATED = ledger_pb2.ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS
_ABLATION = ledger_pb2.ATTRIBUTION_METHOD_EXACT_ABLATION
_CONTRAST = ledger_pb2.ATTRIBUTION_METHOD_CONTRAST_IMAGE
_NEURONS = ledger_pb2.ATTRIBUTION_METHOD_RAW_NEURON
_FACTORISATION = ledger_pb2.ATTRIBUTION_METHOD_DEEP_FEATURE_FACTORISATION
_MAPS: dict[int, Callable[[Scene, str], Tensor]] = {
    ledger_pb2.ATTRIBUTION_METHOD_GRADIENT_X_INPUT: maps.gradient_x_input,
    ledger_pb2.ATTRIBUTION_METHOD_GRAD_CAM: maps.grad_cam,
    ledger_pb2.ATTRIBUTION_METHOD_EIGEN_CAM: maps.eigen_cam,
}
"""Methods that give one map and no features."""
_SPACES = {
    "code": ledger_pb2.FAITHFULNESS_SPACE_CODE,
    "pixel": ledger_pb2.FAITHFULNESS_SPACE_PIXEL,
}
_TESTS = {
    "deletion": ledger_pb2.FAITHFULNESS_TEST_DELETION,
    "insertion": ledger_pb2.FAITHFULNESS_TEST_INSERTION,
}


@dataclass(frozen=True)
class _At:
    """One site of the answer."""

    served: Served
    other: Tensor | None
    """The site vectors (R, D) of the baseline's picture, when there is one."""
    context: Tensor | None
    """Those of further pictures (N, P, D), for factorisations."""

    @property
    def found(self) -> SiteDictionary:
        return SiteDictionary(self.served.bundle.dictionary, self.served.bundle.site)


class Attributing:
    """One request on its way to its answer."""

    def __init__(self, state: State, request: pb.AttributeRequest) -> None:
        """Raises `InvalidInputError` for dictionaries that cannot be asked for together."""
        self._state, self._request = state, request
        self._method = request.method or _INTEGRATED
        self._reference = request.baseline.reference or ledger_pb2.REFERENCE_CODE_ZERO
        self._with_picture = request.baseline.WhichOneof("kind") == "image"
        self._dictionaries = [self._chosen(name) for name in request.dictionaries]
        self._model: ServedModel = self._dictionaries[0].model
        check_has_targets(self._model, self._dictionaries[0].resource, "dictionaries")
        if {served.model.resource for served in self._dictionaries} != {self._model.resource}:
            raise InvalidInputError(
                "dictionaries of one request are of one model; ask for others by themselves",
                field="dictionaries",
            )
        if self._method == _ABLATION and (
            self._with_picture or self._reference != ledger_pb2.REFERENCE_CODE_ZERO
        ):
            raise InvalidInputError(
                "an ablated feature is set to zero, whatever the baseline; leave it out, or choose "
                "integrated gradients",
                field="baseline",
            )
        if request.special_tokens and self._method in (*_MAPS, _FACTORISATION):
            raise InvalidInputError(
                "a method without features looks at patches only; leave special_tokens out, or "
                "choose a method with features",
                field="special_tokens",
            )
        sites = [served.bundle.site for served in self._dictionaries]
        if len(set(sites)) < len(sites):
            raise InvalidInputError(
                "no two dictionaries of one request are of the same site; ask for one by itself",
                field="dictionaries",
            )

    def _chosen(self, name: str) -> Served:
        """The dictionary of a name; for RAW_NEURON the neurons of its site."""
        served = self._state.dictionary(name)
        if self._method != _NEURONS:
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
        """Everything asked for; a ledger for each dictionary."""
        request = self._request
        picture = await self._state.picture(request.image.data, self._model)
        other = None
        if self._with_picture:
            other = await self._state.picture(request.baseline.image.data, self._model)
        context = []
        if self._method == _FACTORISATION:
            for image in request.context_images:
                context.append(await self._state.picture(image.data, self._model))
        targets = Targets(self._state, self._model, self._dictionaries[0])
        sites = tuple(served.bundle.site for served in self._dictionaries)
        target = await targets.target(request.target, picture.geometry, sites)

        def seen() -> tuple[Scene, list[_At]]:
            model = self._model.model
            special = self._request.special_tokens
            scene = Scene(model, picture.pixels, target, sites, special_tokens=special)
            other_vectors = (
                vectors_at(model, sites, other.pixels[None], special_tokens=special)
                if other
                else {}
            )
            # One by one: what a picture's vectors are does not depend on the others.
            further = [vectors_at(model, sites, each.pixels[None]) for each in context]
            return scene, [
                _At(
                    served,
                    other_vectors[site][0] if other else None,
                    torch.cat([vectors[site] for vectors in further]) if further else None,
                )
                for served, site in zip(self._dictionaries, sites, strict=True)
            ]

        scene, places = await self._model.lane.run(seen)
        response = pb.AttributeResponse(unread_texts=targets.unread)
        for at in places:
            make = await self._model.lane.run(lambda: self._computed(scene, at, picture))  # noqa: B023
            response.sites.append(await self._state.searching.run(make))
        return response

    def _computed(
        self, scene: Scene, at: _At, picture: Picture
    ) -> Callable[[], ledger_pb2.SiteAttribution]:
        """Do what needs the model; gives what makes the message."""
        site = at.served.bundle.site
        if self._method in _MAPS:
            map_ = _MAPS[self._method](scene, site)
            tested = self._tested(scene, at, picture, map_)
            return lambda: self._mapped(at, picture, scene, map_, tested)
        if self._method == _FACTORISATION:
            stack = scene.updates[site][None]
            stack = stack if at.context is None else torch.cat([stack, at.context])
            count = self._request.components or _DEFAULT_COMPONENTS
            found = maps.deep_feature_factorisation(stack, count)
            effects = maps.component_effects(scene, site, found)
            tested = self._tested(
                scene, at, picture, torch.stack([c.maps[0] for c in found]).sum(0)
            )
            return lambda: self._factorised(at, picture, scene, found, effects, tested)
        ledger = self._ledger(scene, at)
        tested = self._tested(scene, at, picture, ledger.per_patch, ledger.per_feature)
        return lambda: self._ledgered(at, picture, ledger, tested)

    def _tested(
        self,
        scene: Scene,
        at: _At,
        picture: Picture,
        per_patch: Tensor,
        per_feature: Tensor | None = None,
    ) -> Sequence[Faithfulness]:
        """How faithful an answer is, if that was asked; one without features in pixels only."""
        if not self._request.faithfulness:
            return ()
        features = None if per_feature is None else per_feature.float()
        return faithfulness(scene, at.found, features, per_patch.float(), picture.pixels)

    def _ledger(self, scene: Scene, at: _At) -> Ledger:
        if self._method == _ABLATION:
            first = books.ledger(scene, at.found, nodes=1)
            features = _strongest(first, self._request.top_k or DEFAULT_TOP_K)
            return books.exact_ablation(scene, at.found, features.tolist())
        integrates = self._method in (_INTEGRATED, _CONTRAST)
        nodes = max(2, self._request.nodes or _DEFAULT_NODES) if integrates else 1
        return books.ledger(scene, at.found, nodes=nodes, reference=self._start(at))

    def _start(self, at: _At) -> Reference:
        bundle = at.served.bundle
        if at.other is not None:
            return books.of_picture(bundle.dictionary, at.other)
        if self._reference == ledger_pb2.REFERENCE_CODE_BLOCK_REMOVED:
            return books.block_removed(bundle.dictionary)
        if self._reference == ledger_pb2.REFERENCE_CODE_MEAN:
            stats, rows = bundle.statistics, len(bundle.codes.indptr) - 1
            mean = torch.from_numpy(stats.mean * (stats.count / rows)).float()
            return books.mean_code(torch.from_numpy(bundle.site_mean), mean)
        return books.zero_code(bundle.dictionary)

    def _site(
        self,
        at: _At,
        picture: Picture,
        update: Tensor,
        map_: NDArray[np.float64],
        tested: Sequence[Faithfulness],
    ) -> ledger_pb2.SiteAttribution:
        bundle = at.served.bundle
        decoded = bundle.dictionary.decode(bundle.dictionary.encode(update))
        site = ledger_pb2.SiteAttribution(
            dictionary=at.served.resource,
            grid=messages.patch_grid(
                bundle.grid,
                picture.geometry,
                at.served.model.model.special_tokens,
                artifacts(update).numpy(),
            ),
            explained_variance=explained(at.served, update, decoded),
            faithfulness=map(_message, tested),
        )
        self._write(site.total_map, at, map_)
        return site

    def _write(self, map_: tensor_pb2.Tensor, at: _At, values: NDArray[np.float64]) -> None:
        grid, format_ = at.served.bundle.grid, self._request.heatmap_format
        messages.write_heatmap(map_, values.reshape(grid.rows, grid.cols), format_)

    def _mapped(
        self,
        at: _At,
        picture: Picture,
        scene: Scene,
        map_: Tensor,
        tested: Sequence[Faithfulness],
    ) -> ledger_pb2.SiteAttribution:
        update = scene.updates[at.served.bundle.site]
        return self._site(at, picture, update, map_.double().numpy(), tested)

    def _factorised(
        self,
        at: _At,
        picture: Picture,
        scene: Scene,
        components: Sequence[maps.Component],
        effects: Sequence[float],
        tested: Sequence[Faithfulness],
    ) -> ledger_pb2.SiteAttribution:
        strengths = [c.maps[0].double().numpy() for c in components]
        update = scene.updates[at.served.bundle.site]
        site = self._site(at, picture, update, np.sum(strengths, axis=0), tested)
        for index, (strength, effect) in enumerate(zip(strengths, effects, strict=True)):
            added = site.components.add(index=index, contribution=effect)
            self._write(added.heatmap, at, strength)
        return site

    def _ledgered(
        self, at: _At, picture: Picture, ledger: Ledger, tested: Sequence[Faithfulness]
    ) -> ledger_pb2.SiteAttribution:
        request, served, special = self._request, at.served, ledger.special
        grid, per_feature = served.bundle.grid, ledger.per_feature.numpy()
        update = ledger.update[special:]
        site = self._site(at, picture, update, ledger.per_patch.numpy(), tested)
        site.special_tokens = ledger.at_special_tokens
        counted = _counted(ledger)
        shown = _strongest(ledger, request.top_k or DEFAULT_TOP_K)
        site.ledger.CopyFrom(
            ledger_pb2.Ledger(
                target_value=ledger.target_value,
                baseline_value=ledger.baseline_value,
                total=ledger.total,
                features_total=ledger.features_total,
                sae_error=float(ledger.error.sum()),
                bias=float(ledger.bias.sum()),
                remainder=ledger.features_total - float(per_feature[shown].sum()),
                remainder_count=len(counted) - len(shown),
                completeness_gap=ledger.completeness_gap,
                method=self._method,
                nodes=ledger.nodes,
                reference=ledger_pb2.REFERENCE_CODE_UNSPECIFIED
                if at.other is not None
                else self._reference,
            )
        )
        contributed = maps_of(ledger.contributions, shown)
        if ledger.mean is not None:
            contributed += ledger.mean.at(torch.from_numpy(shown)).numpy()
        activations = maps_of(ledger.codes, shown)
        limit = request.max_patches if request.HasField("max_patches") else DEFAULT_PATCHES
        found = messages.features(served, shown.tolist(), request.view, request.exemplars)
        for index, feature, effects, fires in zip(
            shown.tolist(), found, contributed, activations, strict=True
        ):
            on_patches, at_patches = effects[special:], fires[special:]
            strongest = np.argsort(-np.abs(on_patches), kind="stable")[:limit]
            strongest = strongest[at_patches[strongest] > 0]
            added = site.features.add(
                contribution=float(per_feature[index]),
                special_tokens=float(effects[:special].sum()),
                max_activation=float(fires.max()),
            )
            added.feature.CopyFrom(feature)
            self._write(added.heatmap, at, on_patches)
            messages.add_patches(
                added.patches, grid, picture.geometry, strongest, at_patches[strongest]
            )
        return site


def _counted(ledger: Ledger) -> NDArray[np.int64]:
    """The features that the books are about: those that fire, here or at the reference."""
    fires = ledger.codes.indices[ledger.codes.values > 0]
    return np.unique(torch.cat([fires, ledger.per_feature.nonzero()[:, 0]]).numpy())


def _strongest(ledger: Ledger, limit: int) -> NDArray[np.int64]:
    """The features that contribute most by magnitude."""
    counted = _counted(ledger)
    order = np.argsort(-np.abs(ledger.per_feature.numpy()[counted]), kind="stable")
    return counted[order[:limit]]


def _message(test: Faithfulness) -> ledger_pb2.Faithfulness:
    return ledger_pb2.Faithfulness(
        space=_SPACES[test.space],
        test=_TESTS[test.test],
        area=test.area,
        area_random=test.area_random,
        area_activation=test.area_activation,
        curve=to_proto(test.curve),
    )
