"""Interventions: a model's output for a picture while some features are edited.

Edits keep the reconstruction error. Without an effective edit the output equals that of the plain
model, bit for bit. The control moves random features of the same dictionary by the same amounts.
Their directions are scaled to the norms of the edited features' directions, so that the sites
change by as much.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.attribution.targets import Target, measure_targets
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.dictionaries.resident import resident_at
from vision_sae.errors import InvalidInputError
from vision_sae.models.protocol import Model, ModelOutput
from vision_sae.steering.edits import FeatureEdit, apply_edits, check_features
from vision_sae.transfers import to_host

StandIns = Mapping[str, Mapping[int, Tensor]]
"""{dictionary: {feature: direction}}: directions that replace the features' own."""


@dataclass(frozen=True)
class ClassChange:
    """One class before and after the edits."""

    index: int
    logit_before: float
    logit_after: float
    probability_before: float
    probability_after: float


class InterventionResult(NamedTuple):
    """The outputs and targets of one picture, before and after the edits."""

    before: ModelOutput
    after: ModelOutput
    """Outputs of batches of one."""
    values_before: Float64[np.ndarray, " K"]
    values_after: Float64[np.ndarray, " K"]
    """The targets."""
    values_control: Float64[np.ndarray, "R K"]
    """The targets under each of R controls."""
    relative_change: float
    """Norm of the change at the edited sites over the norm of the site vectors, over patches."""

    @property
    def embeddings(self) -> Float32[np.ndarray, "2 E"]:
        """The embeddings before and after."""
        both = [output.embedding[0].float().cpu().numpy() for output in (self.before, self.after)]
        return np.stack(both)

    @property
    def embedding_similarity(self) -> float:
        """Cosine similarity of the embeddings before and after."""
        one, other = self.embeddings
        return float(one @ other / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12))

    @property
    def flipped(self) -> bool:
        """Whether another class leads after the edits."""
        both = [o.logits for o in (self.before, self.after) if o.logits is not None]
        return len({int(logits.argmax()) for logits in both}) > 1

    def control_change(self, target: int) -> float | None:
        """Mean absolute change of a target under the controls; None without controls."""
        moved = self.values_control[:, target] - self.values_before[target]
        return float(np.abs(moved).mean()) if len(moved) else None

    def classes(self, count: int) -> list[ClassChange]:
        """The ``count`` classes that lead before the edits and those that lead after them, by the
        logit before; none of a model without classes."""
        both = [o.logits[0].double() for o in (self.before, self.after) if o.logits is not None]
        if not both or count < 1:
            return []
        logits = np.stack([row.cpu().numpy() for row in both])
        shares = np.stack([row.softmax(0).cpu().numpy() for row in both])
        leading = np.unique(np.argsort(-logits, axis=1, kind="stable")[:, :count])
        ordered = leading[np.argsort(-logits[0, leading], kind="stable")]
        columns = np.concatenate([logits, shares])[:, ordered].T.tolist()
        return [
            ClassChange(i, *values) for i, values in zip(ordered.tolist(), columns, strict=True)
        ]


class Measured(NamedTuple):
    """The measurements of an intervention, on the model's device."""

    before: ModelOutput
    after: ModelOutput
    values: Float[Tensor, "N K"]
    """The targets before the edits, after them, and under each control."""
    moved: Float[Tensor, "sites 2"]
    """The squared norms of the change and of the vectors, over the patches of each edited site."""

    def on_host(self) -> InterventionResult:
        """The result in host memory; one transfer."""
        outputs = [t for output in self[:2] for t in output if t is not None]
        values, moved, *rest = to_host(self.values, self.moved, *outputs)
        half = len(rest) // 2
        before, after = (
            ModelOutput(embedding, logits[0] if logits else None)
            for embedding, *logits in (rest[:half], rest[half:])
        )
        doubles = np.asarray(values.double().numpy())
        change, vectors = moved.double().sum(0).tolist()  # of no site: 0
        share = float(np.sqrt(change / max(vectors, 1e-24)))
        return InterventionResult(before, after, doubles[0], doubles[1], doubles[2:], share)


class FeatureIntervention:
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
        """``alive`` are the features of each dictionary that the ``controls`` draw from; by default
        all. Raises `FeatureNotFoundError` for an edit of a feature that its dictionary lacks."""
        check_features(
            edits,
            {name: site_dictionary.dictionary for name, site_dictionary in dictionaries.items()},
        )
        self.model = model
        self._dictionaries = {
            name: resident_at(site_dictionary, model.device)
            for name, site_dictionary in dictionaries.items()
        }
        self._edits = {
            name: [self._on_tokens(edit) for edit in edits if edit.dictionary == name]
            for name in dict.fromkeys(edit.dictionary for edit in edits)
        }
        self.sites = list(dict.fromkeys(dictionaries[name].site for name in self._edits))
        random = np.random.default_rng(seed)
        self._controls = [self._stand_ins(random, alive or {}) for _ in range(controls)]

    def _on_tokens(self, edit: FeatureEdit) -> FeatureEdit:
        """The edit with weights of all tokens (T). An edit with weights or a threshold leaves
        special tokens alone."""
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
    def _applied(self, stand_ins: StandIns | None, moved: list[Tensor]) -> Iterator[None]:
        """Edits are in force during forwards of one picture; ``moved`` collects the squared norms
        (change, vectors) of the patches of each site, on the model's device."""
        special = self.model.grid.special

        def edit_of(name: str, vectors: Tensor) -> Tensor:
            own = None if stand_ins is None else stand_ins[name]
            site_dictionary, plain = self._dictionaries[name], vectors[0].float()
            edited = apply_edits(
                plain, self._edits[name], site_dictionary.dictionary, stand_ins=own
            )
            change, patches = (edited - plain)[special:], plain[special:]
            moved.append(torch.stack([change.square().sum(), patches.square().sum()]))
            return vectors if edited is plain else edited[None].to(vectors.dtype)

        with ExitStack() as stack:
            for name in self._edits:
                site = self._dictionaries[name].site
                stack.enter_context(self.model.replace(site, partial(edit_of, name)))
            yield

    def __call__(
        self, image: Float[Tensor, "C H W"], targets: Sequence[Target]
    ) -> InterventionResult:
        """Measure one picture before the edits, after them, and under each control.

        All of it is computed on the model's device, and copied to host memory once.
        """
        return self.measured(image, targets).on_host()

    def measured(self, image: Float[Tensor, "C H W"], targets: Sequence[Target]) -> Measured:
        """What a call measures, on the model's device."""
        batch, moved = image[None].to(self.model.device), list[Tensor]()
        with torch.inference_mode():
            plain, before = measure_targets(self.model, batch, targets)
            with self._applied(None, moved):
                edited, after = measure_targets(self.model, batch, targets)
            controls = []
            for stand_ins in self._controls:
                with self._applied(stand_ins, []):
                    controls.append(measure_targets(self.model, batch, targets)[1])
        return Measured(
            plain.output,
            edited.output,
            torch.cat([before, after, *controls]),
            torch.stack(moved) if moved else before.new_zeros(0, 2),
        )
