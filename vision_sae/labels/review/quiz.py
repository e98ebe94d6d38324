"""A blind quiz about the labels of some features, and its key.

Questions come in stages, so that no question reveals the answer of a later one: first the picture
that does not belong (without labels), then the better of two labels, then whether a label holds for
one picture after another. Ratings come in rounds of one picture per label, so that a rater who
stops early has rated all labels equally often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.bundles.read import Bundle
from vision_sae.descriptions.words.function_words import FUNCTION_WORDS
from vision_sae.errors import AlreadyExistsError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import Firing
from vision_sae.evidence.sources import Sources
from vision_sae.files import read_json, replacing, sha256_json, write_json
from vision_sae.labels.review.guesses import CaptionGuess, Guess
from vision_sae.labels.review.pictures import Album, marked
from vision_sae.labels.review.quiz_page import page
from vision_sae.labels.review.sample import (
    Activity,
    Sample,
    across,
    described,
    label_of,
    present,
)
from vision_sae.places import check_output_folder, check_replaceable
from vision_sae.statistics.ratings import proposal
from vision_sae.statistics.sides import on_sides

PAGE, QUESTIONS, KEY, ANSWERS = "quiz.html", "quiz.json", "key.json", "answers"
FILES = (PAGE, QUESTIONS, KEY, ANSWERS, "index.html", "summary.json", "pictures")
"""All files that the folder of a review may hold: quiz, sheet, pictures and answers."""
QUIZ_FORMAT, KEY_FORMAT = "vision_sae.review.quiz", "vision_sae.review.key"
VERSION = 1

QuestionKind = Literal["intruder", "label", "rating"]

SHOWN = 5
"""Number of pictures in an intruder question, including the intruder."""
OPTIONS = 2
"""Number of labels in a label question."""
_SHOWN_FOR_LABEL = 4
_COMPETITORS = 10
"""The other label is drawn from this many features, those with the most similar firing rates."""
_FEWEST_AUDITED = 100
"""Fewest pictures of the auditing side with which the quiz uses that side alone."""
_GUESSED = (1 / 3, 2 / 3)
"""Bounds between cells of low, middle and high guesses."""
CELLS = 2 * (len(_GUESSED) + 1)
"""Number of cells; odd cells hold the pictures in which the feature fires."""


@dataclass(frozen=True)
class Question:
    """One question for the page, and its entry in the key."""

    kind: QuestionKind
    content: dict[str, Any]
    """The pictures and labels that the page shows."""
    entry: dict[str, Any]
    """The entry of the key; `write_quiz` adds the question's name to it."""


class Pool(NamedTuple):
    """The pictures that questions may show."""

    inside: NDArray[np.bool_]
    """Whether each picture is in the pool (N)."""
    rule: str
    """The rule of the choice, in a sentence for readers."""


def pool_of(bundle: Bundle) -> Pool:
    """The pictures of the auditing side, which labelling never used, or all pictures if that side
    has too few."""
    kept = present(bundle)
    audit = kept & on_sides((image.origin for image in bundle.images), "audit")
    if audit.sum() >= _FEWEST_AUDITED:
        return Pool(
            audit,
            "Pictures of the auditing side: no step that chose or judged labels used them.",
        )
    return Pool(kept, "All pictures, including those that were used to choose the labels.")


class QuizMaker:
    """Makes the questions about features of one bundle; equal seeds make equal questions."""

    def __init__(
        self, bundle: Bundle, album: Album, *, guess: Guess | None = None, seed: int = 0
    ) -> None:
        self.bundle, self.album, self.seed = bundle, album, seed
        self.evidence = BundleEvidence(bundle)
        self.sources = Sources(self.evidence)
        self.pool = pool_of(bundle)
        self.guess = guess or CaptionGuess(bundle.images)
        self._labelled = np.array(
            [unit for unit in sorted(bundle.descriptions) if label_of(bundle, unit) is not None],
            dtype=np.int64,
        )

    def questions(self, sample: Sample, ratings: int) -> tuple[list[Question], dict[str, Any]]:
        """(questions in their order, key) with ``ratings`` pictures drawn for each label."""
        entries: list[dict[str, Any]] = []
        asked: dict[QuestionKind, list[list[Question]]] = {
            "intruder": [],
            "label": [],
            "rating": [],
        }
        for unit in sample.units:
            activity = Activity.of(self.evidence, unit)
            entry = self._entry(unit)
            entries.append(entry)
            asked["intruder"].append(list(self._intruder(activity, entry)))
            asked["label"].append(list(self._label(activity, entry)))
            asked["rating"].append(list(self._ratings(activity, entry, ratings)))
        random = np.random.default_rng(self.seed)
        ordered = [q for stage in asked.values() for q in _in_rounds(stage, random)]
        key = {"sample": sample.rule, "pictures": self.pool.rule, "features": entries}
        return ordered, key

    def _random(self, unit: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, unit, purpose])

    def _entry(self, unit: int) -> dict[str, Any]:
        description = described(self.bundle, unit)
        return {
            "feature": unit,
            "label": description.text if description else None,
            "describer": description.describer if description else "",
            "judged_by": description.judged_by if description else "",
        }

    def _show(self, firing: Firing) -> str:
        return self.album.add(marked(self.evidence, firing))

    def _intruder(self, activity: Activity, entry: dict[str, Any]) -> Iterator[Question]:
        """The question which picture does not belong. The intruder is outlined by the mask of
        another firing picture, so that its outline gives no hint."""
        firing = across(activity.by_strength(self.sources, self.pool.inside), SHOWN)
        strangers = self._silent(activity, firing)
        if len(firing) < SHOWN or not len(strangers):
            return
        random = self._random(activity.unit, 0)
        *belonging, lender = (activity.firing(firing[i]) for i in random.permutation(SHOWN))
        stranger = lender._replace(image=int(random.choice(strangers)))
        place = int(random.integers(SHOWN))
        shown = [*belonging[:place], stranger, *belonging[place:]]
        entry["intruder"] = {"right": place}
        yield Question("intruder", {"pictures": [self._show(f) for f in shown]}, entry["intruder"])

    def _silent(self, activity: Activity, firing: list[int]) -> NDArray[np.int64]:
        """Pictures of the pool in which the feature is silent, from other sources than ``firing``;
        for a feature that fires in most pictures, the pictures in which it fires least."""
        pool = self.pool.inside & self.sources.none_of(np.array(firing, dtype=np.int64))
        least = np.median(activity.peaks[self.pool.inside])
        return np.flatnonzero(pool & (activity.peaks <= least))

    def _label(self, activity: Activity, entry: dict[str, Any]) -> Iterator[Question]:
        """Which of two labels fits? The other is of a feature that fires about as often."""
        firing = across(activity.by_strength(self.sources, self.pool.inside), _SHOWN_FOR_LABEL)
        rivals = self._rivals(activity.unit)
        if entry["label"] is None or not firing or not rivals:
            return
        random = self._random(activity.unit, 1)
        rival, right = int(random.choice(rivals)), int(random.integers(OPTIONS))
        labels = [label_of(self.bundle, rival), entry["label"]]
        entry["choice"] = {"right": right, "other": rival}
        yield Question(
            "label",
            {
                "pictures": [self._show(activity.firing(image)) for image in firing],
                "labels": labels if right else labels[::-1],
            },
            entry["choice"],
        )

    def _rivals(self, unit: int) -> list[int]:
        """Features with different labels and the most similar firing rates."""
        counts = self.bundle.image_counts
        own = _content(label_of(self.bundle, unit))
        nearest = self._labelled[
            np.argsort(np.abs(np.log1p(counts[self._labelled]) - np.log1p(counts[unit])))
        ]
        others = (u for u in nearest.tolist() if _content(label_of(self.bundle, u)) != own)
        return [other for other, _ in zip(others, range(_COMPETITORS), strict=False)]

    def _ratings(self, activity: Activity, entry: dict[str, Any], count: int) -> Iterator[Question]:
        """The questions whether the label holds. Pictures are drawn by `proposal` with replacement;
        a picture drawn twice makes one question."""
        pool = np.flatnonzero(self.pool.inside)
        peaks = activity.peaks[pool].astype(np.float64)
        if entry["label"] is None or peaks.std() == 0:
            return
        guesses = self.guess(entry["label"])[pool]
        chances = proposal(peaks, guesses)
        drawn = self._random(activity.unit, 2).choice(len(pool), count, p=chances)
        firing = pool[peaks > 0]
        entry["rating"] = _population(peaks, guesses) | {"asked": []}
        for at in dict.fromkeys(drawn.tolist()):
            asked = {
                "image": int(pool[at]),
                "activation": float((peaks[at] - peaks.mean()) / peaks.std()),
                "q": float(chances[at]),
                "guess": float(guesses[at]),
                "cell": int(_cells(peaks, guesses)[at]),
                "draws": np.flatnonzero(drawn == at).tolist(),
            }
            entry["rating"]["asked"].append(asked)
            region = self._region(activity, int(pool[at]), firing)
            yield Question(
                "rating", {"pictures": [self._show(region)], "labels": [entry["label"]]}, asked
            )

    def _region(self, activity: Activity, image: int, firing: NDArray[np.int64]) -> Firing:
        """The region to outline: where the feature fires, or in a silent picture the region of a
        firing picture, so that outlines do not reveal silent pictures."""
        if activity.peaks[image] > 0:
            return activity.firing(image)
        lender = int(self._random(activity.unit, 3 + image).choice(firing))
        return activity.firing(lender)._replace(image=image)


def _content(label: str | None) -> frozenset[str]:
    """The content words of a label."""
    return frozenset((label or "").casefold().replace(",", " ").split()) - FUNCTION_WORDS


def _cells(peaks: NDArray[np.float64], guesses: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(2 * np.digitize(guesses, _GUESSED) + (peaks > 0), dtype=np.int64)


def _population(peaks: NDArray[np.float64], guesses: NDArray[np.float64]) -> dict[str, Any]:
    """Statistics of all pictures for the estimate; see `vision_sae.statistics.ratings.Rated`."""
    cells, count = _cells(peaks, guesses), len(peaks)
    standardised = (peaks - peaks.mean()) / peaks.std()
    return {
        "pictures": count,
        "shares": (np.bincount(cells, minlength=CELLS) / count).tolist(),
        "moments": (np.bincount(cells, standardised, CELLS) / count).tolist(),
    }


def _in_rounds(stage: Sequence[list[Question]], random: np.random.Generator) -> Iterator[Question]:
    """The first question of every feature in random order, then every second question, and so
    on."""
    for number in range(max(map(len, stage), default=0)):
        asked = [questions[number] for questions in stage if number < len(questions)]
        yield from (asked[i] for i in random.permutation(len(asked)))


def write_quiz(
    bundle: Bundle,
    directory: Path,
    sample: Sample,
    *,
    ratings: int,
    guess: Guess | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write the page, the questions and the key; return the number of questions of each kind.

    A quiz with the same questions is written again. A quiz with other questions is replaced only
    with ``overwrite``. A quiz with answers is never replaced: `AlreadyExistsError`.
    """
    check_output_folder(directory, FILES, overwrite=True)
    maker = QuizMaker(bundle, Album(directory), guess=guess, seed=seed)
    ordered, key = maker.questions(sample, ratings)
    numbers: dict[str, int] = {"intruder": 0, "label": 0, "rating": 0}
    questions = []
    for number, question in enumerate(ordered, start=1):
        name = f"q{number:05d}"
        question.entry["question"] = name
        questions.append({"id": name, "kind": question.kind, **question.content})
        numbers[question.kind] += 1
    identity = sha256_json(questions)[:16]
    _check_questions(directory, identity, overwrite=overwrite)
    quiz = {"format": QUIZ_FORMAT, "version": VERSION, "quiz": identity, "questions": questions}
    belongs = {"bundle": bundle.name, "evidence": maker.evidence.identity, "quiz": identity}
    write_json(directory / KEY, {"format": KEY_FORMAT, "version": VERSION} | belongs | key)
    write_json(directory / QUESTIONS, quiz)
    with replacing(directory / PAGE) as temporary:
        temporary.write_text(page(quiz), encoding="utf-8")
    return numbers


def _check_questions(directory: Path, identity: str, *, overwrite: bool) -> None:
    answered = list((directory / ANSWERS).glob("*.json"))
    old = directory / QUESTIONS
    if not old.is_file() or read_json(old).get("quiz") == identity:
        return
    check_replaceable(directory, old, overwrite=overwrite)
    if answered:
        raise AlreadyExistsError(
            f"{directory} holds {len(answered)} people's answers to other questions; write the new "
            "quiz to another directory",
            field="out",
        )
