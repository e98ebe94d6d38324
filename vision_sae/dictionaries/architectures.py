"""Architectures: the definition of a kind of dictionary, and the registry of all kinds.

One module of `vision_sae.dictionaries.kinds` holds one architecture (its class, its training, its
settings), and registers it::

    ARCHITECTURES.register(Architecture(TopKSae, learner=TopKLearner))

Another distribution does the same in a module that its entry point of the group
``vision_sae.architectures`` names. This module imports no torch.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

from vision_sae import registries, sections
from vision_sae.config import TrainConfig
from vision_sae.errors import CorruptArtifactError, InvalidInputError, quoted
from vision_sae.sections import NoSettings, Section

if TYPE_CHECKING:
    from torch import Tensor

    from vision_sae.dictionaries.protocol import Dictionary
    from vision_sae.dictionaries.training.step import Learner
    from vision_sae.registry import Registry

    class Loadable(Dictionary, Protocol):
        """A dictionary whose class loads saved dictionaries."""

        @classmethod
        def load(cls, directory: Path, config: dict[str, Any]) -> Self:
            """The dictionary whose weights lie in ``directory``, as ``config`` describes it."""
            ...


S = TypeVar("S", bound=Section)


class Fitting(NamedTuple):
    """The settings of a dictionary that is fitted in one pass."""

    dim: int
    """Length D of a site vector."""
    width: int | None
    """Configured number of features; None for the architecture's default."""
    k: int | None
    """The largest number of features that fire in a row; all when absent."""
    rows: int
    """Site vectors in the sample, for architectures that are fitted to a sample."""
    seed: int
    """Seed of every random draw."""
    settings: Section
    """The settings in the architecture's section."""

    @property
    def features(self) -> int:
        """The configured number of features, or D without one."""
        return self.dim if self.width is None else self.width


@dataclass(frozen=True)
class Architecture:
    """A kind of dictionary.

    An architecture with a ``learner`` is trained by steps. One with ``fit`` is fitted in a pass
    over the store. One with neither can only be loaded.
    """

    dictionary: type[Loadable]
    """The class that encodes, decodes and loads; its ``architecture`` is the name."""
    learner: type[Learner] | None = None
    """The class that trains a dictionary by steps."""
    fit: Callable[[Iterable[Tensor], Fitting], Dictionary] | None = None
    """(batches (N, D) of site vectors, settings of the fit) -> the dictionary."""
    settings: type[Section] = NoSettings
    """The settings that belong to this architecture alone: the section ``train.NAME``."""
    version: int = 1
    """Raised when the same settings and data give another dictionary."""

    @property
    def name(self) -> str:
        """The name in configurations and manifests."""
        return self.dictionary.architecture

    @property
    def summary(self) -> str:
        """The first line of the docstring of the module, or else of the class."""
        module = sys.modules[self.dictionary.__module__]
        return (inspect.getdoc(module) or inspect.getdoc(self.dictionary) or "").partition("\n")[0]


ARCHITECTURES: Registry[Architecture] = registries.ARCHITECTURES
"""Every architecture by its name."""


def described() -> list[dict[str, Any]]:
    """{name, version, summary, settings} of every architecture, for tables of documents and
    capabilities; `vision_sae.sections.settings_of` gives ``settings``. Imports every kind."""
    return [
        {
            "name": architecture.name,
            "version": architecture.version,
            "summary": architecture.summary,
            "settings": [field._asdict() for field in sections.settings_of(architecture.settings)],
        }
        for architecture in ARCHITECTURES
    ]


def settings_of(config: TrainConfig, section: type[S]) -> S:
    """The settings of ``config``'s architecture, whose class is ``section``."""
    settings = config.of(config.architecture)
    assert isinstance(settings, section), f"{config.architecture} has other settings"
    return settings


def checked(config: TrainConfig, *, beside: Collection[str] = ()) -> TrainConfig:
    """``config`` with the section of its architecture alone, defaults included.

    ``beside`` names the other architectures of a sweep; their sections are dropped. Raises
    `InvalidInputError`, with the dotted name of the field, for a section of any further
    architecture, and for an architecture that can only be loaded.
    """
    name = config.architecture
    for other in config.kinds_with_section:
        if other != name and other not in beside:
            raise InvalidInputError(
                f"configuration: train.{other} holds settings of another architecture than "
                f"train.architecture, {name}; remove them, or choose {other}",
                field=f"train.{other}",
            )
    architecture = ARCHITECTURES[name]
    if architecture.learner is None and architecture.fit is None:
        raise InvalidInputError(
            f"dictionaries of architecture {name} are loaded, never trained; choose another",
            field="train.architecture",
        )
    return config.with_one_section(name)


def read_weights(directory: Path, config: dict[str, Any]) -> Dictionary:
    """The dictionary whose weights lie in ``directory``, as a manifest describes it by ``config``.

    Raises `CorruptArtifactError` for an unknown architecture.
    """
    from vision_sae.dictionaries.ensemble import ENSEMBLES
    from vision_sae.dictionaries.weights import DTYPE

    name = config["architecture"]
    settings = {key: value for key, value in config.items() if key != DTYPE}
    if name in ENSEMBLES:
        return ENSEMBLES[name].load(directory, settings)
    if name not in ARCHITECTURES:
        raise CorruptArtifactError(
            f"{directory} holds a dictionary of architecture {quoted(name)}, and this installation "
            f"knows {', '.join((*ARCHITECTURES.names, *ENSEMBLES))}; install what adds it"
        )
    return ARCHITECTURES[name].dictionary.load(directory, settings)
