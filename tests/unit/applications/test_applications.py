"""Analysis, auditing and editing, on a model whose every unit is known.

A picture is four patches of eight numbers. Numbers 0 to 2 say which of three things it shows,
numbers 3 to 5 which word is painted on it, and the model believes words twice as much as things.
Number 6 is of no use, and number 7 says that there is a word at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.unit.evidence.test_evidence import array_evidence
from vision_sae.applications.analysis import KINDS, analyse, group_by_kind
from vision_sae.applications.audit import audit
from vision_sae.applications.editing import (
    TEXT_WORDS,
    Robustness,
    edit,
    units_that_say,
)
from vision_sae.applications.units import LabelledUnit, UnitSet
from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.evaluation.class_folders import PaintedOver
from vision_sae.evaluation.tasks import Classified, ZeroShot, accuracy
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.protocol import ModelOutput
from vision_sae.models.vit import VitModel

SITE = "blocks.0.resid"
LABELS = ("red ball", "cat", "car", "word cat", "the word car", "letters", "wordless sky", "text")
NAMES = ("ball", "cat", "car")


class Believer:
    """See this module: the embedding weighs words twice as much as things."""

    grid = PatchGrid(rows=2, cols=2, special=0, patch_height=2, patch_width=2)
    dim = 8

    def __init__(self) -> None:
        self.block, unused = nn.Identity(), nn.Linear(1, 1)
        self.module: nn.Module = nn.ModuleList([self.block, unused])
        self._blocks = [(self.block, nn.Identity(), unused)]

    def blocks(self) -> list[tuple[nn.Module, nn.Module, nn.Linear]]:
        return list(self._blocks)

    def forward(self, images: Tensor) -> ModelOutput:
        mean = self.block(images.reshape(len(images), 4, 8)).mean(1)
        return ModelOutput(mean[:, :3] + 2 * mean[:, 3:6], None)


class Reader:
    """Texts of the names, as the directions of the embedding."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.eye(3)[[NAMES.index(text.removeprefix("a ")) for text in texts]]


@pytest.fixture
def model() -> VitModel:
    return VitModel("believer", Believer(), Preprocessing(4, 4), dtype="float32")


@pytest.fixture
def task() -> ZeroShot:
    return ZeroShot(Reader(), NAMES, "a {}")  # type: ignore[arg-type]


def pictures(words: Sequence[int | None] = (None,) * 6) -> Classified:
    """Six pictures of things 0, 1, 2, 0, 1, 2, with the words of these numbers painted on."""
    vectors = torch.zeros(6, 4, 8)
    for i, word in enumerate(words):
        vectors[i, :, i % 3] = 1
        if word is not None:
            vectors[i, :, 3 + word] = 1
            vectors[i, :, 7] = 1
    classes = torch.tensor([0, 1, 2] * 2)
    return Classified(vectors.reshape(6, 2, 4, 4), classes, NAMES)


PAINTED = (1, 2, 0, None, None, 2)
"""Three wrong words, two pictures without a word, and a right one."""


def painted_over() -> PaintedOver:
    """The pictures with `PAINTED` on them; -1 where no wrong word is."""
    return PaintedOver(pictures(PAINTED), torch.tensor([1, 2, 0, -1, -1, -1]))


def neurons() -> UnitSet:
    judges = ["captions" if text == "text" else "" for text in LABELS]
    units = [LabelledUnit(SITE, i, text, judges[i]) for i, text in enumerate(LABELS)]
    return UnitSet(units, {}, {SITE: range(8)}, special=0)


def test_painted_words_mislead_this_model(model: VitModel, task: ZeroShot) -> None:
    assert accuracy(task, model, pictures()) == 1
    assert accuracy(task, model, pictures(PAINTED)) == 0.5


def test_units_are_chosen_by_whole_words_of_their_labels() -> None:
    chosen = units_that_say(neurons().units, TEXT_WORDS)
    assert [unit.index for unit in chosen] == [3, 4, 5, 7]  # and not "wordless"


@pytest.mark.parametrize("kind", ["neurons", "features"])
def test_editing_by_label_gives_back_what_painted_words_took(
    kind: str, model: VitModel, task: ZeroShot
) -> None:
    # The features of this dictionary are the neurons themselves.
    basis = NeuronBasis.fit([torch.zeros(1, 8)])
    dictionaries = {SITE: basis} if kind == "features" else {}
    unit_set = UnitSet(neurons().units, dictionaries, {SITE: range(8)}, special=0)
    chosen = units_that_say(unit_set.units, TEXT_WORDS)
    found = edit(model, task, pictures(), painted_over(), unit_set, chosen, draws=4)
    assert (found.units, found.random_units, found.guesses) == (4, 4, 3)
    assert found.before == Robustness(plain=1, painted=0.5, misled=0.5)
    assert found.after == Robustness(plain=1, painted=1, misled=0)
    assert found.recovered == 1
    # The four others are the things themselves and the useless one: without them only words speak.
    assert found.random.painted == pytest.approx(2 / 6)  # picture 5, and class 0 of silence
    assert found.random.misled == pytest.approx(3 / 6)
    assert found.random_recovered == pytest.approx((2 / 6 - 0.5) / 0.5)


def test_nothing_to_recover_is_not_a_number(model: VitModel, task: ZeroShot) -> None:
    unpainted = PaintedOver(pictures(), torch.full((6,), -1))
    found = edit(model, task, pictures(), unpainted, neurons(), [], draws=1)
    assert np.isnan(found.recovered)


def test_analysis_ranks_kinds_by_what_they_cost(model: VitModel, task: ZeroShot) -> None:
    kinds = {"thing": ("ball", "cat", "car"), "text": TEXT_WORDS, "nothing": ("sky",), "none": ()}
    found = analyse(model, task, pictures(), neurons(), kinds=kinds, draws=2, progress=False)
    assert found.accuracy == 1
    assert found.pictures == 6
    assert found.effects[0].kind == "thing"
    by_kind = {effect.kind: effect for effect in found.effects}
    # "word cat" and "the word car" speak of things too: 5 units; class 0 is left by silence.
    assert (by_kind["thing"].units, by_kind["thing"].accuracy) == (5, pytest.approx(1 / 3))
    assert by_kind["thing"].random_units == 3  # there are no more
    assert (by_kind["text"].units, by_kind["text"].accuracy) == (4, 1)
    assert (by_kind["text"].guesses, by_kind["thing"].guesses) == (3, 5)
    assert by_kind["nothing"].units == 1
    assert "none" not in by_kind
    # Without the text units nothing is lost; without four random others, something may be.
    assert by_kind["text"].excess <= 0


def test_random_units_are_of_the_same_sites_and_not_the_same() -> None:
    unit_set = neurons()
    drawn = unit_set.at_random(unit_set.units[:3], seed=0)
    assert len(set(drawn)) == 3
    assert not set(drawn) & set(unit_set.units[:3])
    assert drawn == unit_set.at_random(unit_set.units[:3], seed=0)


def test_random_units_need_no_label_but_fire() -> None:
    labelled = [LabelledUnit(SITE, 0, "red ball"), LabelledUnit(SITE, 1, "cat")]
    unit_set = UnitSet(labelled, {}, {SITE: [0, 1, 3, 5]}, special=0)
    drawn = {unit for seed in range(20) for unit in unit_set.at_random(labelled[:1], seed)}
    assert drawn == {labelled[1], LabelledUnit(SITE, 3, ""), LabelledUnit(SITE, 5, "")}
    assert len(unit_set.at_random([*labelled, LabelledUnit(SITE, 3, "")], 0)) == 1  # of three


def test_a_unit_can_be_of_several_kinds() -> None:
    groups = group_by_kind([LabelledUnit(SITE, 0, "a red cat")], KINDS)
    assert sorted(groups) == ["animal", "colour"]


def test_audit_shows_what_matching_units_fire_on() -> None:
    evidence = array_evidence()
    unit = LabelledUnit(evidence.site, 0, "human faces", "captions")
    elsewhere = LabelledUnit("blocks.9.mlp", 0, "a face")
    (finding,) = audit(evidence, [unit, elsewhere], "face", pictures=2)
    assert (finding.collection, finding.index, finding.text) == (evidence.name, 0, "human faces")
    assert finding.judged_by == "captions"
    assert finding.pictures == (2, 1)  # strongest first
    assert finding.captions == ("2.png", "1.png")
    assert audit(evidence, [LabelledUnit(evidence.site, 0, "surfaces")], "face") == []
