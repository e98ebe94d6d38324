"""Labels by effects: words chosen by some pictures, judged by others."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.steering.test_causal import Told
from tests.worlds.contrastive import evidence_of, random_cells
from vision_sae.config import DescribeConfig
from vision_sae.descriptions.describers.effects import EffectsDescriber, prompts_of
from vision_sae.descriptions.scores.causal import CausalScorer
from vision_sae.descriptions.toolbox import Toolbox
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.arrays import ArrayEvidence

WORDS = ("red", "round", "large")
DIRECTIONS = np.eye(3, dtype=np.float32)
THINGS = ("apple", "tree", "boat", "stone", "cloud")


def known(told: dict[int, list[float]]) -> Told:
    """Random features 0 to 3 move two pictures a little along every word; others as is told."""
    moved = {0: [0, 0, 0], 1: [0.1, 0.1, 1], 2: [0.1, 0.1, 2], 3: [0.2, 0.2, 3]} | told
    return Told({feature: [along] * 2 for feature, along in moved.items()}, range(4))


def evidence() -> ArrayEvidence:
    """Unit 4 fires, and so do those that are compared with."""
    cells = random_cells(60, len(THINGS), cells=2, seed=0)
    return evidence_of(cells, [[i] for i in range(len(THINGS))], things=THINGS)


def describer(choosing: list[float], judging: list[float]) -> EffectsDescriber:
    """Of unit 4, which moves pictures so much along each word."""
    embed = dict(zip(WORDS, DIRECTIONS, strict=True))
    scorer = CausalScorer(known({4: judging}), lambda texts: np.stack([embed[t] for t in texts]))
    return EffectsDescriber(WORDS, DIRECTIONS, known({4: choosing}), scorer)


def test_the_word_is_what_it_moves_toward_more_than_random_features_do() -> None:
    # Toward "large" it moves furthest, but random features move as far: .5 and 3.1 of their
    # standard deviations (.0707 and 1.118) from their mean (.1 and 1.5).
    (made,) = describer([0.32, 0.1, 2.06], [0.5, 0.0, 0.0]).describe(evidence(), [4])
    assert made.text == "red"
    assert [word for word, _ in made.candidates] == ["red", "large", "round"]
    assert [value for _, value in made.candidates] == pytest.approx([3.111, 0.501, 0], abs=1e-2)
    assert [(score.metric, score.value, score.n) for score in made.scores] == [("causal", 1.0, 2)]
    assert (made.judged_by, made.scores[0].judge) == ("steering", "steering")


def test_it_abstains_when_other_prompts_do_not_confirm_the_word() -> None:
    (made,) = describer([0.5, 0.0, 0.0], [0.1, 0.0, 0.0]).describe(evidence(), [4])
    assert made.text is None
    assert made.judged_by == ""
    assert '"red"' in made.abstained
    assert made.scores[0].value == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)


def test_it_abstains_where_no_other_feature_fires() -> None:
    lonely = Told({4: [[0.5, 0, 0]] * 2}, [4])
    scorer = CausalScorer(lonely, lambda texts: DIRECTIONS[: len(texts)])
    (made,) = EffectsDescriber(WORDS, DIRECTIONS, lonely, scorer).describe(evidence(), [4])
    assert made.text is None
    assert "no other feature fires" in made.abstained


def test_it_abstains_from_a_silent_unit() -> None:
    silent = evidence_of(np.zeros((6, 2, 2), dtype=np.int64), [[4]], things=THINGS)
    (made,) = describer([0.5, 0.0, 0.0], [0.5, 0.0, 0.0]).describe(silent, [0])
    assert made.text is None
    assert "no picture" in made.abstained


def test_prompts_are_the_captions_of_the_pictures() -> None:
    world = evidence()
    found = prompts_of(world, 5)
    captions = {image.caption for image in world.images}
    assert len({settings.prompt for settings in found}) == len(found) <= 5
    assert {settings.prompt for settings in found} <= captions
    assert [settings.seed for settings in found] == list(range(len(found)))


def test_pictures_of_too_few_prompts_are_refused() -> None:
    silent = evidence_of(np.zeros((6, 2, 2), dtype=np.int64), [[4]], things=THINGS)
    with pytest.raises(InvalidInputError, match="harvest pictures of more"):
        prompts_of(silent, 8)


def test_units_of_no_bundle_are_refused(tmp_path: object) -> None:
    toolbox = Toolbox(DescribeConfig(describer="effects"), tmp_path, progress=False)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="generator's bundle"):
        toolbox.labeller(evidence())
