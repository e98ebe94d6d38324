"""Steered generations: a picture with edits and, from the same noise in the same batch, its twin
without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.models.generator import Denoising, GenerationSettings, Generator
from vision_sae.steering.edits import FeatureEdit, added, changed, check_features


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
class SiteDictionary:
    """A dictionary, and the site of a generator that its features are of."""

    dictionary: Dictionary
    site: str


class Steering:
    """Edits of one generation, ready to be applied at each of its steps.

    A batch holds the steered picture first and its twin second; with guidance there are two such
    halves, the unconditional one first.
    """

    def __init__(
        self,
        model: Generator,
        edits: Sequence[FeatureEdit],
        dictionaries: Mapping[str, SiteDictionary],
    ) -> None:
        check_features(edits, {name: d.dictionary for name, d in dictionaries.items()})
        self._model = model
        ordered = sorted(edits, key=lambda edit: edit.dictionary)  # stable: their order stays
        self._groups = [
            (dictionaries[name], list(group))
            for name, group in groupby(ordered, key=lambda edit: edit.dictionary)
        ]

    @contextmanager
    def applied(self, run: Denoising) -> Iterator[None]:
        """Edits are in force during the next step of ``run``."""
        with ExitStack() as stack:
            for found, edits in self._groups:
                now = [edit for edit in edits if edit.value_at(run.step) is not None]
                if any(edit.looks for edit in now):
                    edit = partial(self._edit, found.dictionary, now, run)
                    stack.enter_context(self._model.replace(found.site, edit))
                elif now:
                    addition = partial(self._addition, found, now, run)
                    stack.enter_context(self._model.add(found.site, addition))
            yield

    def _addition(
        self, found: SiteDictionary, edits: Sequence[FeatureEdit], run: Denoising
    ) -> Tensor:
        settings = run.batch[0]
        grid = self._model.grid(found.site, settings.height, settings.width)
        dim = self._model.sites[found.site].dim
        halves = torch.zeros(2 if run.guided else 1, 2, grid.patches, dim)
        for half, group in groupby(sorted(edits, key=_half), key=_half):
            change = added(list(group), found.dictionary, run.step, grid.patches)
            halves[-1, 0] += change
            if run.guided and half != "conditional":
                halves[0, 0] += change if half == "both" else -change
        return halves.flatten(0, 1)

    def _edit(
        self, dictionary: Dictionary, edits: Sequence[FeatureEdit], run: Denoising, vectors: Tensor
    ) -> Tensor:
        result = vectors.clone()
        with torch.autocast(vectors.device.type, enabled=False):
            conditional = len(vectors) - 2
            plain = vectors[conditional].float()
            edited = changed(plain, edits, dictionary, run.step)
            result[conditional] = edited.to(vectors.dtype)
            if run.guided:
                both = [edit for edit in edits if edit.half == "both"]
                opposed = [edit for edit in edits if edit.half == "opposed"]
                other = changed(vectors[0].float(), both, dictionary, run.step)
                if opposed:
                    other = other - (changed(plain, opposed, dictionary, run.step) - plain)
                result[0] = other.to(vectors.dtype)
        return result


def _half(edit: FeatureEdit) -> str:
    return edit.half


def generate(
    model: Generator,
    settings: GenerationSettings,
    edits: Sequence[FeatureEdit] = (),
    dictionaries: Mapping[str, SiteDictionary] | None = None,
    *,
    after_step: Callable[[Denoising], bool] = lambda _: True,
) -> Steered:
    """Generate a picture and its twin.

    ``after_step`` sees the generation after each step; when it returns False, `Cancelled` is
    raised.
    """
    steering = Steering(model, edits, dictionaries or {})
    run = model.start(settings, settings)
    while run.step < run.steps:
        with steering.applied(run):
            run.advance()
        if not after_step(run):
            raise Cancelled
    picture, twin = run.pictures()
    return Steered(picture, twin, run.batch[0])
