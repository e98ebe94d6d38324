"""MILAN: the label of a unit is the text that its exemplars make likelier than it is anyway.

    pmi(d; E) = log p(d | E) - weight * log p(d)

p(d | E) is a captioner's (`vision_sae.descriptions.describers.captioner`), p(d) a language model's.
A beam search proposes the texts with the largest log p(d | E); all of them are ranked by pmi. With
weight 0 the captioner's favourites win, which are general ("a thing"); the larger the weight, the
more particular the label. Neither term is divided by the length of the text.

Source: Hernandez et al., Natural Language Descriptions of Deep Visual Features, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from vision_sae.config import MilanConfig
from vision_sae.descriptions.evidence.protocol import Evidence, split
from vision_sae.descriptions.protocol import Description, Score

if TYPE_CHECKING:  # both load transformers, which takes seconds
    from vision_sae.descriptions.describers.captioner import Captioner
    from vision_sae.descriptions.describers.language_model import LanguageModel

_CANDIDATES = 10
"""Texts that a description keeps."""


class MilanDescriber:
    """Captions units by the models that a configuration names; loads them when first needed."""

    name = "milan"
    version = 2

    def __init__(self, config: MilanConfig) -> None:
        self._config = config

    @cached_property
    def _captioner(self) -> Captioner:
        from vision_sae.descriptions.describers.captioner import load_captioner

        return load_captioner(self._config.captioner)

    @cached_property
    def _language_model(self) -> LanguageModel:
        from vision_sae.descriptions.describers.language_model import load_language_model

        return load_language_model(self._config.language_model)

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        """Descriptions of ``units`` in order, each computed by itself."""
        for unit in units:
            yield self._describe(evidence, unit)

    def _describe(self, evidence: Evidence, unit: int) -> Description:
        config = self._config
        exemplars = split(evidence, unit).describe[: config.exemplars]
        patches = tuple(firing.patch for firing in exemplars)
        if not exemplars:
            reason = "it fires in no picture to describe it by"
            return Description(unit, None, reason, self.name, self.version)
        found = self._captioner.hypotheses(
            evidence, exemplars, beam=config.beam, max_tokens=config.max_tokens
        )
        if not found:
            reason = f"the captioner ends no text within {config.max_tokens} tokens"
            return Description(unit, None, reason, self.name, self.version, evidence=patches)
        priors = self._language_model.log_probabilities([h.text for h in found])
        ranked = sorted(
            (-(h.log_probability - config.weight * prior), h.text, h.log_probability, prior)
            for h, prior in zip(found, priors, strict=True)
        )
        negative, text, likelihood, prior = ranked[0]
        return Description(
            unit,
            text,
            "",
            self.name,
            self.version,
            scores=(Score("pmi", -negative, len(exemplars)),),
            evidence=patches,
            details={
                "log_p_given_exemplars": likelihood,
                "log_p": prior,
                "captioner": config.captioner,
                "language_model": config.language_model,
            },
            candidates=tuple((text, -negative) for negative, text, *_ in ranked[:_CANDIDATES]),
        )
