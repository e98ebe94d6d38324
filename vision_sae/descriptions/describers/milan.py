"""MILAN: the label of a unit is the text that its exemplars make most probable beyond its prior.

    pmi(d; E) = log p(d | E) - weight * log p(d)

A captioner gives p(d | E) (`vision_sae.descriptions.captioning.captioner`), and a language model
gives p(d). A beam search proposes the texts of largest log p(d | E), and pmi ranks these texts.
With weight 0 the label is the captioner's most probable text, which is general ("a thing"); a
larger weight gives a more specific label. Neither term is divided by the length of the text.

Source: Hernandez et al., Natural Language Descriptions of Deep Visual Features, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field

from vision_sae.descriptions.captioning.text_models import contents
from vision_sae.descriptions.kinds import DescriberKind, register_describer
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.evidence.protocol import Evidence, split
from vision_sae.sections import Section

if TYPE_CHECKING:  # both load transformers, which takes seconds
    from vision_sae.descriptions.captioning.captioner import Captioner
    from vision_sae.descriptions.captioning.language_model import LanguageModel

_CANDIDATES = 10
"""Texts in the candidates of a description."""


class MilanConfig(Section):
    """Labels by a captioner and a language model."""

    captioner: str = "demo:captioner"
    """The image-to-text model p(d | E): demo:captioner, a directory or a hub name."""
    language_model: str = "demo:captions-lm"
    """The causal language model p(d): demo:captions-lm, a directory or a hub name."""
    exemplars: int = Field(15, ge=1, le=48)
    """The most exemplars that a unit is described by."""
    beam: int = Field(50, ge=1, le=1000)
    """Width of the beam search on log p(d | E), and the number of texts that pmi ranks."""
    weight: float = Field(0.2, ge=0)
    """Weight of log p(d) against log p(d | E): labels are general at 0."""
    max_tokens: int = Field(24, ge=2, le=512)
    """The most tokens of a label, with the end token."""


class MilanDescriber:
    """Labels by a captioner and a language model, which are loaded when first needed."""

    name = "milan"
    version = 2

    def __init__(self, config: MilanConfig) -> None:
        self._config = config

    @cached_property
    def _captioner(self) -> Captioner:
        from vision_sae.descriptions.captioning.captioner import load_captioner

        return load_captioner(self._config.captioner)

    @cached_property
    def _language_model(self) -> LanguageModel:
        from vision_sae.descriptions.captioning.language_model import load_language_model

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
        hypotheses = self._captioner.hypotheses(
            evidence, exemplars, beam=config.beam, max_tokens=config.max_tokens
        )
        if not hypotheses:
            reason = f"the captioner ends no text within {config.max_tokens} tokens"
            return Description(unit, None, reason, self.name, self.version, evidence=patches)
        priors = self._language_model.log_probabilities([h.text for h in hypotheses])
        ranked = sorted(
            (-(h.log_probability - config.weight * prior), h.text, h.log_probability, prior)
            for h, prior in zip(hypotheses, priors, strict=True)
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


MILAN = register_describer(
    DescriberKind(
        MilanDescriber,
        MilanConfig,
        lambda tools, evidence, settings: MilanDescriber(settings),
        needs=("captioner", "language model"),
        contents=lambda settings: {
            "captioner": contents(settings.captioner),
            "language_model": contents(settings.language_model),
        },
    )
)
