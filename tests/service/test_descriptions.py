"""DescriptionService and what the catalogue shows of descriptions, over a real channel."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from vision_sae_server import app
from vision_sae_server.labelling import CaptionLabels, Labelling
from vision_sae_server.runtime.replies import Replies

from tests.worlds import serving
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.bundles.read import Bundle
from vision_sae.descriptions.describers.caption_pmi import CaptionPmiConfig
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.labels.entries import Unit
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import catalog_service_pb2_grpc as catalog_grpc
from vision_sae.v1 import description_pb2
from vision_sae.v1 import description_service_pb2 as pb
from vision_sae.v1 import description_service_pb2_grpc as description_grpc
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.feature_pb2 import FEATURE_VIEW_FULL

CAT, DOG = f"{DICTIONARY}/features/0", f"{DICTIONARY}/features/1"
AUC = description_pb2.SCORE_METRIC_DETECTION_AUC
FUZZING = description_pb2.SCORE_METRIC_FUZZING_AUC


class Numbered:
    """A describer that counts how often it was asked."""

    version = 7
    metrics = ("detection_auc",)

    def __init__(self) -> None:
        self.asked = 0

    def identity(self) -> str:
        return "numbered"

    def label(
        self, evidence: Any, units: Sequence[int], metrics: Sequence[str]
    ) -> Iterator[Description]:
        for unit in units:
            self.asked += 1
            scores = tuple(Score("detection_auc", 0.9, 20, 0.8, 1.0, 0.5, k) for k in ("hard",))
            yield made(
                unit,
                f"label {self.asked} of {unit}",
                describer="numbered",
                describer_version=7,
                scores=scores if metrics else (),
                candidates=tuple((f"c{i}", float(-i)) for i in range(12)),
            )


class Lengths:
    """Scores a text by its length, and remembers what it was asked."""

    metrics = ("detection_auc", "fuzzing_auc")

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def score(self, evidence: Any, unit: int, text: str, metrics: Any, **rest: Any) -> list[Score]:
        self.asked.append({"unit": unit, "text": text, **rest})
        return [
            Score(metric, len(text), rest["sample"], control=0.5, negatives=kind)
            for metric in metrics
            for kind in (rest["negatives"] if metric == "detection_auc" else ("",))
        ]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return serving.zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def numbered() -> Numbered:
    return Numbered()


@pytest.fixture
def scorer() -> Lengths:
    return Lengths()


@pytest.fixture
def labels(bundle: Bundle) -> LabelStore:
    store = LabelStore("sqlite://")
    store.import_bundle(bundle)
    return store


@pytest.fixture
def channel(
    bundle: Bundle,
    labels: LabelStore,
    numbered: Numbered,
    scorer: Lengths,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[grpc.Channel]:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    describers = {"caption-pmi": CaptionLabels(CaptionPmiConfig()), "numbered": numbered}
    with serving.serving(serving.state(bundle, labels, Labelling(describers, scorer))) as channel:
        yield channel


@pytest.fixture
def service(channel: grpc.Channel) -> description_grpc.DescriptionServiceStub:
    return description_grpc.DescriptionServiceStub(channel)


@pytest.fixture
def catalog(channel: grpc.Channel) -> catalog_grpc.CatalogServiceStub:
    return catalog_grpc.CatalogServiceStub(channel)


@pytest.mark.parametrize(("key", "author"), [("x-user", "ada"), (None, "")])
def test_a_proxy_names_who_writes_where_it_is_believed(
    bundle: Bundle,
    labels: LabelStore,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    author: str,
) -> None:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    held = serving.state(bundle, labels)
    held = replace(held, config=held.config.model_copy(update={"caller_key": key}))
    request = pb.UpdateDescriptionRequest(
        description=description_pb2.Description(name=f"{CAT}/description", text="a lynx")
    )
    with serving.serving(held) as channel:
        stub = description_grpc.DescriptionServiceStub(channel)
        written = stub.UpdateDescription(request, metadata=(("x-user", "ada"),)).description
    assert (written.author, written.judged_by) == (author, "person")


def test_evidence_has_what_fires_there(service: Any, bundle: Bundle, labels: LabelStore) -> None:
    # Feature 0 fires in picture 4 with 5, at patch 0; in picture 1 it is silent.
    told = made(0, "cat", evidence=(4 * 4, 1 * 4))
    labels.add(DICTIONARY, [told], identity=BundleEvidence(bundle).identity)
    answer = describe(service, view=FEATURE_VIEW_FULL)
    strongest, silent = answer.description.evidence
    assert (strongest.activation, strongest.quantile) == (5, pytest.approx(3 / 20))
    assert (silent.activation, silent.quantile) == (0, 0)


def describe(service: Any, feature: str = CAT, **rest: Any) -> pb.DescribeFeatureResponse:
    return service.DescribeFeature(pb.DescribeFeatureRequest(feature=feature, **rest))


def update(service: Any, mask: list[str] | None = None, request_id: str = "", **fields: Any) -> Any:
    description = description_pb2.Description(name=f"{CAT}/description", **fields)
    request = pb.UpdateDescriptionRequest(description=description, request_id=request_id)
    if mask is not None:
        request.update_mask.CopyFrom(FieldMask(paths=mask))
    return service.UpdateDescription(request).description


def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal(caught.value)


INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_the_bundles_description_is_the_stored_one(service: Any) -> None:
    answer = describe(service)
    assert answer.from_store
    assert (answer.description.text, answer.description.describer) == ("cat", "caption-pmi")
    assert answer.description.name == f"{CAT}/description"
    assert answer.description.origin == description_pb2.DESCRIPTION_ORIGIN_DESCRIBER
    assert answer.description.etag
    assert answer.description.create_time.seconds > 1.7e9
    assert not answer.description.evidence
    assert not answer.description.history


def test_a_named_describer_makes_a_new_one_and_the_old_goes_to_the_history(service: Any) -> None:
    made = describe(service, describer="numbered", view=FEATURE_VIEW_FULL)
    assert not made.from_store
    assert made.description.text == "label 1 of 0"
    assert made.description.describer_version == "7"
    assert [d.text for d in made.description.history] == ["cat"]
    assert [c.text for c in made.description.candidates] == [f"c{i}" for i in range(10)]
    again = describe(service, describer="numbered")
    assert (again.description.text, again.from_store) == ("label 1 of 0", True)
    assert describe(service).description.text == "label 1 of 0"  # whoever made it
    forced = describe(service, describer="numbered", force=True)
    assert (forced.description.text, forced.from_store) == ("label 2 of 0", False)


def test_evidence_is_sent_as_asked_and_only_of_this_bundle(
    service: Any, labels: LabelStore
) -> None:
    options = ExemplarOptions(max_count=3, omit_thumbnails=True)
    answer = describe(service, view=FEATURE_VIEW_FULL, exemplars=options)
    assert [e.caption for e in answer.description.evidence] == ["a cat"] * 3
    assert not answer.description.evidence[0].HasField("thumbnail")
    labels.add(DICTIONARY, [made(0, "of another build", evidence=(999_999,))], identity="f" * 64)
    answer = describe(service, view=FEATURE_VIEW_FULL)
    assert answer.description.text == "of another build"
    assert not answer.description.evidence


def test_a_feature_that_nobody_described_is_described_now(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    store = LabelStore("sqlite://")  # nothing taken over
    with serving.serving(serving.state(bundle, store)) as channel:
        service = description_grpc.DescriptionServiceStub(channel)
        answers = [describe(service) for _ in range(2)]
    assert [answer.from_store for answer in answers] == [False, True]
    assert answers[0].description == answers[1].description
    assert answers[0].description.text == "cat"


def test_scores_of_a_new_description_are_those_asked_for(service: Any) -> None:
    (score,) = describe(service, describer="numbered", metrics=[AUC]).description.scores
    assert (score.metric, score.count, score.negatives) == (
        AUC,
        20,
        description_pb2.SCORE_NEGATIVES_HARD,
    )
    assert (score.lower, score.upper, score.control) == pytest.approx((0.8, 1.0, 0.5))
    refusal_ = refused(lambda: describe(service, describer="numbered", metrics=[FUZZING]))
    assert refusal_ == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED", "metrics")


def test_an_unknown_describer_is_not_found(service: Any) -> None:
    found = refused(lambda: describe(service, describer="oracle"))
    assert found == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "describer")


def test_a_repeated_request_gets_the_first_answer(service: Any, numbered: Numbered) -> None:
    request_id = str(uuid.uuid4())
    asked = {"describer": "numbered", "force": True, "request_id": request_id}
    first = describe(service, **asked)
    assert describe(service, **asked) == first
    assert numbered.asked == 1
    other = refused(lambda: describe(service, DOG, **asked))
    assert other == (INVALID, "INVALID_INPUT", "request_id")


def test_a_person_edits_and_no_describer_replaces_it(service: Any) -> None:
    written = update(service, text="  a lynx ")
    assert (written.text, written.origin) == ("a lynx", description_pb2.DESCRIPTION_ORIGIN_PERSON)
    assert (written.describer, written.describer_version, list(written.scores)) == ("", "", [])
    assert written.judged_by == "person"
    answer = describe(service, describer="numbered", force=True, view=FEATURE_VIEW_FULL)
    assert answer.from_store
    assert answer.description.text == "a lynx"
    assert [d.text for d in answer.description.history] == ["cat"]
    withdrawn = update(service, ["text"])
    assert (withdrawn.abstained, withdrawn.judged_by) == (True, "")


def test_an_edit_of_an_old_version_is_aborted(service: Any) -> None:
    seen = describe(service).description.etag
    second = update(service, text="lynx", etag=seen)
    found = refused(lambda: update(service, text="tiger", etag=seen))
    assert found == (grpc.StatusCode.ABORTED, "CONFLICT", "etag")
    assert update(service, text="tiger", etag=second.etag).text == "tiger"


def test_a_repeated_edit_is_stored_once(service: Any, labels: LabelStore) -> None:
    request_id = str(uuid.uuid4())
    first = update(service, text="lynx", request_id=request_id)
    assert update(service, text="lynx", request_id=request_id) == first
    assert len(labels.history(Unit(DICTIONARY, 0))) == 1


@pytest.mark.parametrize(
    ("mask", "fields", "text", "reason"),
    [
        (None, {"text": "lynx"}, "lynx", ""),
        (["text"], {"text": "lynx", "abstained": True}, "lynx", ""),
        (["text"], {}, None, ""),
        (None, {"abstained": True, "abstention_reason": "mixed"}, None, "mixed"),
        (["abstained", "abstention_reason"], {"abstained": True, "abstention_reason": "mixed"},
         None, "mixed"),
    ],
)  # fmt: skip
def test_an_edit_changes_what_the_mask_names(
    service: Any, mask: list[str] | None, fields: dict[str, Any], text: str | None, reason: str
) -> None:
    now = update(service, mask, **fields)
    assert (now.text if now.HasField("text") else None, now.abstention_reason) == (text, reason)
    assert now.abstained == (text is None)


@pytest.mark.parametrize(
    ("mask", "fields", "field"),
    [
        (["author"], {"author": "me"}, "update_mask"),
        ([], {"text": "lynx"}, "update_mask"),
        (None, {"text": "lynx", "abstained": True}, "description.text"),
        (None, {"text": "   "}, "description.text"),
        (["abstained"], {"abstained": False}, "update_mask"),
        (["abstention_reason"], {"abstention_reason": "mixed"}, "update_mask"),
    ],
)
def test_an_edit_that_contradicts_itself_is_refused(
    service: Any, mask: list[str] | None, fields: dict[str, Any], field: str
) -> None:
    assert refused(lambda: update(service, mask, **fields)) == (INVALID, "INVALID_INPUT", field)
    assert describe(service).description.text == "cat"


def test_any_text_is_scored_against_others_and_nothing_is_stored(
    service: Any, scorer: Lengths, labels: LabelStore
) -> None:
    request = pb.ScoreDescriptionRequest(feature=CAT, text="feline", metrics=[FUZZING, AUC])
    scores = service.ScoreDescription(request).scores
    random, hard = description_pb2.SCORE_NEGATIVES_RANDOM, description_pb2.SCORE_NEGATIVES_HARD
    assert [(s.metric, s.negatives) for s in scores] == [(FUZZING, 0), (AUC, random), (AUC, hard)]
    assert [s.value for s in scores] == [6.0, 6.0, 6.0]
    (asked,) = scorer.asked
    assert (asked["unit"], asked["text"], asked["sample"], asked["seed"]) == (0, "feline", 50, 0)
    assert asked["control_texts"] == ["dog"]  # the text of the other described feature
    assert len(labels.history(Unit(DICTIONARY, 0))) == 0


def test_score_description_asks_for_what_the_request_says(service: Any, scorer: Lengths) -> None:
    service.ScoreDescription(
        pb.ScoreDescriptionRequest(
            feature=CAT,
            text="dog",
            negatives=[description_pb2.SCORE_NEGATIVES_HARD],
            sample_size=9,
            seed=3,
        )
    )
    assert scorer.asked == [
        {"unit": 0, "text": "dog", "negatives": ["hard"], "sample": 9, "seed": 3,
         "control_texts": []}
    ]  # fmt: skip


def test_scores_need_a_model_that_the_server_may_not_have(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    with serving.serving(serving.state(bundle, LabelStore("sqlite://"))) as channel:
        service = description_grpc.DescriptionServiceStub(channel)
        request = pb.ScoreDescriptionRequest(feature=CAT, text="cat")
        found = refused(lambda: service.ScoreDescription(request))
        info = catalog_grpc.CatalogServiceStub(channel).GetServerInfo(
            catalog_pb.GetServerInfoRequest()
        )
    assert found == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CONFIGURED", "metrics")
    notes = {capability.rpc: capability.note for capability in info.capabilities}
    assert "without a contrastive model" in notes["ScoreDescription"]
    assert "kept in memory" in notes["UpdateDescription"]


def test_the_catalogue_shows_what_holds(catalog: Any, service: Any) -> None:
    update(service, text="lynx")
    feature = catalog.GetFeature(
        catalog_pb.GetFeatureRequest(name=CAT, view=FEATURE_VIEW_FULL)
    ).feature
    assert feature.description.text == "lynx"
    assert [d.text for d in feature.description.history] == ["cat"]
    (dictionary,) = catalog.ListDictionaries(catalog_pb.ListDictionariesRequest()).dictionaries
    summary = dictionary.descriptions
    assert (summary.described, summary.by_people) == (2, 1)
    assert summary.described + summary.abstained == serving.WIDTH
    assert list(summary.describers) == ["caption-pmi"]


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ('text:"LYN"', [0]),
        ("origin = person", [0]),
        ("described = true", [0, 1]),
        ("describer = caption-pmi AND described = true", [1]),
        ("abstained = true AND count > 0", [2]),
        ("score.pmi > 0", [1]),
        ("score.detection_auc > 0.5", []),
    ],
)
def test_features_are_filtered_by_what_holds(
    catalog: Any, service: Any, filter: str, found: list[int]
) -> None:
    update(service, text="lynx")
    answer = catalog.ListFeatures(catalog_pb.ListFeaturesRequest(parent=DICTIONARY, filter=filter))
    assert [feature.index for feature in answer.features] == found


def test_confirmed_labels_are_counted_and_told_from_guesses(
    catalog: Any, service: Any, labels: LabelStore
) -> None:
    judged = {"details": {"judged_by": "captions"}}
    kept = [made(0, "cat"), made(1, "dog", **judged), made(2, "fox"), made(3, None, **judged)]
    rest = [made(index, None) for index in range(4, serving.WIDTH)]
    labels.add(DICTIONARY, [*kept, *rest], identity="")
    update(service, text="lynx")

    def found(filter: str) -> dict[int, str]:
        asked = catalog_pb.ListFeaturesRequest(parent=DICTIONARY, filter=filter)
        answer = catalog.ListFeatures(asked)
        return {feature.index: feature.description.judged_by for feature in answer.features}

    assert found("confirmed = true") == {0: "person", 1: "captions"}
    assert found("described = true AND confirmed = false") == {2: ""}
    assert found("abstained = true AND index < 4") == {3: ""}  # what has no text is not confirmed
    (dictionary,) = catalog.ListDictionaries(catalog_pb.ListDictionariesRequest()).dictionaries
    summary = dictionary.descriptions
    assert (summary.described, summary.confirmed, summary.by_people) == (3, 2, 1)


def test_edits_outlive_a_server_that_keeps_them_in_a_file(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_LAME_DUCK_SECONDS", 0)
    for expected in ("cat", "lynx"):
        store = LabelStore(tmp_path / "labels.sqlite")
        store.import_bundle(bundle)
        with serving.serving(serving.state(bundle, store)) as channel:
            service = description_grpc.DescriptionServiceStub(channel)
            assert describe(service).description.text == expected
            update(service, text="lynx")


async def test_replies_are_forgotten_after_a_while_and_errors_at_once() -> None:
    now, calls = [0.0], [0]

    async def answer() -> pb.DescribeFeatureResponse:
        calls[0] += 1
        if calls[0] == 1:
            raise InvalidInputError("not yet")
        return pb.DescribeFeatureResponse(from_store=True)

    replies = Replies(clock=lambda: now[0])
    request = pb.DescribeFeatureRequest(request_id="r")
    with pytest.raises(InvalidInputError):
        await replies.once(request, answer)
    await asyncio.sleep(0)
    await replies.once(request, answer)
    now[0] = 600
    await replies.once(request, answer)
    assert calls[0] == 2
    now[0] = 901
    await replies.once(request, answer)
    assert calls[0] == 3
