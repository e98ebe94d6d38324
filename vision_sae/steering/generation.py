"""Steered generations: a picture with edits and, from the same noise in the same batch, its twin
without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.dictionaries.protocol import Dictionary, SiteDictionary
from vision_sae.dictionaries.resident import resident_at
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import Denoising, GenerationSettings, Generator
from vision_sae.steering import effects
from vision_sae.steering.edits import (
    FeatureEdit,
    activations,
    apply_edits,
    check_features,
    constant_addition,
)
from vision_sae.steering.transport import Transport, apply_transport

PICTURE, TWIN, SOURCES = 0, 1, 2
"""Places in a batch: the steered picture, its twin, and then the sources of transports."""


class SteeredPictures(NamedTuple):
    """The result of a steered generation."""

    picture: Image.Image
    twin: Image.Image
    """The picture without the edits."""
    settings: GenerationSettings
    """The settings with every value filled in."""


@dataclass(frozen=True)
class Changes:
    """All edits and transports of one generation."""

    edits: Sequence[FeatureEdit] = ()
    transports: Sequence[Transport] = ()
    dictionaries: Mapping[str, SiteDictionary] = field(default_factory=dict)
    """Keyed by the names that edits and transports use."""


class Steering:
    """The changes of one generation, ready to be applied at each of its steps.

    With guidance a step's batch has two halves, the unconditional one first.
    """

    def __init__(self, model: Generator, changes: Changes) -> None:
        dictionaries = {
            name: resident_at(site_dictionary, model.device)
            for name, site_dictionary in changes.dictionaries.items()
        }
        check_features(changes.edits, {name: d.dictionary for name, d in dictionaries.items()})
        self._model = model
        self.fired: dict[FeatureEdit, Tensor] = {}
        """For each edit with `FeatureEdit.fires_above`: the patches (P) where its feature has fired
        at any step so far."""
        self._groups = []
        for name, site_dictionary in dictionaries.items():
            edits = [edit for edit in changes.edits if edit.dictionary == name]
            sources = {
                SOURCES + place: transport
                for place, transport in enumerate(changes.transports)
                if transport.dictionary == name
            }
            self._groups.append((site_dictionary, edits, sources))

    @contextmanager
    def applied(self, run: Denoising) -> Iterator[None]:
        """Apply the changes during the next step of ``run``, in the body."""
        with ExitStack() as stack:
            for site_dictionary, edits, sources in self._groups:
                now = [edit for edit in edits if edit.when.factor(run.step) is not None]
                if sources or any(edit.reads_site for edit in now):
                    edit = partial(self._edit, site_dictionary.dictionary, now, sources, run)
                    stack.enter_context(self._model.replace(site_dictionary.site, edit))
                elif now:
                    addition = partial(self._addition, site_dictionary, now, run)
                    stack.enter_context(self._model.add(site_dictionary.site, addition))
            yield

    def _addition(
        self, site_dictionary: SiteDictionary, edits: Sequence[FeatureEdit], run: Denoising
    ) -> Tensor:
        settings = run.batch[PICTURE]
        grid = self._model.grid(site_dictionary.site, settings.height, settings.width)
        dim = self._model.sites[site_dictionary.site].dim
        halves = torch.zeros(
            *(2 if run.guided else 1, len(run.batch), grid.patches, dim), device=self._model.device
        )
        for half, group in groupby(sorted(edits, key=_half), key=_half):
            change = constant_addition(
                list(group), site_dictionary.dictionary, run.step, grid.patches
            )
            halves[-1, PICTURE] += change
            if run.guided and half != "conditional":
                halves[0, PICTURE] += change if half == "both" else -change
        return halves.flatten(0, 1)

    def _edit(
        self,
        dictionary: Dictionary,
        edits: Sequence[FeatureEdit],
        sources: Mapping[int, Transport],
        run: Denoising,
        vectors: Tensor,
    ) -> Tensor:
        result = vectors.clone()
        with torch.autocast(vectors.device.type, enabled=False):
            halves = vectors.float().unflatten(0, (-1, len(run.batch)))
            conditional_half = halves[-1]
            plain = conditional_half[PICTURE]
            self._note_fired(dictionary, edits, plain)
            edited = apply_edits(plain, edits, dictionary, run.step)
            for place, transport in sources.items():
                moved = apply_transport(
                    plain, conditional_half[place], transport, dictionary, run.step
                )
                edited = edited + (moved - plain)
            result[len(vectors) - len(run.batch)] = edited.to(vectors.dtype)
            if run.guided:
                both = [edit for edit in edits if edit.half == "both"]
                opposed = [edit for edit in edits if edit.half == "opposed"]
                other = apply_edits(halves[0, PICTURE], both, dictionary, run.step)
                if opposed:
                    other = other - (apply_edits(plain, opposed, dictionary, run.step) - plain)
                result[0] = other.to(vectors.dtype)
        return result

    def _note_fired(
        self, dictionary: Dictionary, edits: Sequence[FeatureEdit], vectors: Tensor
    ) -> None:
        conditional = [edit for edit in edits if edit.fires_above is not None]
        if not conditional:
            return
        activity = activations(dictionary.encode(vectors), [edit.feature for edit in conditional])
        for edit, values in zip(conditional, activity.T, strict=True):
            fires = values > (edit.fires_above or 0.0)
            self.fired[edit] = self.fired[edit] | fires if edit in self.fired else fires


def _half(edit: FeatureEdit) -> str:
    return edit.half


class SteeredGeneration:
    """A steered generation in progress; the caller may stop it between steps."""

    def __init__(
        self, model: Generator, settings: GenerationSettings, changes: Changes | None = None
    ) -> None:
        changes = changes or Changes()
        if changes.transports and settings.image is not None:
            raise InvalidInputError(
                "features cannot be carried into a generation that starts from a picture; leave "
                "one of the two out",
                field="transports",
            )
        self._model, self._changes = model, changes
        self._steering = Steering(model, changes)
        # A source goes through the same steps as the picture.
        sources = [
            replace(settings, prompt=t.source.prompt, seed=t.source.seed)
            for t in changes.transports
        ]
        self.run = model.start(settings, settings, *sources)

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.run.step == self.run.steps

    def reached(self) -> Bool[np.ndarray, "H W"] | None:
        """The pixels that the edits and transports could change; None for all pixels.

        The patches where a feature fires by itself are known only after the last step.
        """
        fired = self._steering.fired
        weighted = {e: e.weights > 0 for e in self._changes.edits if e.weights is not None}
        patches = [
            *((edit.dictionary, (weighted | fired).get(edit)) for edit in self._changes.edits),
            *((each.dictionary, each.target_patches) for each in self._changes.transports),
        ]
        return effects.union([self._pixels(name, mask) for name, mask in patches])

    def _pixels(self, dictionary: str, patches: Tensor | None) -> NDArray[np.bool_] | None:
        """A mask of a site's patches (P) as a mask of the picture's pixels (H, W)."""
        if patches is None:
            return None
        settings, site = self.run.batch[PICTURE], self._changes.dictionaries[dictionary].site
        grid = self._model.grid(site, settings.height, settings.width)
        on_grid = patches.cpu().numpy().reshape(grid.rows, grid.cols)
        return effects.pixels_of(on_grid, settings.height, settings.width)

    def advance(self, capture: Sequence[str] = ()) -> dict[str, Float[Tensor, "_ _"]]:
        """Run one step; returns the steered vectors of the sites to capture."""
        with self._steering.applied(self.run), self._model.capture(capture) as captured:
            self.run.advance()
        return {site: tensor[-len(self.run.batch)] for site, tensor in captured.items()}

    def result(self) -> SteeredPictures:
        """The picture and its twin, at the current step."""
        picture, twin, *_ = self.run.pictures()
        return SteeredPictures(picture, twin, self.run.batch[PICTURE])


def generate(
    model: Generator, settings: GenerationSettings, changes: Changes | None = None
) -> SteeredPictures:
    """Generate a picture and its twin."""
    generation = SteeredGeneration(model, settings, changes)
    while not generation.done:
        generation.advance()
    return generation.result()
