"""The label store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds import databases
from tests.worlds import tiny as worlds
from tests.worlds.labels import IDENTITY, PARENT, Clock, made
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.read import Bundle
from vision_sae.config import BuildConfig, DescribeConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.descriptions.protocol import Score
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import (
    ConflictError,
    CorruptArtifactError,
    InvalidInputError,
    MismatchError,
)
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.database import Database
from vision_sae.labels.entries import Unit
from vision_sae.labels.store import LabelStore

UNIT = Unit(PARENT, 12)


@pytest.fixture(params=["memory", "file", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LabelStore]:
    if request.param == "postgresql":
        where = databases.emptied(request.getfixturevalue("postgresql"))
    else:
        where = "sqlite://" if request.param == "memory" else str(tmp_path / "labels.sqlite")
    opened = LabelStore(Database(where, clock=Clock()))
    yield opened
    opened.close()


def texts(store: LabelStore, unit: Unit = UNIT) -> list[str | None]:
    """The current text, then the earlier ones."""
    current = store.current(unit)
    assert current
    return [entry.description.text for entry in (current, *store.history(unit))]


@pytest.mark.parametrize(
    ("resource", "unit"),
    [
        ("dictionaries/a/features/12", Unit("dictionaries/a", 12)),
        ("models/m/sites/blocks.1.mlp/units/5", Unit("models/m/sites/blocks.1.mlp", 5)),
    ],
)
def test_a_unit_is_named_by_its_resource(resource: str, unit: Unit) -> None:
    assert Unit.parse(resource) == unit
    assert unit.resource == resource


@pytest.mark.parametrize("resource", ["", "dictionaries/a", "models/m/features/1", "a/features/x"])
def test_what_names_no_unit_is_refused(resource: str) -> None:
    with pytest.raises(InvalidInputError, match="names no unit"):
        Unit.parse(resource)


def test_a_description_comes_back_as_it_was_made(store: LabelStore) -> None:
    score = Score("detection_auc", 0.75, 20, 0.5, 0.875, 0.5, "hard")
    description = made(
        12,
        "striped red fabric",
        scores=(score,),
        evidence=(7, 3),
        details={"words": [{"word": "red", "p": 1e-9}]},
        candidates=(("red", 1.5), ("fabric", 0.25)),
    )
    store.add(PARENT, [description], identity=IDENTITY)
    entry = store.current(UNIT)
    assert entry is not None
    assert (entry.unit, entry.description) == (UNIT, description)
    assert (entry.origin, entry.author, entry.identity) == ("describer", "", IDENTITY)
    assert entry.created == datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC)  # the clock says 1000


def test_the_newest_holds_and_the_others_are_history_newest_first(store: LabelStore) -> None:
    assert store.current(UNIT) is None
    assert store.history(UNIT) == []
    for text in ("cat", "dog", None):
        store.add(PARENT, [made(12, text)], identity=IDENTITY)
    assert texts(store) == [None, "dog", "cat"]


def test_what_a_person_wrote_is_replaced_by_people_only(store: LabelStore) -> None:
    store.add(PARENT, [made(12, "cat")], identity=IDENTITY)
    written = store.edit(UNIT, "lynx", author="Ada")
    assert (written.origin, written.author, written.description.describer) == ("person", "Ada", "")
    store.add(PARENT, [made(12, "dog")], identity=IDENTITY)
    store.add(PARENT, [made(12, "fox")], identity=IDENTITY, origin="imported")
    assert texts(store) == ["lynx", "fox", "dog", "cat"]
    assert store.current(UNIT) == written
    store.edit(UNIT, None, abstained="looks like everything")
    assert texts(store) == [None, "fox", "dog", "lynx", "cat"]  # by age


def test_an_edit_of_what_was_changed_meanwhile_is_refused(store: LabelStore) -> None:
    store.add(PARENT, [made(12, "cat")], identity=IDENTITY)
    seen = store.current(UNIT)
    assert seen is not None
    second = store.edit(UNIT, "lynx", etag=seen.etag)
    with pytest.raises(ConflictError, match="was changed since you read it") as caught:
        store.edit(UNIT, "panther", etag=seen.etag)
    assert caught.value.field == "etag"
    assert texts(store) == ["lynx", "cat"]
    store.edit(UNIT, "panther", etag=second.etag)
    store.edit(UNIT, "tiger")  # no etag: overwrite whatever is there
    assert texts(store) == ["tiger", "panther", "lynx", "cat"]
    with pytest.raises(ConflictError):
        store.edit(Unit(PARENT, 99), "new", etag=second.etag)


def test_all_of_a_batch_is_stored_or_nothing(store: LabelStore) -> None:
    with pytest.raises(InvalidInputError, match="longer than 500"):
        store.add(PARENT, [made(1, "cat"), made(2, "x" * 501)], identity=IDENTITY)
    assert store.currents(PARENT) == {}


def test_units_are_read_by_parent_and_index(store: LabelStore) -> None:
    store.add(PARENT, [made(i, f"t{i}") for i in range(600)], identity=IDENTITY)
    store.add("dictionaries/b", [made(3, "other")], identity=IDENTITY)
    assert len(store.currents(PARENT)) == 600
    found = store.currents(PARENT, [3, 550, 5000])
    assert {i: e.description.text for i, e in found.items()} == {3: "t3", 550: "t550"}
    assert len(store.currents(PARENT, range(600))) == 600


def test_a_unit_that_was_read_before_is_read_as_it_is_now(store: LabelStore) -> None:
    store.add(PARENT, [made(1, "cat"), made(2, "dog")], identity=IDENTITY)
    before = store.currents(PARENT, [1, 2])
    LabelStore(store.database).edit(Unit(PARENT, 1), "lynx")  # as another process might
    found = store.currents(PARENT, [1, 2])
    assert {i: e.description.text for i, e in found.items()} == {1: "lynx", 2: "dog"}
    assert found[2] is before[2]  # what a version says is read once


def test_an_outline_has_what_units_are_chosen_by(store: LabelStore) -> None:
    score = Score("pmi", 1.5, 3)
    store.add(PARENT, [made(1, "cat", scores=(score,)), made(2, None)], identity=IDENTITY)
    store.edit(Unit(PARENT, 2), "lynx", author="Ada")
    assert store.outlines(PARENT) == {
        1: ("cat", "caption-pmi", "describer", "", (score,), ""),
        2: ("lynx", "", "person", "Ada", (), "person"),
    }
    assert store.texts(PARENT) == {1: "cat", 2: "lynx"}


def test_judges_are_those_of_texts_that_hold(store: LabelStore) -> None:
    judged = {"details": {"judged_by": "captions"}}
    store.add(PARENT, [made(1, "cat", **judged), made(2, "dog"), made(3, None)], identity=IDENTITY)
    store.add(PARENT, [made(4, "fox", **judged), made(5, None, **judged)], identity=IDENTITY)
    store.edit(Unit(PARENT, 3), "lynx")
    assert store.judges(PARENT) == {1: "captions", 3: "person", 4: "captions"}
    assert store.judges(PARENT, [2, 3, 4, 700]) == {3: "person", 4: "captions"}
    assert store.judges(PARENT, []) == {}
    units = [Unit(PARENT, 2), Unit(PARENT, 3), Unit(PARENT, 4), Unit("dictionaries/other", 3)]
    assert store.confirmed(units) == {Unit(PARENT, 3), Unit(PARENT, 4)}
    assert store.confirmed([]) == set()
    assert store.summary(PARENT).confirmed == 3
    store.add(PARENT, [made(1, "kitten")], identity=IDENTITY)  # what holds now is a guess
    store.edit(Unit(PARENT, 3), None, abstained="mixed")
    assert store.judges(PARENT) == {4: "captions"}
    assert store.summary(PARENT).confirmed == 1


def test_what_a_person_wrote_counts_as_confirmed_though_the_store_does_not_say(
    store: LabelStore,
) -> None:
    """As earlier versions stored edits: without a judge."""
    edits = [made(12, "a lynx", describer=""), made(13, None, describer="")]
    store.add(PARENT, edits, identity=IDENTITY, origin="person")
    store.add(PARENT, [made(14, "a guess")], identity=IDENTITY)
    current = store.currents(PARENT)
    assert {i: entry.description.judged_by for i, entry in current.items()} == {
        12: "person",
        13: "",
        14: "",
    }
    assert not current[12].description.is_guess
    assert store.judges(PARENT) == {12: "person"}
    assert store.outlines(PARENT)[12].judged_by == "person"
    assert store.summary(PARENT).confirmed == 1


def test_a_summary_counts_what_holds(store: LabelStore) -> None:
    assert store.summary(PARENT).described == 0
    store.add(PARENT, [made(1, "cat"), made(2, "dog"), made(3, None)], identity=IDENTITY)
    store.add(PARENT, [made(2, "fox", describer="milan")], identity=IDENTITY)
    store.edit(Unit(PARENT, 1), "lynx")
    summary = store.summary(PARENT)
    assert (summary.described, summary.abstained, summary.by_people) == (2, 1, 1)
    assert summary.describers == ("caption-pmi", "milan")


@pytest.fixture
def zoo(store: LabelStore) -> LabelStore:
    fillers = [made(100 + i, f"filler number {i}") for i in range(20)]
    labels = [made(1, "striped cats"), made(2, "a red dog"), made(3, "the eye of a red cat")]
    store.add(PARENT, [*labels, *fillers], identity=IDENTITY)
    store.add("dictionaries/b", [made(1, "cat")], identity=IDENTITY)
    return store


def found(store: LabelStore, query: str) -> list[int]:
    return [hit.unit.index for hit in store.search(query, [PARENT])]


def test_search_knows_the_forms_of_words_and_ranks(zoo: LabelStore) -> None:
    assert sorted(found(zoo, "cat")) == [1, 3]
    assert found(zoo, "dogs") == [2]
    assert found(zoo, "Red CATS")[0] == 3  # both words
    ranks = [hit.rank for hit in zoo.search("red cats")]
    assert ranks == sorted(ranks, reverse=True)


def test_search_covers_all_parents_or_those_asked_for(zoo: LabelStore) -> None:
    assert {hit.unit for hit in zoo.search("cats")} == {
        *(Unit(PARENT, i) for i in (1, 3)),
        Unit("dictionaries/b", 1),
    }
    assert zoo.search("cats", []) == []


def test_search_sees_current_texts_only(zoo: LabelStore) -> None:
    zoo.edit(Unit(PARENT, 1), "tiger")
    assert found(zoo, "striped") == []
    assert found(zoo, "tiger") == [1]
    zoo.edit(Unit(PARENT, 1), None)
    assert found(zoo, "tiger") == []


@pytest.mark.parametrize(
    "query",
    ['"', '""', "'", "\\", "*", "^", "(", "NEAR(", "_", "-", "!", "\0", " ", "日本語", "é", "&|<->",
     "'; DROP TABLE units; --", "x" * 10_000, "w" + " w".join(map(str, range(500)))],
)  # fmt: skip
def test_any_query_is_safe(zoo: LabelStore, query: str) -> None:
    assert found(zoo, query) == []


@pytest.mark.parametrize("query", ["text:dog", "-dog", "dog*", '"dog', "dog AND", "dog'", "(dog"])
def test_operators_are_only_separators(zoo: LabelStore, query: str) -> None:
    assert found(zoo, query) == [2]


def test_threads_share_a_store(store: LabelStore) -> None:
    def write(first: int) -> None:
        for index in range(first, first + 20):
            store.add(PARENT, [made(index, f"text {index}")], identity=IDENTITY)
            assert store.current(Unit(PARENT, index)) is not None

    threads = [threading.Thread(target=write, args=(20 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.currents(PARENT)) == list(range(80))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Feature 0 fires in 20 of 40 pictures, all called cat; feature 1 nowhere."""
    vectors = np.zeros((40, 4, 2))
    vectors[::2, 0, 0] = np.arange(1, 21)
    captions = ["a cat", "a dog"] * 20
    store = worlds.write_store(tmp_path / "store", [vectors], captions=captions)
    worlds.write_dictionary(tmp_path / "d", worlds.identity_sae(2, 2), store)
    build(store, tmp_path / "d", tmp_path / "zoo", BuildConfig(), progress=False)
    return describe_bundle(
        tmp_path / "zoo", DescribeConfig(describer="caption-pmi", metrics=()), progress=False
    )


def test_a_bundles_descriptions_are_taken_over_once(store: LabelStore, bundle: Bundle) -> None:
    assert store.import_bundle(bundle) == 2
    cat = store.current(Unit("dictionaries/zoo", 0))
    assert cat is not None
    stored = json.loads(json.dumps(bundle.descriptions[0]))
    assert (cat.description.text, cat.description.evidence) == ("cat", tuple(stored["evidence"]))
    store.add("dictionaries/zoo", [made(0, "feline")], identity=cat.identity)
    assert store.import_bundle(bundle) == 0
    assert texts(store, Unit("dictionaries/zoo", 0)) == ["feline", "cat"]


def test_what_a_job_said_of_a_bundle_holds_when_the_bundle_is_taken_over(
    store: LabelStore, bundle: Bundle
) -> None:
    zoo = Unit("dictionaries/zoo", 0)
    store.add(zoo.parent, [made(0, "feline")], identity=BundleEvidence(bundle).identity)
    assert store.import_bundle(bundle) == 2
    assert texts(store, zoo) == ["feline", "cat"]
    assert store.texts(zoo.parent) == {0: "feline"}
    assert [hit.unit for hit in store.search("feline")] == [zoo]
    assert store.search("cat") == []


def test_what_was_said_of_other_evidence_gives_way_to_a_bundle(
    store: LabelStore, bundle: Bundle
) -> None:
    store.add("dictionaries/zoo", [made(0, "feline")], identity="of another bundle")
    store.import_bundle(bundle)
    assert store.texts("dictionaries/zoo") == {0: "cat"}


def test_labels_of_another_dictionary_of_that_name_become_history(
    store: LabelStore, bundle: Bundle, tmp_path: Path
) -> None:
    store.import_bundle(bundle)
    store.edit(Unit("dictionaries/zoo", 0), "tiger")
    features = ActivationStore(tmp_path / "store")
    weights = {"w_enc": 2 * torch.eye(2), "w_dec": torch.eye(2)}
    other = TopKSae(k=2, b_enc=torch.zeros(2), b_dec=torch.zeros(2), **weights)
    worlds.write_dictionary(tmp_path / "other", other, features)
    rebuilt = build(
        features,
        tmp_path / "other",
        tmp_path / "zoo",
        BuildConfig(),
        progress=False,
        overwrite=True,
    )
    assert store.import_bundle(rebuilt) == 0
    assert store.currents("dictionaries/zoo") == {}
    assert store.texts("dictionaries/zoo") == {}
    assert store.search("tiger cat") == []
    told = [entry.description.text for entry in store.history(Unit("dictionaries/zoo", 0))]
    assert told == ["tiger", "cat"]
    # The same dictionary again, described: that holds.
    made = describe_bundle(
        tmp_path / "zoo", DescribeConfig(describer="caption-pmi", metrics=()), progress=False
    )
    assert store.import_bundle(made) == 2
    assert store.texts("dictionaries/zoo")


def test_another_version_is_refused(tmp_path: Path) -> None:
    LabelStore(tmp_path / "labels.sqlite").close()
    with sqlite3.connect(tmp_path / "labels.sqlite") as connection:
        connection.execute("UPDATE about SET value = '2' WHERE key = 'version'")
    with pytest.raises(MismatchError, match="version 2, this code reads version 1"):
        LabelStore(tmp_path / "labels.sqlite")


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE shopping (item TEXT)")
    before = (tmp_path / "other.sqlite").read_bytes()
    with pytest.raises(CorruptArtifactError, match="something else"):
        LabelStore(tmp_path / "other.sqlite")
    assert (tmp_path / "other.sqlite").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["other.sqlite"]
    (tmp_path / "words.txt").write_text("no database at all, but long enough to be one" * 100)
    with pytest.raises(CorruptArtifactError, match=r"words\.txt is not a database of labels"):
        LabelStore(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("mysql://host/labels", "cannot be kept in mysql"),
        ("://", "is no database URL"),
        ("/nowhere/labels.sqlite", "cannot open the labels at /nowhere/labels.sqlite"),
    ],
)
def test_what_cannot_be_opened_is_said(where: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as caught:
        LabelStore(where)
    assert caught.value.field == "labels"


def test_a_file_outlives_its_store(tmp_path: Path) -> None:
    first = LabelStore(tmp_path / "labels.sqlite")
    written = first.edit(UNIT, "lynx")
    first.close()
    assert LabelStore(tmp_path / "labels.sqlite").current(UNIT) == written
