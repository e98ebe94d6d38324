"""Makes labellers from a configuration; loads each model and each cache once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vision_sae.activations.store import ActivationStore
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describers.contrastive import CONTRASTIVE, ContrastiveConfig
from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.kinds import DescriberKind, describer_kind, score_kinds
from vision_sae.descriptions.labelling import Labeller
from vision_sae.descriptions.meanings import meanings, nearest
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.scores import truth
from vision_sae.descriptions.scoring.scorer import JUDGED_BY, METRICS, VERSION, Scorer
from vision_sae.descriptions.scoring.texts import TextEmbeddings
from vision_sae.descriptions.words.vocabulary import Vocabulary, embed_vocabulary
from vision_sae.devices import recorded
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.probe import Probe
from vision_sae.evidence.probe_pass import make_probe
from vision_sae.evidence.protocol import Evidence
from vision_sae.files import sha256_json
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.resources import model_resource
from vision_sae.sections import section_name
from vision_sae.threads import one_thread

_IN_EVERY_IDENTITY = ("caption-pmi", "contrastive", "milan", "vlm", "effects")
"""Describers whose settings are part of the identity of all labels, by any describer. The
identities in bundles and label jobs of earlier releases require it. The settings of any other
describer are part of the identity of its own labels alone."""


def threads_for(config: DescribeConfig) -> AbstractContextManager[None]:
    """The context for a process that only labels: one thread for describers that compute little for
    a unit, all threads for describers that run a model for each unit."""
    return one_thread() if describer_kind(config.describer).one_thread else nullcontext()


class Toolbox:
    """The models and caches of labelling by one configuration.

    ``directory`` holds caches for later runs: probes, priors, vectors of words. ``store`` saves the
    contrastive model's pass over the pictures of a probe; see `make_probe`. ``loaded`` are models
    that are in memory already, by name; other models are loaded on ``device``.
    """

    def __init__(
        self,
        config: DescribeConfig,
        directory: Path,
        *,
        store: ActivationStore | None = None,
        loaded: Mapping[str, Model] = MappingProxyType({}),
        device: str = "auto",
        progress: bool = True,
    ) -> None:
        self.config = config
        self.directory: Path = directory
        self._store = store
        self._loaded, self._device = loaded, device
        self._progress = progress
        self._probes: dict[str, Probe] = {}
        self._facts: dict[str, Facts] = {}
        self._scorers: dict[str, Scorer] = {}
        self._labellers: dict[tuple[str, str], Labeller] = {}

    @cached_property
    def clip(self) -> ContrastiveModel:
        """The contrastive model; raises `InvalidInputError` for a model that embeds no texts."""
        name = self.config.clip
        loaded = self._loaded.get(name)
        model = loaded or load_model(name, device=self._device)
        if not isinstance(model, ContrastiveModel):
            raise InvalidInputError(
                f"{self.config.clip} has no texts; name a contrastive model, such as demo:clip",
                field="clip",
            )
        return model

    @property
    def computed(self) -> dict[str, str]:
        """What labels record of their computation (`devices.recorded`): the device of the
        contrastive model, or the CPU where no label has needed that model."""
        model: ContrastiveModel | None = self.__dict__.get("clip")
        return recorded(model.device, model.dtype) if model else recorded("cpu", "float32")

    def settings(self, describer: str = "") -> dict[str, Any]:
        """The configuration as JSON for bundles and label jobs.

        It includes the sections of describers, also the section of the configured describer and of
        ``describer``.
        """
        config = self.config
        settings = config.model_dump(mode="json", include=set(DescribeConfig.model_fields))
        for name in (*_IN_EVERY_IDENTITY, config.describer, describer or config.describer):
            if section := config.of(name).model_dump(mode="json"):
                settings[section_name(name)] = section
        return settings

    def identity(self, describer: str = "") -> str:
        """SHA-256 of all inputs of labels beside the evidence: settings, versions and `contents`.

        ``describer`` is the configured describer when empty.
        """
        kind = describer_kind(describer or self.config.describer)
        versions = [kind.version, VERSION, truth.VERSION]
        inputs = [kind.name, versions, self.settings(kind.name), self.contents(kind.name)]
        # Version 1 of a score is left out: older labels were made before scores had versions.
        measured = {*self.config.metrics, JUDGED_BY} if self._scores(kind) else set()
        changed = {
            score.name: score.version
            for score in score_kinds()
            if score.version > 1 and measured & {metric.name for metric in score.metrics}
        }
        return sha256_json([*inputs, changed] if changed else inputs)

    def contents(self, describer: str = "") -> dict[str, str]:
        """{setting: SHA-256 of the model or file that the setting names}, part of `identity`.

        The hash is empty for a model that is known by its name alone.
        """
        hashes = dict[str, str]()
        kind = describer_kind(describer or self.config.describer)
        if self._scores(kind) or "contrastive model" in kind.needs:
            hashes["clip"] = self.clip.identity()["weights_sha256"]
            hashes |= CONTRASTIVE.contents(self._search)
        return hashes | dict(kind.contents(self.config.of(kind.name)))

    def _scores(self, kind: DescriberKind[Any]) -> bool:
        """Whether the contrastive model scores the labels of a describer."""
        return bool(self.config.metrics) and kind.scored

    @property
    def _search(self) -> ContrastiveConfig:
        """The settings of the search for words; scores use the vocabulary of the search."""
        settings = self.config.of(CONTRASTIVE.name)
        assert isinstance(settings, ContrastiveConfig)
        return settings

    def probe(self, evidence: Evidence) -> Probe:
        """The contrastive model's embeddings of the pictures of ``evidence``."""
        data = evidence.data_sha256
        if data not in self._probes:
            name = model_resource(self.clip.name).removeprefix("models/")
            place = self.directory / f"{name}-{data[:16]}"
            self._probes[data] = make_probe(
                self.clip, evidence, place, store=self._store, progress=self._progress
            )
        return self._probes[data]

    def facts(self, evidence: Evidence) -> Facts:
        """The facts about the pictures of ``evidence``, from captions and pixels."""
        key = sha256_json([evidence.data_sha256, evidence.grid.to_json()])
        if key not in self._facts:
            self._facts[key] = Facts(evidence, self.directory, progress=self._progress)
        return self._facts[key]

    def scorer(self, evidence: Evidence) -> Scorer:
        """The scorer of texts for units of ``evidence``."""
        probe = self.probe(evidence)
        if probe.identity not in self._scorers:
            embed = self.embeddings(self.vocabulary(evidence))
            self._scorers[probe.identity] = Scorer(self.clip, probe, embed=embed)
        return self._scorers[probe.identity]

    def by_meaning(self, text: str, evidence: Evidence) -> list[tuple[int, float]]:
        """(unit, cosine similarity of its `meanings` to a text), the most similar unit first."""
        (query,) = self.scorer(evidence).embed([text])
        return nearest(query, meanings(evidence, self.probe(evidence), self.directory))

    def embeddings(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Texts as directions from the mean word of a vocabulary."""
        vectors = embed_vocabulary(self.clip, vocabulary, self.directory).numpy()
        return TextEmbeddings(self.clip, vectors.mean(0), words=vocabulary.words, vectors=vectors)

    def labeller(self, evidence: Evidence, describer: str = "") -> Labeller:
        """The labeller of units of ``evidence``; ``describer`` is the configured one when empty."""
        name = describer or self.config.describer
        if (name, evidence.identity) not in self._labellers:
            kind = describer_kind(name)
            describing = kind.make(self, evidence, self.config.of(name))
            scores = self._scores(kind)
            scorer = self.scorer(evidence) if scores else None
            judged = scores or kind.looked_up
            grounding = Grounding(self.facts(evidence)) if judged else None
            metrics = [m for name in self.config.metrics for m in METRICS if m == name]
            self._labellers[name, evidence.identity] = Labeller(
                describing, scorer, metrics, grounding
            )
        return self._labellers[name, evidence.identity]

    def vocabulary(self, evidence: Evidence, *, nouns: bool = True) -> Vocabulary:
        """The words for labels: the file ``describe.contrastive.vocabulary``, or words from the
        captions; see `Vocabulary.of_captions`."""
        path = self._search.vocabulary
        return (
            Vocabulary.read(path) if path else Vocabulary.of_captions(evidence.images, nouns=nouns)
        )
