"""Answers of raters: reading, checking, storing beside the quiz, and summaries with the key.

If several people answered a question about labels or intruders, the share of right answers counts;
intervals are over questions. Ratings are combined by Bayes' rule and weighted by importance; see
`vision_sae.statistics.ratings`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_sae.errors import InvalidInputError, MismatchError, NotFoundError
from vision_sae.files import read_json, write_json
from vision_sae.labels.review.quiz import (
    ANSWERS,
    KEY,
    KEY_FORMAT,
    OPTIONS,
    QUESTIONS,
    SHOWN,
    VERSION,
)
from vision_sae.labels.review.quiz_page import ANSWERS_FORMAT, ANSWERS_VERSION
from vision_sae.statistics.proportions import wilson
from vision_sae.statistics.ratings import (
    ABSENT,
    RATINGS,
    Rated,
    Truths,
    assisted_estimate,
    correlation_of_ratings,
    importance,
    joint_correlation,
    median,
    rates,
    share_that_holds,
    truths,
)
from vision_sae.texts import read_text

SUMMARY = "summary.json"

Answer = int | str
Group = Literal["all", "confirmed", "guesses"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CHANCE = {"choice": 1 / OPTIONS, "intruder": 1 / SHOWN}
_LEAST_RATINGS = 2
"""Fewest ratings of a label for an estimate."""


@dataclass(frozen=True)
class Answers:
    """The answers of one person."""

    rater: str
    answers: dict[str, Answer]
    """{question: number of the picture or label chosen, or a rating}"""


def read_answers(path: Path, directory: Path) -> Answers:
    """Read a file of answers that the quiz in ``directory`` let a person download.

    Raises `InvalidInputError` that names the field at fault, and `MismatchError` for answers to
    another quiz.
    """
    try:
        content = json.loads(read_text(path, "answers"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{path} is not valid JSON: {error}", field="answers") from error
    if not isinstance(content, dict) or content.get("format") != ANSWERS_FORMAT:
        raise _refusal(path, "format", f"is not {ANSWERS_FORMAT!r}: download it from the quiz")
    if content.get("version") != ANSWERS_VERSION:
        raise _refusal(path, "version", f"is not {ANSWERS_VERSION}")
    quiz = read_json(directory / QUESTIONS)
    if content.get("quiz") != quiz["quiz"]:
        raise MismatchError(
            f"{path}: quiz {content.get('quiz')!r} is not {quiz['quiz']!r}, the quiz in "
            f"{directory}",
            field="quiz",
        )
    rater, answers = content.get("rater"), content.get("answers")
    if not isinstance(rater, str) or not _NAME.fullmatch(rater):
        raise _refusal(path, "rater", "is not a name of letters, digits, dots and dashes")
    if not isinstance(answers, dict):
        raise _refusal(path, "answers", "is not an object of answers by question")
    questions = {question["id"]: question for question in quiz["questions"]}
    for name, answer in answers.items():
        if name not in questions:
            raise _refusal(path, f"answers.{name}", "is not a question of the quiz")
        _check(path, questions[name], answer)
    return Answers(rater, answers)


def _check(path: Path, question: Mapping[str, Any], answer: Any) -> None:
    field = f"answers.{question['id']}"
    if question["kind"] == "rating":
        if answer not in RATINGS:
            raise _refusal(path, field, f"is {answer!r}, which is none of {', '.join(RATINGS)}")
        return
    options = len(question["labels" if question["kind"] == "label" else "pictures"])
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < options:
        raise _refusal(path, field, f"is {answer!r}, not a number from 0 to {options - 1}")


def _refusal(path: Path, field: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"{path}: {field} {reason}", field=field)


def keep_answers(directory: Path, answers: Answers) -> Path:
    """Store a person's answers beside the quiz; a newer answer replaces the older one."""
    folder = directory / ANSWERS
    folder.mkdir(exist_ok=True)
    path = folder / f"{answers.rater}.json"
    older = read_answers(path, directory).answers if path.is_file() else {}
    write_json(
        path,
        {
            "format": ANSWERS_FORMAT,
            "version": ANSWERS_VERSION,
            "quiz": read_json(directory / QUESTIONS)["quiz"],
            "rater": answers.rater,
            "answers": older | answers.answers,
        },
    )
    return path


def read_key(directory: Path, evidence: str) -> dict[str, Any]:
    """The key of the quiz in ``directory``.

    Raises `NotFoundError` if there is none, and `MismatchError` for a quiz about evidence with
    another identity.
    """
    path = directory / KEY
    if not path.is_file():
        raise NotFoundError(
            f"{directory} holds no quiz; run `vision-sae review` without --answers first",
            field="out",
        )
    key: dict[str, Any] = read_json(path)
    if (key.get("format"), key.get("version")) != (KEY_FORMAT, VERSION):
        raise MismatchError(f"{path} is not a {KEY_FORMAT} of version {VERSION}", field="out")
    if key["evidence"] != evidence:
        raise MismatchError(
            f"the quiz in {directory} is about a bundle {key['bundle']} that was built from other "
            "data; name that bundle, or make a new quiz",
            field="bundle",
        )
    return key


def take_answers(directory: Path, evidence: str, files: Sequence[Path]) -> dict[str, Any]:
    """Store the answers in ``files`` beside the quiz, and write ``summary.json`` over all answers.

    Returns the summary. If one file is refused, none is stored.
    """
    key = read_key(directory, evidence)
    for answers in [read_answers(path, directory) for path in files]:
        keep_answers(directory, answers)
    everyone = [
        read_answers(path, directory) for path in sorted((directory / ANSWERS).glob("*.json"))
    ]
    summary = summarise(key, everyone)
    write_json(directory / SUMMARY, summary)
    return summary


def summarise(key: Mapping[str, Any], everyone: Sequence[Answers]) -> dict[str, Any]:
    """The summary of all answers, in JSON."""
    features = key["features"]
    rated = _Ratings(features, everyone)
    return {
        "bundle": key["bundle"],
        "quiz": key["quiz"],
        "sample": key["sample"],
        "pictures": key["pictures"],
        "raters": {answers.rater: rated.of_rater(i) for i, answers in enumerate(everyone)},
        "intruder": _shares(features, everyone, "intruder"),
        "choice": _shares(features, everyone, "choice"),
        "rating": {name: rated.of_group(belongs) for name, belongs in _GROUPS.items()},
        "features": [_of_feature(feature, everyone, rated) for feature in features],
    }


_GROUPS: dict[Group, Callable[[Mapping[str, Any]], bool]] = {
    "all": lambda feature: True,
    "confirmed": lambda feature: bool(feature["judged_by"]),
    "guesses": lambda feature: feature["label"] is not None and not feature["judged_by"],
}
"""{group of the summary: whether a feature belongs to the group}"""


def _right(question: Mapping[str, Any] | None, everyone: Sequence[Answers]) -> float | None:
    """The share of right answers to a question; None without answers."""
    if question is None:
        return None
    said = [a.answers[question["question"]] for a in everyone if question["question"] in a.answers]
    return float(np.mean([answer == question["right"] for answer in said])) if said else None


def _shares(
    features: Sequence[Mapping[str, Any]], everyone: Sequence[Answers], kind: str
) -> dict[str, Any]:
    """{group: share of right answers, with its interval and the share by chance}"""
    shares: dict[str, Any] = {}
    for name, belongs in _GROUPS.items():
        all_ = [_right(feature.get(kind), everyone) for feature in features if belongs(feature)]
        right = [share for share in all_ if share is not None]
        shares[name] = (
            wilson(sum(right), len(right))._asdict()
            | {"questions": len(right), "chance": _CHANCE[kind]}
            if right
            else None
        )
    return shares


class _Label(NamedTuple):
    """The ratings of one label."""

    entry: Mapping[str, Any]
    rated: Rated
    questions: NDArray[np.int64]
    """Index of each rating's question among all answered questions (n)."""
    fires: NDArray[np.bool_]
    """Whether the feature fires in each rated picture (n)."""


class _Ratings:
    """All ratings, and the estimates for each label."""

    def __init__(self, features: Sequence[Mapping[str, Any]], everyone: Sequence[Answers]) -> None:
        asked = [a for f in features for a in f.get("rating", {}).get("asked", ())]
        answered = [a for a in asked if any(a["question"] in e.answers for e in everyone)]
        self._place = {a["question"]: place for place, a in enumerate(answered)}
        said = [[e.answers.get(a["question"]) for a in answered] for e in everyone]
        self._answers = np.array(
            [[RATINGS.index(s) if s in RATINGS else ABSENT for s in row] for row in said],
            dtype=np.int64,
        ).reshape(len(everyone), len(answered))
        prior = np.array([a["guess"] for a in answered], dtype=np.float64)
        self._truths: Truths = truths(prior, self._answers)
        self.labels = [label for f in features if (label := self._label(f)) is not None]
        self._holds = [self._truths.mean[label.questions] for label in self.labels]
        usual = rates([label.rated for label in self.labels], self._holds) if self.labels else None
        self.correlations = [
            assisted_estimate(label.rated, holds, self._truths.samples[:, label.questions], usual)
            for label, holds in zip(self.labels, self._holds, strict=True)
            if usual is not None
        ]
        """The estimate for each of `labels`."""

    def _label(self, feature: Mapping[str, Any]) -> _Label | None:
        drawn = list(self._drawn(feature.get("rating", {"asked": []})["asked"]))
        if len(drawn) < _LEAST_RATINGS:
            return None
        rating = feature["rating"]
        cells = np.array([a["cell"] for a in drawn], dtype=np.int64)
        rated = Rated(
            np.array([a["activation"] for a in drawn]),
            importance(np.array([a["q"] for a in drawn]), rating["pictures"]),
            cells,
            np.array(rating["shares"]),
            np.array(rating["moments"]),
        )
        questions = np.array([self._place[a["question"]] for a in drawn], dtype=np.int64)
        return _Label(feature, rated, questions, cells % 2 == 1)

    def _drawn(self, pictures: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The pictures in order of their draws, up to the first unrated one: a repeated draw counts
        only if the raters got that far."""
        order = sorted((draw, number) for number, a in enumerate(pictures) for draw in a["draws"])
        for _, number in order:
            if pictures[number]["question"] not in self._place:
                return
            yield pictures[number]

    def of_rater(self, number: int) -> dict[str, Any]:
        """The number of a person's ratings, and the probability of each answer given the truth."""
        errors = self._truths.errors[:, number].mean(0)
        return {
            "ratings": int((self._answers[number] != ABSENT).sum()),
            **{
                name: dict(zip(RATINGS, row.tolist(), strict=True))
                for name, row in zip(("where_false", "where_true"), errors, strict=True)
            },
        }

    def of_group(self, belongs: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """The estimates over the labels of a group; None without rated labels."""
        chosen = [i for i, label in enumerate(self.labels) if belongs(label.entry)]
        if not chosen:
            return None
        labels = [self.labels[i] for i in chosen]
        rated, holds = [label.rated for label in labels], [self._holds[i] for i in chosen]
        alone = [correlation_of_ratings(*pair) for pair in zip(rated, holds, strict=True)]
        fires = [label.fires for label in labels]
        return {
            "labels": len(labels),
            "ratings": sum(len(each) for each in holds),
            "joint": joint_correlation(rated, holds)._asdict(),
            "median": median([self.correlations[i].value for i in chosen])._asdict(),
            "median_unassisted": median(alone)._asdict(),
            "holds_where_it_fires": share_that_holds(rated, holds, fires)._asdict(),
        }


def _of_feature(
    feature: Mapping[str, Any], everyone: Sequence[Answers], rated: _Ratings
) -> dict[str, Any]:
    places = [i for i, label in enumerate(rated.labels) if label.entry is feature]
    return {
        **{name: feature[name] for name in ("feature", "label", "describer", "judged_by")},
        "intruder_right": _right(feature.get("intruder"), everyone),
        "choice_right": _right(feature.get("choice"), everyone),
        "ratings": len(rated.labels[places[0]].questions) if places else 0,
        "correlation": rated.correlations[places[0]]._asdict() if places else None,
    }


def lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The summary as a table for a terminal."""
    yield f"{'':28}{'all':>25}{'confirmed':>25}{'guesses':>25}"
    for name, kind in (("picture that does not belong", "intruder"), ("label that fits", "choice")):
        yield f"{name:28}" + "".join(f"{_shown(summary[kind][g], '%'):>25}" for g in _GROUPS)
    rating = summary["rating"]
    for name, figure in (
        ("correlation, joint", "joint"),
        ("correlation, median label", "median"),
        ("the same by own ratings", "median_unassisted"),
    ):
        row = [rating[group] and rating[group][figure] for group in _GROUPS]
        yield f"{name:28}" + "".join(f"{_shown(each):>25}" for each in row)
    row = [rating[group] and rating[group]["holds_where_it_fires"] for group in _GROUPS]
    yield f"{'holds where it fires':28}" + "".join(f"{_shown(each, '%'):>25}" for each in row)
    for rater, figures in summary["raters"].items():
        yield (
            f"{rater}: {figures['ratings']} ratings; says yes to "
            f"{figures['where_true']['yes']:.0%} of true labels, no to "
            f"{figures['where_false']['no']:.0%} of false labels"
        )


def _shown(estimate: Mapping[str, float] | None, unit: str = "") -> str:
    if estimate is None:
        return "-"
    value, lower, upper = (estimate[name] for name in ("value", "lower", "upper"))
    if unit:
        return f"{value:.0%} ({lower:.0%} to {upper:.0%})"
    return f"{value:.2f} ({lower:.2f} to {upper:.2f})"
