"""Labels by search: the formula, its prior, and planted worlds whose labels are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import torch

from tests.planted.labels import planted_accuracy
from tests.worlds.contrastive import PlantedClip, evidence_of, random_cells
from vision_sae.descriptions.describers.contrastive import (
    ContrastiveDescriber,
    _likeliest,
    separation_nats,
)
from vision_sae.descriptions.protocol import Describer, Description
from vision_sae.descriptions.words import wpmi
from vision_sae.descriptions.words.attributes import ATTRIBUTES, PARTS
from vision_sae.descriptions.words.phrases import MARGIN
from vision_sae.descriptions.words.vocabulary import Vocabulary
from vision_sae.descriptions.words.wpmi import log_likelihood, log_prior, soft_wpmi, top_words
from vision_sae.errors import MismatchError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.probe_pass import make_probe
from vision_sae.evidence.protocol import split
from vision_sae.models.protocol import ContrastiveModel

ANIMALS = ("cat", "dog", "fish", "goose", "horse", "lion", "mouse", "snail")
FRUIT = [
    f"{a} {thing}" for a, thing in product(("red", "striped", "wooden"), ("apple", "pear", "plum"))
]
GARDEN = (*FRUIT, *ANIMALS)
BY_ONE = [[k] for k in range(len(FRUIT))]
APPLES, RED = [0, 3, 6], [0, 1, 2]


def describer_of(
    directory: Path,
    model: PlantedClip,
    evidence: ArrayEvidence,
    vocabulary: Vocabulary,
    *,
    beam: int = 3,
) -> ContrastiveDescriber:
    probe = make_probe(model, evidence, directory / "probe", progress=False)
    return ContrastiveDescriber(model, probe, vocabulary, directory / "search", beam=beam)


def describe(
    directory: Path,
    things: Sequence[str],
    evidence: ArrayEvidence,
    words: Sequence[str],
    *units: int,
    beam: int = 3,
) -> list[Description]:
    describer = describer_of(
        directory, PlantedClip(things), evidence, Vocabulary.of(words), beam=beam
    )
    return list(describer.describe(evidence, units))


# The formula


def test_soft_wpmi_by_hand() -> None:
    # Two exemplars, two words; p = 0.998 and 0.998 - 0.028 / 2 = 0.984.
    posteriors = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    likelihood = math.log(1 + 0.998 * (0.5 - 1) + 1e-7) + math.log(1 + 0.984 * (0.2 - 1) + 1e-7)
    assert float(log_likelihood(posteriors)[0]) == pytest.approx(likelihood, abs=1e-6)
    mean = torch.tensor([0.3, 0.7], dtype=torch.float64)
    prior = math.log(1 + 0.998 * (0.3 - 1) + 1e-7) + math.log(1 + 0.984 * (0.3 - 1) + 1e-7)
    assert float(log_prior(mean, 2)[0]) == pytest.approx(prior, abs=1e-6)
    assert float(soft_wpmi(posteriors, mean)[0]) == pytest.approx(likelihood - prior, abs=1e-6)


def test_prior_is_the_mean_likelihood_of_exemplars_drawn_from_the_data() -> None:
    data = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.05, 0.95]], dtype=torch.float64)
    drawn = [log_likelihood(data[list(rows)]).exp() for rows in product(range(3), repeat=3)]
    expected = torch.stack(drawn).mean(0).log()
    torch.testing.assert_close(log_prior(data.mean(0), 3), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 9, 10, 23, 100])
def test_log_likelihood_of_any_number_of_exemplars_is_a_sum_of_logs(count: int) -> None:
    # Of the first word nothing is likely, the worst case: its product is far below any float32.
    posteriors = np.random.default_rng(0).random((2, count, 5)) * np.array([0, 1, 1, 1, 1])
    p = 0.998 - 0.028 * np.arange(count)[:, None] / count
    expected = np.log(1 + p * (posteriors - 1) + 1e-7).sum(-2)
    found = log_likelihood(torch.from_numpy(posteriors).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5)


def test_top_words_are_those_of_the_formula_unit_by_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wpmi, "_ELEMENTS", 64 * 9 * 7)  # 64 units at a time
    random = np.random.default_rng(0)
    similarities = random.normal(0, 0.1, (50, 7)).astype(np.float32)
    exemplars = np.stack([random.permutation(50)[:9] for _ in range(130)])
    words, pmi = top_words(similarities, exemplars, count=3, temperature=15.0)
    centred = torch.from_numpy(similarities - similarities.mean(0)).double()
    posteriors = torch.softmax(15 * centred, dim=1)
    for unit in (0, 63, 64, 129):
        scores = soft_wpmi(posteriors[exemplars[unit]], posteriors.mean(0))
        best = scores.argsort(descending=True)[:3]
        assert words[unit].tolist() == best.tolist()
        np.testing.assert_allclose(pmi[unit], scores[best].numpy(), atol=1e-4)


def test_planted_labels_are_found_under_noise_that_defeats_a_cosine() -> None:
    found = planted_accuracy()
    assert found.soft_wpmi >= 0.99
    assert found.cosine <= 0.80


# Planted worlds


def test_fake_is_a_contrastive_model() -> None:
    assert isinstance(PlantedClip(ANIMALS), ContrastiveModel)


def test_contrastive_is_a_describer(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(8, 3), [[0]])
    made: Describer = describer_of(tmp_path, PlantedClip(ANIMALS), evidence, Vocabulary.of(["cat"]))
    assert (made.name, made.version) == ("contrastive", 6)


def test_units_get_the_names_of_what_they_fire_on(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(60, len(ANIMALS)), [[k] for k in range(len(ANIMALS))])
    labels = describe(tmp_path, ANIMALS, evidence, ANIMALS, *range(len(ANIMALS)))
    assert [label.text for label in labels] == list(ANIMALS)


def test_description_says_what_it_was_made_from(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(60, len(ANIMALS)), [[k] for k in range(len(ANIMALS))])
    (label,) = describe(tmp_path, ANIMALS, evidence, ANIMALS, 2)
    half = split(evidence, 2).describe
    assert label.evidence == tuple(firing.patch for firing in half)
    (score,) = label.scores
    assert (score.metric, score.n, score.negatives) == ("pmi", len(half), "")
    assert label.candidates[0] == (label.text, score.value)
    assert len(label.candidates) == 10
    assert label.details["regions"] == len(half)
    assert label.details["vocabulary"] == Vocabulary.of(ANIMALS).identity
    assert (tmp_path / "search" / f"prior-{label.details['prior']}.safetensors").is_file()


def test_only_the_masked_region_counts(tmp_path: Path) -> None:
    # A cat is always seen beside a dog, eleven cells of dog to one of cat.
    cells = random_cells(60, len(ANIMALS))
    cells[:30] = ANIMALS.index("dog")
    cells[:30, 0, 0] = ANIMALS.index("cat")
    cells[30:][np.isin(cells[30:], (0, 1))] = ANIMALS.index("fish")
    evidence = evidence_of(cells, [[k] for k in range(len(ANIMALS))])
    labels = describe(tmp_path, ANIMALS, evidence, ANIMALS, 0, 1)
    assert [label.text for label in labels] == ["cat", "dog"]


def test_attribute_and_thing_are_composed(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(80, len(GARDEN)), [*BY_ONE, APPLES, RED])
    words = ["apple", "pear", "plum", *ANIMALS]
    *of_one, apples, red = describe(tmp_path, GARDEN, evidence, words, *range(11))
    assert [label.text for label in of_one] == FRUIT
    assert apples.text == "apple"  # whatever its looks
    assert red.text == "red"  # whatever the fruit


def test_without_a_beam_labels_are_words(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(80, len(GARDEN)), BY_ONE)
    words = ["apple", "pear", "plum", *ANIMALS]
    (label,) = describe(tmp_path, GARDEN, evidence, words, 0, beam=0)
    assert set(label.text.split(", ") if label.text else ()) <= {"red", "apple"}
    assert label.details["phrases_embedded"] == 0


def test_phrase_must_be_better_than_a_word_by_the_choice_among_so_many(tmp_path: Path) -> None:
    assert math.log(len(ATTRIBUTES) + len(PARTS)) == MARGIN
    evidence = evidence_of(random_cells(80, len(GARDEN)), [*BY_ONE, APPLES])
    words = ["apple", "pear", "plum", *ANIMALS]
    phrase, word = describe(tmp_path, GARDEN, evidence, words, 0, 9)
    assert phrase.scores[0].value > phrase.details["word_pmi"] + MARGIN
    assert all(value < word.details["word_pmi"] + MARGIN for _, value in word.candidates)
    assert word.scores[0].value == pytest.approx(word.details["word_pmi"], abs=1e-4)


def test_part_of_a_thing(tmp_path: Path) -> None:
    things = ["eye cat", "tail cat", "eye owl", "tail owl", *ANIMALS[2:]]
    evidence = evidence_of(random_cells(80, len(things)), [[k] for k in range(len(things))])
    labels = describe(tmp_path, things, evidence, ["cat", "owl", *ANIMALS[2:]], 0, 3)
    assert [label.text for label in labels] == ["eye of a cat", "tail of an owl"]


def test_two_attributes_in_their_usual_order(tmp_path: Path) -> None:
    walls = ["striped red wall", "red wall", "striped wall", "blue wall"]
    things = [*walls, "red door", "striped door", *ANIMALS]
    evidence = evidence_of(random_cells(80, len(things)), [[k] for k in range(len(things))])
    (label,) = describe(tmp_path, things, evidence, ["wall", "door", *ANIMALS], 0)
    assert label.text == "striped red wall"


def test_two_things_that_are_always_seen_together(tmp_path: Path) -> None:
    cells = random_cells(80, len(ANIMALS))
    cells[np.isin(cells, (0, 1))] = 2
    cells[:40, 0, :2] = 0, 1  # a cat beside a dog, and neither anywhere else
    evidence = evidence_of(cells, [[0, 1], *([k] for k in range(len(ANIMALS)))])
    (label,) = describe(tmp_path, ANIMALS, evidence, ANIMALS, 0)
    assert label.text in ("cat with dog", "dog with cat")


# Independence


def test_label_does_not_depend_on_which_units_are_asked_together(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(80, len(GARDEN)), [*BY_ONE, APPLES, RED])
    words = ["apple", "pear", "plum", *ANIMALS]
    together = describe(tmp_path / "a", GARDEN, evidence, words, *range(11))
    for unit in (5, 0, 10):  # in a process of its own, as it were: to the last bit
        assert describe(tmp_path / f"{unit}", GARDEN, evidence, words, unit) == [together[unit]]
    backwards = describe(tmp_path / "a", GARDEN, evidence, words, *reversed(range(11)))
    assert backwards[::-1] == together


def test_prior_is_kept_and_belongs_to_the_evidence(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(60, len(ANIMALS)), [[k] for k in range(len(ANIMALS))])
    first = describe(tmp_path, ANIMALS, evidence, ANIMALS, 0)[0].details["prior"]
    assert describe(tmp_path, ANIMALS, evidence, ANIMALS, 3)[0].details["prior"] == first
    other = evidence_of(random_cells(60, len(ANIMALS)), [[k] for k in range(4)])
    assert describe(tmp_path, ANIMALS, other, ANIMALS, 0)[0].details["prior"] != first


def test_single_unit_is_judged_against_the_pictures_at_large(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(300, len(ANIMALS)), [[4]])
    (label,) = describe(tmp_path, ANIMALS, evidence, ANIMALS, 0)
    assert label.text == ANIMALS[4]


# Telling pictures apart


def test_separation_by_hand() -> None:
    # Two words, two pictures that fire and two silent ones. The first word ranks 3 of 4 pairs
    # rightly, with half a pair on either side (3 + 1/2) / 5; the second 1 of 4, and a tie is half.
    shown = np.array([[3.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    hidden = np.array([[0.0, 0.5], [2.0, 2.0]], dtype=np.float32)
    nats = separation_nats(shown, hidden)
    normal = NormalDist()
    assert nats == pytest.approx([2 * normal.inv_cdf(0.7) ** 2, -2 * normal.inv_cdf(0.3) ** 2])
    assert separation_nats(shown, shown) == pytest.approx([0, 0])


def test_of_words_for_the_same_regions_the_one_that_silent_pictures_lack_is_preferred(
    tmp_path: Path,
) -> None:
    """Every picture holds grass; cats are in those that fire alone."""
    things = ["cat grass", "grass", "dog grass", "fish grass", *ANIMALS[3:]]
    cells = np.where(random_cells(80, 2) == 0, 1, random_cells(80, 3, seed=5) % 2 + 2)
    cells[:40, :2] = 0
    evidence = evidence_of(cells, [[0], [2], [3]])
    (label,) = describe(tmp_path, things, evidence, ["grass", "cat", "dog", "fish"], 0, beam=0)
    assert label.text == "cat"
    assert label.details["tells"] > 0


def test_of_texts_as_good_but_for_luck_the_likeliest_is_said() -> None:
    """The best of a hundred may lead by ln 100 = 4.61 nats by chance."""
    pmi, worth = np.array([1.0, 3.0, 2.0, 9.0]), np.array([20.0, 15.4, 19.0, 15.3])
    assert _likeliest(pmi, worth) == 1
    assert _likeliest(pmi, worth - np.array([0, 0.1, 0, 0])) == 2
    assert _likeliest(pmi, np.array([20.0, -np.inf, -np.inf, -np.inf])) == 0


def test_where_one_word_says_too_little_two_are_the_label(tmp_path: Path) -> None:
    """Red apples, among other red fruit and other apples, without phrases to say so."""
    things = [*BY_ONE, APPLES, [len(FRUIT)]]
    cells = random_cells(80, len(GARDEN))
    cells[:, 2:] = len(FRUIT) + 1  # dogs, everywhere alike
    evidence = evidence_of(cells, things)
    words = ["apple", "pear", "plum", *ANIMALS]
    (red_apple,) = describe(tmp_path, GARDEN, evidence, words, 0, beam=0)
    assert red_apple.text == "apple, red"
    (score,) = red_apple.scores
    assert red_apple.candidates[0] == ("apple, red", score.value)
    of_words = dict(red_apple.candidates[1:])
    assert score.value == pytest.approx((of_words["red"] + of_words["apple"]) / 2)
    apples, cats = describe(tmp_path, GARDEN, evidence, words, 9, 10, beam=0)
    assert (apples.text, cats.text) == ("apple", "cat")  # one word says it all


# Abstention


def test_abstains_below_five_independent_pictures(tmp_path: Path) -> None:
    cells = np.full((40, 4, 4), 2)
    cells[:9, 0, 0], cells[9:19, 0, 0] = 0, 1  # 5 and 5 of them are for describing
    cells[20:, 1:] = random_cells(20, 6)[:, 1:] + 2
    crops = [str(i) if i < 9 else f"photo {i % 2}" if i < 19 else str(i) for i in range(40)]
    evidence = evidence_of(cells, [[0], [1], [2], [3]], sources=crops)
    nine, crops_of_two = describe(tmp_path, ANIMALS, evidence, ANIMALS, 0, 1)
    assert nine.text == "cat"
    assert (crops_of_two.text, crops_of_two.scores) == (None, ())
    assert crops_of_two.abstained == "fires in 1 independent images, fewer than 5"


def test_unit_that_never_fires_is_not_labelled(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(40, 4), [[0], [7]])
    (dead,) = describe(tmp_path / "some", ANIMALS, evidence, ANIMALS, 1)
    assert dead.text is None
    assert "0 independent images" in dead.abstained
    silence = evidence_of(random_cells(40, 4), [[7]])
    (dead,) = describe(tmp_path / "none", ANIMALS, silence, ANIMALS, 0)
    assert dead.text is None


def test_unit_that_fires_on_everything_alike_gets_no_word(tmp_path: Path) -> None:
    evidence = evidence_of(np.zeros((40, 4, 4), dtype=np.int64), [[0]])
    (label,) = describe(tmp_path, ANIMALS, evidence, ANIMALS, 0, beam=0)
    assert label.text is None or label.scores[0].value < 0.01


def test_probe_of_other_pictures_is_refused(tmp_path: Path) -> None:
    evidence = evidence_of(random_cells(20, 4), [[0]])
    describer = describer_of(tmp_path, PlantedClip(ANIMALS), evidence, Vocabulary.of(ANIMALS))
    with pytest.raises(MismatchError):
        list(describer.describe(evidence_of(random_cells(20, 4, seed=1), [[0]]), [0]))
