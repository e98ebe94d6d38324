"""The architectures that can be loaded, by the name that their manifest gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from vision_sae.dictionaries.archetypal import ArchetypalSae
from vision_sae.dictionaries.batch_topk import BatchTopKSae
from vision_sae.dictionaries.ensemble import Bagging, Boosting
from vision_sae.dictionaries.gated import GatedSae
from vision_sae.dictionaries.jumprelu import JumpReluSae
from vision_sae.dictionaries.kmeans import KMeans
from vision_sae.dictionaries.matryoshka import MatryoshkaSae
from vision_sae.dictionaries.neurons import NeuronBasis
from vision_sae.dictionaries.nmf import Nmf
from vision_sae.dictionaries.pca import Pca
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.relu import ReluSae
from vision_sae.dictionaries.semi_nmf import SemiNmf
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.dictionaries.weights import DTYPE
from vision_sae.errors import CorruptArtifactError


class Loadable(Protocol):
    """A class of dictionaries."""

    architecture: str

    def load(self, directory: Path, config: dict[str, Any], /) -> Dictionary:
        """The dictionary whose weights lie in ``directory``."""
        ...


_CLASSES: tuple[Any, ...] = (
    TopKSae,
    MatryoshkaSae,
    ArchetypalSae,
    Bagging,
    Boosting,
    BatchTopKSae,
    JumpReluSae,
    ReluSae,
    GatedSae,
    NeuronBasis,
    Pca,
    Nmf,
    SemiNmf,
    KMeans,
)
ARCHITECTURES: dict[str, Loadable] = {c.architecture: c for c in _CLASSES}


def read_weights(directory: Path, config: dict[str, Any]) -> Dictionary:
    """The dictionary whose weights lie in ``directory``, as ``config`` describes it."""
    architecture = config["architecture"]
    if architecture not in ARCHITECTURES:
        raise CorruptArtifactError(
            f"{directory} holds a dictionary of architecture {architecture!r}; this version knows "
            f"{', '.join(ARCHITECTURES)}"
        )
    settings = {key: value for key, value in config.items() if key != DTYPE}
    return ARCHITECTURES[architecture].load(directory, settings)
