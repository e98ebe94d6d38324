"""Whatever is sent, the answer is foreseen: no rpc fails for reasons of ours, names a Python class,
or writes a traceback into the log. `python -m tests.benchmarks.faults` sends thousands more."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worlds import fuzz, serving
from tests.worlds import wire as wire_world

SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def log() -> Iterator[fuzz.Log]:
    with fuzz.Log.kept() as kept:
        yield kept


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzz.Wire]:
    state = wire_world.picture_state(tmp_path_factory.mktemp("pictures"))
    with serving.serving(state) as channel:
        yield fuzz.Wire(channel)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fuzz.Wire]:
    state = wire_world.drawing_state(tmp_path_factory.mktemp("generator"))
    with serving.serving(state) as channel:
        yield fuzz.Wire(channel)


def check(wire: fuzz.Wire, log: fuzz.Log, seed: int, right: Mapping[str, Sequence[Any]]) -> None:
    """One call of each rpc."""
    for method, messages in fuzz.tries(random.Random(seed), 1, right):
        faults = wire.send(method, messages).faults
        assert (faults, log.said) == ([], []), (method.name, seed)


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_a_server_of_pictures_takes_anything(pictures: fuzz.Wire, log: fuzz.Log, seed: int) -> None:
    check(pictures, log, seed, wire_world.picture_requests())


@settings(max_examples=8, deadline=None)
@given(SEEDS)
def test_a_server_that_generates_takes_anything(
    generator: fuzz.Wire, log: fuzz.Log, seed: int
) -> None:
    check(generator, log, seed, wire_world.generation_requests())


def test_requests_that_are_right_are_answered(pictures: fuzz.Wire, generator: fuzz.Wire) -> None:
    """Else what is changed in them would be refused before it is looked at."""
    answered = set[str]()
    for wire, right in (
        (pictures, wire_world.picture_requests()),
        (generator, wire_world.generation_requests()),
    ):
        for method in fuzz.METHODS:
            for message in right.get(method.input_type.name, ()):
                outcome = wire.send(method, [message.SerializeToString()])
                if outcome.code.name == "OK" and not outcome.errors:
                    answered.add(method.name)
    assert answered >= {m.name for m in fuzz.METHODS} - {
        *("GetLabelJob", "CancelLabelJob", "WatchLabelJob"),  # there is no job yet
    }
