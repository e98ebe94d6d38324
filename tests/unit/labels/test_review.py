"""A sheet to read, a blind quiz, and what its answers amount to, on a bundle of known features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.cli.test_cli import run, succeed
from tests.worlds.tiny import identity_sae, write_dictionary, write_store
from vision_sae.activations.store import ImageRecord
from vision_sae.bundles.build import build
from vision_sae.bundles.publish import add_descriptions
from vision_sae.bundles.read import Bundle
from vision_sae.config import BuildConfig
from vision_sae.errors import (
    AlreadyExistsError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
    VisionSaeError,
)
from vision_sae.files import read_json
from vision_sae.labels.review.guesses import CaptionGuess
from vision_sae.labels.review.pictures import outlined
from vision_sae.labels.review.quiz import write_quiz
from vision_sae.labels.review.ratings import read_answers, take_answers
from vision_sae.labels.review.sample import sample
from vision_sae.labels.review.sheet import write_sheet

PICTURES = 60
FEATURES = 6
DEAD = 5
RATINGS = 40
CAPTION = 'a <b>tree</b> & a "house"'
LABELS = ("dog", "cat <script>", "red car", "dog", None, None)


def row(feature: int) -> dict[str, Any]:
    """A description as `describe` keeps it: feature 0 is confirmed, 4 and 5 have no label."""
    text = LABELS[feature]
    return {
        "feature": feature,
        "text": text,
        "abstained": "" if text else "too <dense>",
        "describer": "test",
        "describer_version": 1,
        "scores": [
            {
                **{"metric": "correlation", "value": 0.5, "n": 30, "lower": 0.25, "upper": 0.75},
                **{"control": 0.125, "negatives": "", "judge": "pixels"},
            }
        ],
        "evidence": [],
        "details": {"judged_by": "pixels"} if feature == 0 else {},
        "candidates": [],
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Feature i fires in one patch of every (i + 2)-nd picture, the last one nowhere."""
    root = tmp_path_factory.mktemp("bundle")
    vectors = np.zeros((PICTURES, 4, FEATURES), dtype=np.float32)
    captions = [CAPTION] * PICTURES
    for feature in range(DEAD):
        fires = np.arange(PICTURES) % (feature + 2) == 0
        vectors[fires, feature % 4, feature] = np.linspace(1, 2, int(fires.sum()))
        for image in np.flatnonzero(fires):
            captions[image] += f", {LABELS[feature] or 'something'}"
    store = write_store(root / "store", [vectors], captions=captions)
    dictionary = write_dictionary(root / "d", identity_sae(FEATURES, FEATURES), store)
    made = build(store, dictionary, root / "b", BuildConfig(), progress=False)
    return add_descriptions(made, root / "b", [row(f) for f in range(FEATURES)], {})


@pytest.fixture(scope="module")
def written(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a quiz about all features that fire."""
    directory = tmp_path_factory.mktemp("quiz")
    write_quiz(bundle, directory, sample(bundle, 100), ratings=RATINGS)
    return directory


@pytest.fixture
def quiz(written: Path, tmp_path: Path) -> Path:
    """A copy of it, to answer."""
    return Path(shutil.copytree(written, tmp_path / "quiz"))


@pytest.fixture(scope="module")
def sheet(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sheet of all features that fire."""
    return write_sheet(bundle, tmp_path_factory.mktemp("sheet"), sample(bundle, 100))


def identity(bundle: Bundle) -> str:
    from vision_sae.evidence.bundle import BundleEvidence

    return BundleEvidence(bundle).identity


def answers_file(
    path: Path, quiz: Path, answers: dict[str, Any], changed: dict[str, Any] | None = None
) -> Path:
    """A file as the page makes it, but for what is ``changed``."""
    found = {"format": "vision_sae.review.answers", "version": 1, "rater": "ana"}
    found |= {"quiz": read_json(quiz / "quiz.json")["quiz"], "answers": answers}
    path.write_text(json.dumps(found | (changed or {})))
    return path


def perfect(quiz: Path) -> dict[str, Any]:
    """All right answers; a label holds wherever its feature fires and nowhere else."""
    found: dict[str, Any] = {}
    for feature in read_json(quiz / "key.json")["features"]:
        for kind in ("intruder", "choice"):
            if kind in feature:
                found[feature[kind]["question"]] = feature[kind]["right"]
        for asked in feature.get("rating", {}).get("asked", ()):
            found[asked["question"]] = "yes" if asked["cell"] % 2 else "no"
    return found


def test_a_sample_spans_rare_and_frequent_features(bundle: Bundle) -> None:
    # Feature 4 fires least often, feature 0 most often; the dead one is not reviewed.
    assert sample(bundle, 100).units == [4, 3, 2, 1, 0]
    chosen = sample(bundle, 2, seed=1)
    assert chosen.units[0] in (4, 3, 2)
    assert chosen.units[1] in (1, 0)
    assert "2 of 5 features that fire" in chosen.rule
    assert sample(bundle, 2, seed=1) == chosen
    assert sample(bundle, 100, labelled_only=True).units == [3, 2, 1, 0]
    assert sample(bundle, 1, named=(4, 1, 4)).units == [4, 1]


def test_features_that_do_not_exist_are_not_reviewed(bundle: Bundle) -> None:
    with pytest.raises(NotFoundError, match="0 to 5, not 6"):
        sample(bundle, 1, named=(6,))


def test_the_sheet_tells_confirmed_labels_from_guesses(sheet: Path) -> None:
    text = sheet.read_text()
    assert text.count("confirmed by pixels") == 1
    assert "1 label confirmed by an independent judge, 3 guesses, 1 feature without" in text
    assert "0.50 (0.25 to 0.75)" in text
    assert text.count("Silent, though they look alike") == 5


def test_the_sheet_escapes_what_people_wrote(sheet: Path) -> None:
    text = sheet.read_text()
    assert "<b>tree" not in text
    assert "a &lt;b&gt;tree&lt;/b&gt; &amp; a &quot;house&quot;" in text
    assert "cat &lt;script&gt;" in text
    assert "too &lt;dense&gt;" in text


def test_the_sheet_shows_pictures_beside_it_and_fetches_nothing(sheet: Path) -> None:
    text = sheet.read_text()
    assert "http" not in text
    shown = {part.split('"')[0] for part in text.split('src="')[1:]}
    assert shown == {f"pictures/{path.name}" for path in (sheet.parent / "pictures").iterdir()}


def test_a_region_stays_as_it_is_and_the_rest_is_darkened() -> None:
    mask = np.zeros((32, 32), dtype=np.bool_)
    mask[8:16, 8:16] = True
    shown = np.asarray(outlined(Image.new("RGB", (32, 32), (200, 100, 0)), mask))
    assert (shown[mask] == (200, 100, 0)).all()
    assert shown[0, 0].tolist() == [110, 55, 0]
    assert shown[6:8, 10].tolist() == [[255, 220, 0]] * 2
    assert shown[5, 10].tolist() == [0, 0, 0]


def test_the_questions_hold_no_answer(quiz: Path) -> None:
    questions = read_json(quiz / "quiz.json")["questions"]
    shown = {"intruder": {"pictures"}, "label": {"pictures", "labels"}}
    shown["rating"] = shown["label"]
    for number, question in enumerate(questions, start=1):
        assert question["id"] == f"q{number:05d}"
        assert set(question) == {"id", "kind"} | shown[question["kind"]]
    page = (quiz / "quiz.html").read_text()
    embedded = page.split('type="application/json">')[1].split("</script>")[0]
    assert json.loads(embedded) == read_json(quiz / "quiz.json")
    assert "key.json" not in page
    assert "http" not in page


def test_questions_come_in_stages_and_ratings_in_rounds(quiz: Path) -> None:
    questions = read_json(quiz / "quiz.json")["questions"]
    kinds = [question["kind"] for question in questions]
    assert kinds == sorted(kinds, key=["intruder", "label", "rating"].index)
    # Each of the four labels is asked about once in the first round.
    first = [q["labels"][0] for q in questions if q["kind"] == "rating"][:4]
    assert sorted(first) == ["cat <script>", "dog", "dog", "red car"]


def test_a_label_competes_with_another_that_says_something_else(quiz: Path) -> None:
    labels = [q["labels"] for q in read_json(quiz / "quiz.json")["questions"] if len(q) == 4]
    choices = [pair for pair in labels if len(pair) == 2]
    assert len(choices) == 4
    assert all(first != second for first, second in choices)


def test_chances_of_ratings_and_cells_are_those_of_the_population(quiz: Path) -> None:
    for feature in read_json(quiz / "key.json")["features"]:
        if "rating" in feature:
            rating = feature["rating"]
            assert sum(rating["shares"]) == pytest.approx(1)
            assert sum(rating["moments"]) == pytest.approx(0)
            draws = sorted(draw for asked in rating["asked"] for draw in asked["draws"])
            assert draws == list(range(RATINGS))


def test_a_quiz_is_the_same_for_the_same_seed(bundle: Bundle, quiz: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_quiz(bundle, again, sample(bundle, 100), ratings=RATINGS)
    assert (again / "quiz.json").read_bytes() == (quiz / "quiz.json").read_bytes()


def test_right_answers_add_up(bundle: Bundle, quiz: Path, tmp_path: Path) -> None:
    given = answers_file(tmp_path / "ana.json", quiz, perfect(quiz))
    summary = take_answers(quiz, identity(bundle), [given])
    assert summary["intruder"]["all"]["value"] == 1
    assert summary["choice"]["all"]["questions"] == 4
    assert summary["choice"]["confirmed"]["questions"] == 1
    rating = summary["rating"]["all"]
    assert rating["labels"] == 4
    # The activations of these features are nearly firing or not.
    assert rating["joint"]["value"] > 0.8
    assert rating["median"]["value"] > 0.8
    assert rating["holds_where_it_fires"]["value"] > 0.9
    assert read_json(quiz / "summary.json") == summary


def test_answers_of_several_people_are_kept_and_combined(
    bundle: Bundle, quiz: Path, tmp_path: Path
) -> None:
    right = perfect(quiz)
    wrong = {name: (v + 1) % 2 if isinstance(v, int) else v for name, v in right.items()}
    first = answers_file(tmp_path / "1.json", quiz, right)
    second = answers_file(tmp_path / "2.json", quiz, wrong, {"rater": "ben"})
    take_answers(quiz, identity(bundle), [first])
    summary = take_answers(quiz, identity(bundle), [second])
    assert set(summary["raters"]) == {"ana", "ben"}
    assert summary["choice"]["all"]["value"] == 0.5
    assert {path.name for path in (quiz / "answers").iterdir()} == {"ana.json", "ben.json"}


def test_newer_answers_replace_older_ones_one_by_one(
    bundle: Bundle, quiz: Path, tmp_path: Path
) -> None:
    for answers in ({"q00001": 1, "q00002": 2}, {"q00001": 0}):
        take_answers(quiz, identity(bundle), [answers_file(tmp_path / "a.json", quiz, answers)])
    assert read_json(quiz / "answers" / "ana.json")["answers"] == {"q00001": 0, "q00002": 2}


@pytest.mark.parametrize(
    ("changed", "answers", "field", "error"),
    [
        ({"format": "x"}, {}, "format", InvalidInputError),
        ({"version": 2}, {}, "version", InvalidInputError),
        ({"quiz": "other"}, {}, "quiz", MismatchError),
        ({"rater": "../ana"}, {}, "rater", InvalidInputError),
        ({"answers": [1]}, {}, "answers", InvalidInputError),
        ({}, {"q99999": 1}, "answers.q99999", InvalidInputError),
        ({}, {"q00001": 5}, "answers.q00001", InvalidInputError),
        ({}, {"q00001": True}, "answers.q00001", InvalidInputError),
        ({}, {"LAST": "perhaps"}, "answers.LAST", InvalidInputError),
        ({}, {"LAST": [1]}, "answers.LAST", InvalidInputError),
    ],
)
def test_answers_that_cannot_be_are_refused_by_field(
    quiz: Path,
    tmp_path: Path,
    changed: dict[str, Any],
    answers: dict[str, Any],
    field: str,
    error: type[VisionSaeError],
) -> None:
    last = read_json(quiz / "quiz.json")["questions"][-1]["id"]
    answers = {name.replace("LAST", last): answer for name, answer in answers.items()}
    given = answers_file(tmp_path / "bad.json", quiz, answers, changed)
    with pytest.raises(error, match=field.replace("LAST", last)) as refused:
        read_answers(given, quiz)
    assert refused.value.field == field.replace("LAST", last)


def test_a_refused_file_leaves_nothing_behind(bundle: Bundle, quiz: Path, tmp_path: Path) -> None:
    good = answers_file(tmp_path / "good.json", quiz, {"q00001": 0})
    bad = answers_file(tmp_path / "bad.json", quiz, {"q00001": 9}, {"rater": "ben"})
    with pytest.raises(InvalidInputError):
        take_answers(quiz, identity(bundle), [good, bad])
    assert not (quiz / "answers").exists()


def test_answers_belong_to_a_bundle(bundle: Bundle, quiz: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="built from other data"):
        take_answers(quiz, "another", [answers_file(tmp_path / "a.json", quiz, {})])


def test_a_new_quiz_replaces_another_only_when_asked_to(bundle: Bundle, quiz: Path) -> None:
    before = (quiz / "quiz.json").read_bytes()
    with pytest.raises(AlreadyExistsError, match="--overwrite"):
        write_quiz(bundle, quiz, sample(bundle, 1), ratings=2)
    assert (quiz / "quiz.json").read_bytes() == before
    write_quiz(bundle, quiz, sample(bundle, 1), ratings=2, overwrite=True)
    assert (quiz / "quiz.json").read_bytes() != before


def test_a_new_quiz_does_not_replace_one_that_was_answered(
    bundle: Bundle, quiz: Path, tmp_path: Path
) -> None:
    take_answers(quiz, identity(bundle), [answers_file(tmp_path / "a.json", quiz, {"q00001": 0})])
    write_quiz(bundle, quiz, sample(bundle, 100), ratings=RATINGS)
    with pytest.raises(AlreadyExistsError, match="1 people's answers"):
        write_quiz(bundle, quiz, sample(bundle, 1), ratings=2, overwrite=True)


def test_a_caption_makes_a_label_likely_word_by_word() -> None:
    captions = ("a dog", "two dogs on a red sofa", "a cat", "")
    images = [ImageRecord(str(i), 8, 8, caption, ()) for i, caption in enumerate(captions)]
    guess = CaptionGuess([*images, ImageRecord("4", 8, 8, "", ("Red", "dog"))])
    assert guess("red dog") == pytest.approx([0.5, 0.8, 0.2, 0.5, 0.8])
    assert guess("of the").tolist() == [0.5] * 5


def test_review_on_the_command_line(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = succeed("review", bundle.path, "--out", out, "--features", 3, "--labelled-only")
    assert f"{out / 'index.html'}: 3 features" in made.output
    given = answers_file(tmp_path / "ana.json", out, perfect(out))
    summed = succeed("review", bundle.path, "--out", out, "--answers", given).output
    assert "correlation, joint" in summed
    assert "100% (" in summed
    refused = run("review", bundle.path, "--out", tmp_path / "none", "--answers", given)
    assert refused.exit_code == 2
    assert "holds no quiz" in refused.output
