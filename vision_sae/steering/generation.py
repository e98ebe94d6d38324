"""Steered generations: a picture with edits and, from the same noise in the same batch, its twin
without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_sae.dictionaries.protocol import Dictionary, SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.generator import Denoising, GenerationSettings, Generator
from vision_sae.steering.edits import FeatureEdit, activations, added, changed, check_features
from vision_sae.steering.transport import Transport, carried

PICTURE, TWIN, SOURCES = 0, 1, 2
"""Places in a batch: the steered picture, its twin, and then the sources of transports."""


class Cancelled(Exception):
    """Somebody no longer wants the picture."""


class Steered(NamedTuple):
    """What a generation gives."""

    picture: Image.Image
    twin: Image.Image
    """The picture without the edits."""
    settings: GenerationSettings
    """Nothing is missing in them."""


@dataclass(frozen=True)
class Changes:
    """Everything that is done to one generation."""

    edits: Sequence[FeatureEdit] = ()
    transports: Sequence[Transport] = ()
    dictionaries: Mapping[str, SiteDictionary] = field(default_factory=dict)
    """By the keys that edits and transports name."""


class Steering:
    """The changes of one generation, ready to be applied at each of its steps.

    With guidance a step's batch has two halves, the unconditional one first.
    """

    def __init__(self, model: Generator, changes: Changes) -> None:
        dictionaries = {name: found.dictionary for name, found in changes.dictionaries.items()}
        check_features(changes.edits, dictionaries)
        self._model = model
        self.fired: dict[FeatureEdit, Tensor] = {}
        """Of edits that apply where their feature fires by itself, the patches (P) where it did, at
        any step so far."""
        self._groups = []
        for name, found in changes.dictionaries.items():
            edits = [edit for edit in changes.edits if edit.dictionary == name]
            sources = {
                SOURCES + place: transport
                for place, transport in enumerate(changes.transports)
                if transport.dictionary == name
            }
            self._groups.append((found, edits, sources))

    @contextmanager
    def applied(self, run: Denoising) -> Iterator[None]:
        """Changes are in force during the next step of ``run``."""
        with ExitStack() as stack:
            for found, edits, sources in self._groups:
                now = [edit for edit in edits if edit.when.factor(run.step) is not None]
                if sources or any(edit.looks for edit in now):
                    edit = partial(self._edit, found.dictionary, now, sources, run)
                    stack.enter_context(self._model.replace(found.site, edit))
                elif now:
                    addition = partial(self._addition, found, now, run)
                    stack.enter_context(self._model.add(found.site, addition))
            yield

    def _addition(
        self, found: SiteDictionary, edits: Sequence[FeatureEdit], run: Denoising
    ) -> Tensor:
        settings = run.batch[PICTURE]
        grid = self._model.grid(found.site, settings.height, settings.width)
        dim = self._model.sites[found.site].dim
        halves = torch.zeros(2 if run.guided else 1, len(run.batch), grid.patches, dim)
        for half, group in groupby(sorted(edits, key=_half), key=_half):
            change = added(list(group), found.dictionary, run.step, grid.patches)
            halves[-1, PICTURE] += change
            if run.guided and half != "conditional":
                halves[0, PICTURE] += change if half == "both" else -change
        return halves.flatten(0, 1).to(self._model.device)

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
            given = halves[-1]
            plain = given[PICTURE]
            self._note_fired(dictionary, edits, plain)
            edited = changed(plain, edits, dictionary, run.step)
            for place, transport in sources.items():
                moved = carried(plain, given[place], transport, dictionary, run.step)
                edited = edited + (moved - plain)
            result[len(vectors) - len(run.batch)] = edited.to(vectors.dtype)
            if run.guided:
                both = [edit for edit in edits if edit.half == "both"]
                opposed = [edit for edit in edits if edit.half == "opposed"]
                other = changed(halves[0, PICTURE], both, dictionary, run.step)
                if opposed:
                    other = other - (changed(plain, opposed, dictionary, run.step) - plain)
                result[0] = other.to(vectors.dtype)
        return result

    def _note_fired(
        self, dictionary: Dictionary, edits: Sequence[FeatureEdit], vectors: Tensor
    ) -> None:
        looking = [edit for edit in edits if edit.fires_above is not None]
        if not looking:
            return
        found = activations(dictionary.encode(vectors), [edit.feature for edit in looking])
        for edit, values in zip(looking, found.T, strict=True):
            fires = values > (edit.fires_above or 0.0)
            self.fired[edit] = self.fired[edit] | fires if edit in self.fired else fires


def _half(edit: FeatureEdit) -> str:
    return edit.half


class Generation:
    """A steered generation under way: who drives it may stop between steps."""

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
        # A source goes through the very steps of the picture.
        sources = [
            replace(settings, prompt=t.source.prompt, seed=t.source.seed)
            for t in changes.transports
        ]
        self.run = model.start(settings, settings, *sources)

    @property
    def fired(self) -> Mapping[FeatureEdit, Tensor]:
        """See `Steering.fired`."""
        return self._steering.fired

    @property
    def done(self) -> bool:
        """Whether no step is left."""
        return self.run.step == self.run.steps

    def map_of(self, site: str, patches: Tensor) -> NDArray[Any]:
        """What is known of the patches (P) of a site as (rows, cols)."""
        settings = self.run.batch[PICTURE]
        grid = self._model.grid(site, settings.height, settings.width)
        return np.asarray(patches.cpu().numpy().reshape(grid.rows, grid.cols))

    def advance(self, capture: Sequence[str] = ()) -> dict[str, Tensor]:
        """One step; gives the vectors (P, D) of the sites to capture, as steered."""
        with self._steering.applied(self.run), self._model.capture(capture) as captured:
            self.run.advance()
        return {site: tensor[-len(self.run.batch)] for site, tensor in captured.items()}

    def result(self) -> Steered:
        """What it has come to."""
        picture, twin, *_ = self.run.pictures()
        return Steered(picture, twin, self.run.batch[PICTURE])


def generate(
    model: Generator,
    settings: GenerationSettings,
    changes: Changes | None = None,
    *,
    after_step: Callable[[Denoising], bool] = lambda _: True,
) -> Steered:
    """Generate a picture and its twin.

    ``after_step`` sees the generation after each step; when it returns False, `Cancelled` is
    raised.
    """
    generation = Generation(model, settings, changes)
    while not generation.done:
        generation.advance()
        if not after_step(generation.run):
            raise Cancelled
    return generation.result()
