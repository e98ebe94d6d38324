"""Kinds of describers and of scores, and how each enters its registry.

A describer is one module of `vision_sae.descriptions.describers`, or of another distribution with
an entry point in the group ``vision_sae.describers``. The module defines the settings, the
describer, and the registration::

    class LoudSettings(Section):
        level: int = 3
        \"""How loud a unit has to be.\"""

    class LoudDescriber:
        \"""Labels by loudness.\"""

        name, version = "loud", 1

        def describe(self, evidence, units): ...

    LOUD = register_describer(
        DescriberKind(
            LoudDescriber, LoudSettings, lambda tools, evidence, settings: LoudDescriber(settings)
        )
    )

The configuration (``describe.loud.level``), the command line (``--describer loud --set level=5``),
the server and the documentation read the registry. A score registers in the same way, in a module
of `vision_sae.descriptions.scores`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from vision_sae.descriptions.protocol import Describer, Metric, Negatives, Score
from vision_sae.errors import MissingDependencyError
from vision_sae.evidence.protocol import Evidence
from vision_sae.registries import DESCRIBERS, SCORES
from vision_sae.sections import Section, Setting, settings_of

if TYPE_CHECKING:
    from vision_sae.descriptions.scoring.sampling import ScoringCase
    from vision_sae.descriptions.toolbox import Toolbox
    from vision_sae.evidence.probe import Probe

S = TypeVar("S", bound=Section)


Need = Literal[
    "captions", "contrastive model", "captioner", "language model", "generator", "server"
]
"""An input of a describer, beside exemplars and their pictures."""


@dataclass(frozen=True)
class DescriberKind(Generic[S]):
    """The registry's entry for a describer."""

    describer: type[Describer]
    """The class. Its ``name``, ``version`` and docstring appear in the registry. Increase the
    version when labels change: units labelled by an older version are labelled again."""
    settings: type[S]
    """The section of the configuration; `vision_sae.sections.NoSettings` for none."""
    make: Callable[[Toolbox, Evidence, S], Describer]
    """Makes the describer for one evidence, with models from the toolbox."""
    needs: tuple[Need, ...] = ()
    """The describer's inputs, beside exemplars and their pictures."""
    scored: bool = True
    """Whether the contrastive model scores the labels and refuses weak ones. False for a describer
    that judges its labels by other means."""
    looked_up: bool = False
    """Whether captions and pixels judge the labels even without scores by the contrastive model."""
    one_thread: bool = False
    """Whether a unit takes so little computation that one thread is faster than many."""
    served: Callable[[S], bool] = lambda settings: True
    """Whether a server with these settings offers the describer beside its default describer."""
    check: Callable[[S], None] = lambda settings: None
    """Refuses settings that cannot work, before any model is loaded."""
    contents: Callable[[S], Mapping[str, str]] = lambda settings: {}
    """{setting: SHA-256 of the file or model that it names}, part of a label's identity."""

    @property
    def name(self) -> str:
        """The name in configurations and requests."""
        return self.describer.name

    @property
    def version(self) -> int:
        """The version that descriptions carry."""
        return self.describer.version

    @property
    def summary(self) -> str:
        """What the describer does, in one line."""
        return _first_line(inspect.getdoc(self.describer))


Check = Literal["missing", "extra"]
"""A sanity check of a metric: true entries of the label go missing, or false entries are added; see
`vision_sae.descriptions.scoring.deciding`."""


class FailedChecks(NamedTuple):
    """The sanity checks that a metric fails: such a metric decides nothing."""

    checks: frozenset[Check]
    """The checks that the metric fails at one firing rate or more."""
    because: str
    """The explanation for readers."""


MISSING: frozenset[Check] = frozenset({"missing"})
EXTRA: frozenset[Check] = frozenset({"extra"})


class MetricKind(NamedTuple):
    """One number of a score."""

    name: Metric
    failure: FailedChecks | None = None
    """Why the metric may not decide about a label; None for a metric that may."""


@dataclass(frozen=True)
class ScoreRequest:
    """A text for a unit, and the pictures to measure the text on."""

    evidence: Evidence
    probe: Probe
    """The contrastive model's embeddings of the pictures."""
    case: ScoringCase
    """Pictures that fire the unit and pictures that do not; no describer has seen them."""
    texts: Float[np.ndarray, "T E"]
    """Embeddings of length 1: of the text, then of the control texts."""
    metrics: tuple[Metric, ...]
    """The requested metrics of the score."""
    negatives: tuple[Negatives, ...]
    """The requested kinds of counter-examples."""
    seed: int


@dataclass(frozen=True)
class ScoreKind:
    """The registry's entry for a score: one definition of how well a label fits, in one or more
    numbers."""

    name: str
    metrics: tuple[MetricKind, ...]
    documentation: str | None
    """The docstring of the score's module; the first line is the summary."""
    measure: Callable[[ScoreRequest], Sequence[Score]] | None = None
    """Measures a text with a contrastive model; metrics without enough pictures are left out. None
    for a score that a describer or a judge computes: a request cannot name such a score."""
    needs_negatives: bool = False
    """Whether a request must name a kind of counter-examples."""
    version: int = 1
    """Part of a label's identity: increase the version when the score changes."""

    @property
    def summary(self) -> str:
        """The score's question, in one line."""
        return _first_line(self.documentation)


def register_describer(kind: DescriberKind[S]) -> DescriberKind[S]:
    """Register a describer; its module calls this. Returns the entry."""
    DESCRIBERS.register(kind)
    return kind


def register_score(kind: ScoreKind) -> ScoreKind:
    """Register a score; its module calls this. Returns the entry."""
    SCORES.register(kind)
    return kind


def describer_kind(name: str) -> DescriberKind[Any]:
    """The registered describer of this name; imports its module.

    Raises `InvalidInputError` for an unknown name, and `MissingDependencyError` when another
    distribution's describer cannot be used.
    """
    kind = DESCRIBERS[name]
    if not isinstance(kind, DescriberKind):
        raise MissingDependencyError(
            f"the describer {name!r} registers {type(kind).__name__}, not the DescriberKind of "
            "vision_sae.descriptions.kinds; ask its authors to repair it, or uninstall it",
            field=DESCRIBERS.field,
        )
    return kind


def score_kinds() -> list[ScoreKind]:
    """All registered scores, by name; imports their modules."""
    return list(SCORES)


def text_metrics() -> tuple[Metric, ...]:
    """The metrics that can be measured for any text, in the order of the registry."""
    return tuple(metric.name for kind in score_kinds() if kind.measure for metric in kind.metrics)


class Described(NamedTuple):
    """A describer or a score as ``describe --list`` and the documentation show it."""

    name: str
    version: int
    summary: str
    needs: tuple[Need, ...]
    """A describer's inputs, beside exemplars."""
    settings: list[Setting]
    """The settings in the configuration; a score has none."""
    metrics: tuple[str, ...] = ()
    """The numbers of a score."""
    selectable: bool = True
    """Whether ``describe.metrics`` may name the metrics."""


def describers_described() -> list[Described]:
    """Every registered describer, by name."""
    kinds = [describer_kind(name) for name in DESCRIBERS.names]
    return [
        Described(k.name, k.version, k.summary, k.needs, settings_of(k.settings)) for k in kinds
    ]


def scores_described() -> list[Described]:
    """Every registered score, by name."""
    return [
        Described(
            kind.name,
            kind.version,
            kind.summary,
            (),
            [],
            tuple(metric.name for metric in kind.metrics),
            kind.measure is not None,
        )
        for kind in score_kinds()
    ]


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]
