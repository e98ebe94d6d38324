"""A label stands when it tells its unit's pictures better than labels of other units do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.evidence.test_evidence import array_evidence
from vision_sae.descriptions.labelling import Labeller
from vision_sae.descriptions.protocol import Description, Metric, Score
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import Evidence, spread

UNITS = 20


class Namer:
    """Says ``thing {unit}``, and nothing of every fifth unit."""

    name, version = "namer", 1

    def __init__(self) -> None:
        self.asked: list[int] = []

    def describe(self, evidence: Evidence, units: Iterable[int]) -> Iterator[Description]:
        for unit in units:
            self.asked.append(unit)
            if unit % 5 == 0:
                yield Description(unit, None, "no words for it", self.name, self.version)
            else:
                own = (Score("pmi", 2.5, 9),)
                yield Description(unit, f"thing {unit}", "", self.name, self.version, scores=own)


class Judge:
    """Finds the labels of units 1 to 9 good and those of the others as good as any other."""

    def __init__(self) -> None:
        self.controls: dict[int, Sequence[str]] = {}

    def score(
        self,
        evidence: Evidence,
        unit: int,
        text: str,
        metrics: Sequence[Metric],
        *,
        control_texts: Sequence[str] = (),
    ) -> list[Score]:
        self.controls[unit] = control_texts
        value = 0.9 if unit < 10 else 0.5
        interval = (value - 0.1, value + 0.1)
        return [Score(m, value, 20, *interval, 0.5, "random") for m in metrics]


def evidence() -> ArrayEvidence:
    one = array_evidence()
    return replace(
        one,
        all_peaks=np.repeat(one.all_peaks, UNITS, 0),
        firing_images=np.repeat(one.firing_images, UNITS, 0),
        maps=np.repeat(one.maps, UNITS, 0),
        thresholds=np.repeat(one.thresholds, UNITS),
    )


def labels(*units: int, judge: Judge | None = None) -> list[Description]:
    labeller = Labeller(Namer(), judge, ("detection_auc",))  # type: ignore[arg-type]
    return list(labeller.label(evidence(), units))


def test_label_that_beats_the_control_stands_with_its_scores() -> None:
    (made,) = labels(3, judge=Judge())
    assert made.text == "thing 3"
    assert [score.metric for score in made.scores] == ["pmi", "detection_auc"]


def test_label_no_better_than_others_becomes_an_abstention_that_keeps_what_was_said() -> None:
    (made,) = labels(12, judge=Judge())
    assert made.text is None
    assert "control" in made.abstained
    assert made.candidates == (("thing 12", 2.5),)
    assert made.scores[1].value == 0.5


def test_what_a_label_is_judged_by_is_measured_whatever_was_asked_for() -> None:
    labeller = Labeller(Namer(), Judge(), ("fuzzing_auc",))  # type: ignore[arg-type]
    (made,) = labeller.label(evidence(), [3])
    assert made.text == "thing 3"
    assert [score.metric for score in made.scores] == ["pmi", "fuzzing_auc", "detection_auc"]


def test_abstention_of_the_describer_is_not_scored() -> None:
    judge = Judge()
    (made,) = labels(5, judge=judge)
    assert (made.text, made.abstained, made.scores) == (None, "no words for it", ())
    assert not judge.controls


def test_without_a_scorer_labels_stand_as_they_are() -> None:
    assert [made.text for made in labels(12, 5)] == ["thing 12", None]


def test_controls_are_labels_of_other_units_that_say_something_else() -> None:
    judge = Judge()
    labels(3, judge=judge)
    control = judge.controls[3]
    assert len(control) == len(set(control)) == 8
    assert "thing 3" not in control
    assert set(control) <= {f"thing {unit}" for unit in range(UNITS) if unit % 5}


@pytest.mark.parametrize("order", [(3, 12, 1), (1, 3), (12, 3)])
def test_controls_do_not_depend_on_what_else_is_asked(order: tuple[int, ...]) -> None:
    alone, together = Judge(), Judge()
    labels(3, judge=alone)
    labels(*order, judge=together)
    assert together.controls[3] == alone.controls[3]


def test_the_pool_of_controls_is_described_once() -> None:
    namer = Namer()
    labeller = Labeller(namer, Judge(), ("detection_auc",))  # type: ignore[arg-type]
    world = evidence()
    list(labeller.label(world, range(UNITS)))
    list(labeller.label(world, range(UNITS)))
    assert len(namer.asked) == 3 * UNITS


def test_controls_are_found_among_the_few_features_that_fire() -> None:
    some = evidence()
    dead = np.arange(UNITS) % 7 != 3  # of 20 only 3, 10 and 17 fire
    some = replace(
        some,
        all_peaks=np.where(dead[:, None], 0, some.all_peaks),
        firing_images=np.where(dead[:, None], -1, some.firing_images),
    )
    assert spread(some, 2) == [3]  # half as many at least
    assert spread(some, 9) == [3, 10, 17]
    assert spread(evidence(), 3) == [0, 10, 19]
