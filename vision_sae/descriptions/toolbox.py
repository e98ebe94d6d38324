"""From a configuration to labellers: loads what describers and scorers need, each thing once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from vision_sae.activations.store import ActivationStore
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describers.caption_pmi import CaptionPmi
from vision_sae.descriptions.describers.contrastive import ContrastiveDescriber
from vision_sae.descriptions.describers.effects import EffectsDescriber, prompts_of
from vision_sae.descriptions.describers.grounded import GroundedDescriber
from vision_sae.descriptions.describers.milan import MilanDescriber
from vision_sae.descriptions.describers.scenes import ScenesDescriber
from vision_sae.descriptions.describers.text_models import contents
from vision_sae.descriptions.describers.vlm import VlmDescriber
from vision_sae.descriptions.describers.vocabulary import Vocabulary, embed_vocabulary
from vision_sae.descriptions.evidence.bundle import BundleEvidence
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.labelling import Labeller
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.descriptions.probe import Probe, make_probe
from vision_sae.descriptions.protocol import Describer
from vision_sae.descriptions.scores import truth
from vision_sae.descriptions.scores.scorer import VERSION, Scorer
from vision_sae.descriptions.scores.texts import TextEmbeddings
from vision_sae.errors import InvalidInputError
from vision_sae.files import sha256_json
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.registry import load_model
from vision_sae.resources import model_resource
from vision_sae.steering.bundles import opened
from vision_sae.steering.causal import CausalScorer
from vision_sae.threads import one_thread

_VERSIONS: Mapping[str, int] = {
    GroundedDescriber.name: GroundedDescriber.version,
    CaptionPmi.name: CaptionPmi.version,
    ContrastiveDescriber.name: ContrastiveDescriber.version,
    MilanDescriber.name: MilanDescriber.version,
    VlmDescriber.name: VlmDescriber.version,
    EffectsDescriber.name: EffectsDescriber.version,
    ScenesDescriber.name: ScenesDescriber.version,
}

_WITH_CLIP = (ContrastiveDescriber.name, EffectsDescriber.name)
"""Describers that use the contrastive model themselves."""
_WITHOUT_CLIP = (GroundedDescriber.name, EffectsDescriber.name, ScenesDescriber.name)
"""Describers whose labels no contrastive model scores: they have judges of their own."""


def describer_version(describer: str) -> int:
    """The version of a describer."""
    return _VERSIONS[describer]


def threads_for(config: DescribeConfig) -> AbstractContextManager[None]:
    """What a process that does nothing but label computes in: describers that compute little for a
    unit are faster with one thread, those that run a model for each with all."""
    small = config.describer in (
        GroundedDescriber.name,
        CaptionPmi.name,
        ContrastiveDescriber.name,
    )
    return one_thread() if small else nullcontext()


class Toolbox:
    """What labelling by one configuration takes.

    ``directory`` keeps what is worth keeping between runs: probes, priors, vectors of words.
    ``store`` spares a probe the contrastive model's pass; see `make_probe`. ``loaded`` are models
    that are there already, by name.
    """

    def __init__(
        self,
        config: DescribeConfig,
        directory: Path,
        *,
        store: ActivationStore | None = None,
        loaded: Mapping[str, Model] = MappingProxyType({}),
        progress: bool = True,
    ) -> None:
        self.config = config
        self.directory = directory
        self._store = store
        self._loaded = loaded
        self._progress = progress
        self._probes: dict[str, Probe] = {}
        self._facts: dict[str, Facts] = {}
        self._scorers: dict[str, Scorer] = {}
        self._labellers: dict[tuple[str, str], Labeller] = {}

    @cached_property
    def clip(self) -> ContrastiveModel:
        """The contrastive model; raises `InvalidInputError` for a model without texts."""
        name = self.config.clip
        model = self._loaded[name] if name in self._loaded else load_model(name)
        if not isinstance(model, ContrastiveModel):
            raise InvalidInputError(
                f"{self.config.clip} has no texts; name a contrastive model, such as demo:clip",
                field="clip",
            )
        return model

    def identity(self, describer: str = "") -> str:
        """SHA-256 of all that labels by the describer of the configuration, or another one, depend
        on beside the evidence: settings, versions, and `contents`."""
        name, settings = describer or self.config.describer, self.config.model_dump(mode="json")
        versions = [describer_version(name), VERSION, truth.VERSION]
        return sha256_json([name, versions, settings, self.contents(name)])

    def contents(self, describer: str = "") -> dict[str, str]:
        """SHA-256 of all that the configuration only names and labels are made of; empty where a
        name is all that is known. Another content makes other labels."""
        config, found = self.config, dict[str, str]()
        name = describer or config.describer
        if (config.metrics and name not in _WITHOUT_CLIP) or name in _WITH_CLIP:
            found["clip"] = self.clip.identity()["weights_sha256"]
            if path := config.contrastive.vocabulary:
                found["vocabulary"] = sha256_json(Vocabulary.read(path).words)
        if name == MilanDescriber.name:
            found["captioner"] = contents(config.milan.captioner)
            found["language_model"] = contents(config.milan.language_model)
        return found

    def probe(self, evidence: Evidence) -> Probe:
        """How the contrastive model sees the pictures of ``evidence``."""
        data = evidence.data_sha256
        if data not in self._probes:
            name = model_resource(self.clip.name).removeprefix("models/")
            place = self.directory / f"{name}-{data[:16]}"
            self._probes[data] = make_probe(
                self.clip, evidence, place, store=self._store, progress=self._progress
            )
        return self._probes[data]

    def facts(self, evidence: Evidence) -> Facts:
        """What can be looked up of the pictures of ``evidence``."""
        of = sha256_json([evidence.data_sha256, evidence.grid.to_json()])
        if of not in self._facts:
            self._facts[of] = Facts(evidence, self.directory, progress=self._progress)
        return self._facts[of]

    def scorer(self, evidence: Evidence) -> Scorer:
        """The scores of texts for units of ``evidence``."""
        probe = self.probe(evidence)
        if probe.identity not in self._scorers:
            embed = self._embeddings(self._vocabulary(evidence))
            self._scorers[probe.identity] = Scorer(self.clip, probe, embed=embed)
        return self._scorers[probe.identity]

    def _embeddings(self, vocabulary: Vocabulary) -> TextEmbeddings:
        vectors = embed_vocabulary(self.clip, vocabulary, self.directory).numpy()
        return TextEmbeddings(self.clip, vectors.mean(0), words=vocabulary.words, vectors=vectors)

    def labeller(self, evidence: Evidence, describer: str = "") -> Labeller:
        """The labeller of units of ``evidence``, by the describer of the configuration or another
        one."""
        name = describer or self.config.describer
        if (name, evidence.identity) not in self._labellers:
            makers: Mapping[str, Callable[[Evidence], Describer]] = {
                GroundedDescriber.name: lambda found: GroundedDescriber(self.facts(found)),
                CaptionPmi.name: lambda _: CaptionPmi(self.config.caption_pmi),
                ContrastiveDescriber.name: self._contrastive,
                MilanDescriber.name: lambda _: MilanDescriber(self.config.milan),
                VlmDescriber.name: lambda _: VlmDescriber(self.config.vlm),
                EffectsDescriber.name: self._effects,
                ScenesDescriber.name: lambda _: ScenesDescriber(),
            }
            scored = bool(self.config.metrics) and name not in _WITHOUT_CLIP
            scorer = self.scorer(evidence) if scored else None
            judged = scored or name == GroundedDescriber.name
            grounding = Grounding(self.facts(evidence)) if judged else None
            made = Labeller(makers[name](evidence), scorer, self.config.metrics, grounding)
            self._labellers[name, evidence.identity] = made
        return self._labellers[name, evidence.identity]

    def _contrastive(self, evidence: Evidence) -> Describer:
        words, beam = self._vocabulary(evidence), self.config.contrastive.beam
        return ContrastiveDescriber(
            self.clip, self.probe(evidence), words, self.directory, beam=beam
        )

    def _effects(self, evidence: Evidence) -> Describer:
        if not isinstance(evidence, BundleEvidence):
            raise InvalidInputError(
                "labels by effects are of features of a generator's bundle", field="describer"
            )
        config = self.config.effects
        prompts = prompts_of(evidence, config.prompts)
        generator, (found,) = opened([evidence.bundle.path])
        choosing, judging = (
            found.movements(generator, self.clip, part, amount=config.amount, seed=seed)
            for seed, part in ((1, prompts[::2]), (2, prompts[1::2]))
        )
        vocabulary = self._vocabulary(evidence, nouns=False)  # what the prompts speak of
        embed = self._embeddings(vocabulary)
        return EffectsDescriber(
            vocabulary.words, embed(vocabulary.words), choosing, CausalScorer(judging, embed)
        )

    def _vocabulary(self, evidence: Evidence, *, nouns: bool = True) -> Vocabulary:
        path = self.config.contrastive.vocabulary
        if path:
            return Vocabulary.read(path)
        return Vocabulary.of_captions(evidence.images, nouns=nouns)
