"""Labels of scene generators' features: features that are planted in what prompts ask for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.worlds.tiny import PREPROCESSING
from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.describers.scenes import (
    STRONGEST,
    ScenesDescriber,
    judge,
    object_patches,
    read_scenes,
    true_of_strongest,
)
from vision_sae.descriptions.protocol import Description
from vision_sae.descriptions.scene_terms import (
    SceneLabel,
    Term,
    english,
    numbers,
    read_label,
    terms,
    truth,
)
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.models.grid import PatchGrid
from vision_sae.pictures.scenes import (
    VALUES,
    WORDS,
    Attributes,
    random_attributes,
    read_caption,
)

GRID = PatchGrid(rows=8, cols=8, special=0, patch_height=8, patch_width=8)
PROMPTS, STEPS = 6000, 2
SCENES = [
    replace(random_attributes(np.random.default_rng([7, i])), word=None) for i in range(PROMPTS)
]
Rule = Callable[[Attributes], float]


def world(
    rules: Sequence[Rule], *, on: str = "", scenes: Sequence[Attributes] = SCENES
) -> ArrayEvidence:
    """Units that fire as their rules say of each scene, more in the later of two steps, and a
    little at random; in all patches, in those of the object or in those beside it."""
    random = np.random.default_rng(0)
    strength = np.array([[rule(scene) for scene in scenes] for rule in rules], dtype=np.float32)
    noise = random.exponential(0.1, strength.shape) * (random.random(strength.shape) < 0.3)
    peaks = np.repeat(strength * random.uniform(0.7, 1, strength.shape) + noise, STEPS, axis=1)
    peaks[:, ::STEPS] *= 0.5
    firing = np.argsort(-peaks, axis=1)[:, :48]
    maps = np.zeros((len(rules), 48, 64), dtype=np.float32)
    for unit, pictures in enumerate(firing):
        for slot, picture in enumerate(pictures):
            scene = scenes[picture // STEPS]
            area = object_patches(scene.shape, scene.size, scene.place, 8, 8).ravel()
            areas = {"object": area, "background": ~area, "": area | ~area}
            maps[unit, slot, areas[on]] = peaks[unit, picture]
    return ArrayEvidence(
        name="dictionaries/planted",
        identity=f"{on}{len(rules)}",
        data_sha256="d" * 64,
        site="site",
        images=[
            ImageRecord(f"{i}/step-{step}", 64, 64, scene.caption, (), str(i))
            for i, scene in enumerate(scenes)
            for step in range(STEPS)
        ],
        grid=GRID,
        preprocessing=PREPROCESSING,
        thumbnails=[],
        embeddings=np.zeros((PROMPTS * STEPS, 2), dtype=np.float32),
        all_peaks=peaks,
        firing_images=firing,
        maps=maps,
        thresholds=np.zeros(len(rules)),
    )


def is_(**wanted: str) -> Rule:
    """A unit that fires where the scene is so."""
    return lambda scene: float(all(getattr(scene, k) == v for k, v in wanted.items()))


def among(attribute: str, *values: str) -> Rule:
    return lambda scene: float(getattr(scene, attribute) in values)


PLANTED: dict[str, Rule] = {
    "a star": is_(shape="star"),
    "red": is_(colour="red"),
    "a red star": is_(shape="star", colour="red"),
    "striped": is_(texture="striped"),
    "at the top left": is_(place="top left"),
    "in the centre": is_(place="centre"),
    "light blue background": is_(background="light blue"),
    "on the left side": among("place", "top left", "left", "bottom left"),
    "dark background": among("background", "black", "dark grey", "dark blue"),
    "patterned": among("texture", "striped", "dotted", "checkered"),
    "a small star": is_(shape="star", size="small"),
    "a striped thing at the left": is_(texture="striped", place="left"),
}


@pytest.fixture(scope="module")
def described() -> dict[str, Description]:
    made = ScenesDescriber().describe(world(list(PLANTED.values())), range(len(PLANTED)))
    return dict(zip(PLANTED, made, strict=True))


def term(attribute: str, *values: str) -> Term:
    (found,) = read_label([{"attribute": attribute, "values": values}])
    return found


def test_a_caption_is_read_back_as_what_it_was_made_of() -> None:
    random = np.random.default_rng(3)
    for _ in range(2000):
        scene = random_attributes(random)
        assert read_caption(scene.caption) == scene
    base = SCENES[0]
    for name, values in VALUES.items():
        for value in values:
            changed = replace(base, **{name: value})  # type: ignore[arg-type]
            assert read_caption(changed.caption) == changed
    for word in WORDS:
        assert read_caption(replace(base, word=word).caption) == replace(base, word=word)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a star",
        "a small red plain star at the top of a white background",
        "a small red star at the centre of a white background",
        "a small red star at the top of a white background, again",
        "a tiny red star at the top of a white background",
    ],
)
def test_other_texts_are_no_captions(text: str) -> None:
    assert read_caption(text) is None


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_feature_gets_its_name(described: dict[str, Description], text: str) -> None:
    made = described[text]
    assert made.text == text, made
    assert made.judged_by == "scenes"
    scores = {score.metric: score for score in made.scores}
    assert {score.judge for score in made.scores} == {"scenes"}
    assert scores["precision"].value > 0.9
    assert scores["precision"].n <= STRONGEST
    assert scores["lift"].value == pytest.approx(
        scores["precision"].value / made.details["base_rate"], rel=1e-2
    )
    assert scores["correlation"].value > 0.8
    assert made.candidates[0][0] == text


def test_where_it_fires_is_part_of_the_label() -> None:
    rules = [PLANTED["a star"], PLANTED["light blue background"]]
    (star, ground) = ScenesDescriber().describe(world(rules, on="background"), range(2))
    assert star.text == "background of a star"
    assert ground.text == "light blue background"
    (_, ground) = ScenesDescriber().describe(world(rules, on="object"), range(2))
    assert ground.text == "a thing on a light blue background"


def test_features_of_noise_abstain() -> None:
    random = np.random.default_rng(5)
    rates = np.linspace(0.03, 0.6, 100)
    rules: list[Rule] = [
        lambda _, rate=rate: float(random.exponential() * (random.random() < rate))  # type: ignore[misc]
        for rate in rates
    ]
    made = list(ScenesDescriber().describe(world(rules), range(len(rules))))
    silent = [description for description in made if description.text is None]
    assert len(silent) >= 95
    assert all(description.abstained for description in silent)


def test_a_description_depends_on_nothing_but_the_evidence() -> None:
    evidence = world(list(PLANTED.values()))
    together = list(ScenesDescriber().describe(evidence, range(4)))
    (alone,) = ScenesDescriber().describe(evidence, [2])
    assert alone == together[2]


def test_the_judge_never_sees_what_chose_and_leaves_a_side_for_audits() -> None:
    scenes = read_scenes(tuple(world([PLANTED["a star"]]).images))
    sides = (scenes.proposing, scenes.choosing, scenes.judging, scenes.auditing)
    whole = np.concatenate(sides)
    assert sorted(whole.tolist()) == list(range(len(scenes.shown)))
    assert len(scenes.judging) == pytest.approx(len(whole) / 4, rel=0.2)


def test_no_label_is_true_of_the_strongest_prompts_of_a_silent_feature() -> None:
    true = np.array([[True, False, True], [True, True, True]])
    # Prompt 1 is the strongest, prompt 2 is silent: term 0 is true of one of two prompts.
    fires = true_of_strongest([(0,), (1,)], true, np.array([1.0, 2.0, 0.0], np.float32))
    assert fires.tolist() == [0.5, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = true_of_strongest([(0,), (1,)], true, np.zeros(3, np.float32))
    assert silent.tolist() == [0.0, 0.0]


def test_a_false_label_is_refused() -> None:
    shown = numbers(SCENES)
    star: SceneLabel = (term("shape", "star"),)
    peaks = truth(star, shown) + 0.01 * np.arange(len(shown), dtype=np.float32) / len(shown)
    others = [(term("colour", colour),) for colour in VALUES["colour"]]
    assert judge(star, peaks, shown, others).refused == ""
    assert "true of" in judge(others[0], peaks, shown, [star]).refused
    # True of every scene that fires it, and of all others.
    anything: SceneLabel = (term("texture", "striped", "dotted", "checkered"),)
    assert judge(anything, peaks, shown, others).refused


def test_the_two_faults_of_labels_lower_the_correlation() -> None:
    random = np.random.default_rng(1)
    shown = numbers(SCENES)
    red: SceneLabel = (term("colour", "red"),)
    peaks = truth(red, shown) * random.uniform(0.5, 1, len(shown)).astype(np.float32)

    def correlation(label: SceneLabel) -> float:
        return next(s.value for s in judge(label, peaks, shown).scores if s.metric == "correlation")

    missing, extra = (
        (term("colour", "red"), term("size", "small")),
        (term("colour", "red", "pink"),),
    )
    assert correlation(missing) < correlation(red)
    assert correlation(extra) < correlation(red)


def test_labels_read_as_english() -> None:
    star, red, left = term("shape", "star"), term("colour", "red"), term("place", "left")
    ground, orange = term("background", "black"), term("colour", "orange")
    assert english((star, red)) == "a red star"
    assert english((red, left)) == "a red thing at the left"
    assert english((orange, left)) == "an orange thing at the left"
    assert english((red, ground)) == "a red thing on a black background"
    assert english((left, ground)) == "a thing at the left on a black background"
    assert english((red,), part="background") == "background of a red thing"
    assert english((red, ground), part="background") == "black background around a red thing"
    assert english((ground,), part="background") == "black background"


def test_every_term_has_words_of_its_own_and_is_read_back() -> None:
    words = [one.words for one in terms()]
    assert len(set(words)) == len(words)
    assert read_label([one.to_json() for one in terms()]) == terms()


def test_pictures_of_other_prompts_are_refused() -> None:
    evidence = world([PLANTED["a star"]])
    images = [image._replace(caption="a cat") for image in evidence.images]
    with pytest.raises(InvalidInputError, match="take another describer"):
        list(ScenesDescriber().describe(replace(evidence, images=images), [0]))
