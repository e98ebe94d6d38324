"""Interventions: what a model says of a picture with some of its features edited.

Edits keep what the dictionary does not explain, and without an effective edit the output is that of
the plain model, bit for bit. The control moves random features of the same dictionary by the same
amounts: their directions are given the norms of the edited features' directions, so that the sites
change by as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.attribution.targets import Target, measured
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import Model, ModelOutput
from vision_sae.steering.edits import FeatureEdit, changed, check_features

StandIns = Mapping[str, Mapping[int, Tensor]]
"""{dictionary: {feature: direction}} that are moved along in the features' place."""


class Outcome(NamedTuple):
    """What one picture gave."""

    before: ModelOutput
    after: ModelOutput
    """Of batches of one."""
    values_before: NDArray[np.float64]
    values_after: NDArray[np.float64]
    """The targets (K)."""
    values_control: NDArray[np.float64]
    """The targets under each control (R, K)."""
    relative_change: float
    """Norm of the change at the edited sites over the norm of the site vectors, over patches."""


class Intervention:
    """Edits of dictionaries of one model, ready for any picture."""

    def __init__(
        self,
        model: Model,
        edits: Sequence[FeatureEdit],
        dictionaries: Mapping[str, SiteDictionary],
        *,
        controls: int = 0,
        alive: Mapping[str, NDArray[np.integer]] | None = None,
        seed: int = 0,
    ) -> None:
        """``alive`` are the features of each dictionary that the ``controls`` draw from; all when
        not given. Raises `FeatureNotFoundError` for an edit of a feature that there is not."""
        check_features(edits, {name: found.dictionary for name, found in dictionaries.items()})
        self.model, self._dictionaries = model, dictionaries
        self._edits = {
            name: [self._on_tokens(edit) for edit in edits if edit.dictionary == name]
            for name in dict.fromkeys(edit.dictionary for edit in edits)
        }
        self.sites = list(dict.fromkeys(dictionaries[name].site for name in self._edits))
        random = np.random.default_rng(seed)
        self._controls = [self._stand_ins(random, alive or {}) for _ in range(controls)]

    def _on_tokens(self, edit: FeatureEdit) -> FeatureEdit:
        """With weights of all tokens (T): an edit that has a place leaves special tokens alone."""
        if edit.weights is None and edit.fires_above is None:
            return edit
        grid = self.model.grid
        patches = torch.ones(grid.patches) if edit.weights is None else edit.weights
        return replace(edit, weights=torch.cat([torch.zeros(grid.special), patches]))

    def _stand_ins(
        self, random: np.random.Generator, alive: Mapping[str, NDArray[np.integer]]
    ) -> StandIns:
        drawn: dict[str, dict[int, Tensor]] = {}
        for name, edits in self._edits.items():
            rows = self._dictionaries[name].dictionary.decoder
            features = list(dict.fromkeys(edit.feature for edit in edits))
            allowed = np.asarray(alive.get(name, np.arange(len(rows))))
            others = np.setdiff1d(allowed, features)
            if not len(others):
                raise InvalidInputError(
                    f"no feature of {name} is left to be moved as a control, beside those that are "
                    "edited; ask for no controls",
                    field="control_count",
                )
            chosen = random.choice(others, len(features), replace=len(features) > len(others))
            drawn[name] = {
                feature: rows[other] * (rows[feature].norm() / rows[other].norm().clamp_min(1e-12))
                for feature, other in zip(features, chosen.tolist(), strict=True)
            }
        return drawn

    @contextmanager
    def _applied(
        self, stand_ins: StandIns | None, moved: list[tuple[float, float]]
    ) -> Iterator[None]:
        """Edits are in force during forwards of one picture; ``moved`` collects the squared norms
        (change, vectors) of the patches of each site."""
        special = self.model.grid.special

        def edit_of(name: str, vectors: Tensor) -> Tensor:
            own = None if stand_ins is None else stand_ins[name]
            found, plain = self._dictionaries[name], vectors[0].float()
            edited = changed(plain, self._edits[name], found.dictionary, stand_ins=own)
            change, patches = (edited - plain)[special:], plain[special:]
            moved.append((float(change.square().sum()), float(patches.square().sum())))
            return vectors if edited is plain else edited[None].to(vectors.dtype)

        with ExitStack() as stack:
            for name in self._edits:
                site = self._dictionaries[name].site
                stack.enter_context(self.model.replace(site, partial(edit_of, name)))
            yield

    def __call__(self, image: Tensor, targets: Sequence[Target]) -> Outcome:
        """Measure one picture (3, H, W) before, after, and under each control."""
        batch, moved = image[None], list[tuple[float, float]]()
        with torch.inference_mode():
            plain, before = measured(self.model, batch, targets)
            with self._applied(None, moved):
                edited, after = measured(self.model, batch, targets)
            controls = []
            for stand_ins in self._controls:
                with self._applied(stand_ins, []):
                    controls.append(measured(self.model, batch, targets)[1])
        change, vectors = np.reshape(moved, (-1, 2)).sum(0)  # of no site: 0
        return Outcome(
            plain.output,
            edited.output,
            _doubles(before)[0],
            _doubles(after)[0],
            _doubles(torch.cat([before[:0], *controls])),
            float(np.sqrt(change / max(vectors, 1e-24))),
        )


def _doubles(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.double().cpu().numpy())
