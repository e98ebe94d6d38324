"""Texts that the encoder cuts: every answer says which end was not read, and no log its words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner
from vision_sae_client.cli import app
from vision_sae_client.web import answer_html

from tests.worlds import generations, serving
from tests.worlds import wire as wire_world
from tests.worlds.serving import DICTIONARY
from tests.worlds.wire import of
from vision_sae.bundles.read import Bundle
from vision_sae.models.sdxl import SdxlModel
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import description_service_pb2 as description
from vision_sae.v1 import description_service_pb2_grpc as description_grpc
from vision_sae.v1 import generation_service_pb2 as generation
from vision_sae.v1 import generation_service_pb2_grpc as generation_grpc
from vision_sae.v1 import intervention_service_pb2 as intervention
from vision_sae.v1 import intervention_service_pb2_grpc as intervention_grpc
from vision_sae.v1 import search_service_pb2 as search
from vision_sae.v1 import search_service_pb2_grpc as search_grpc
from vision_sae.v1.attribution_service_pb2 import AttributeRequest, EncodeRequest
from vision_sae.v1.measure_pb2 import UnreadText
from vision_sae.v1.target_pb2 import ContrastTarget, Target, TextTarget

LONG = "twenty letters of it and a dog"  # of which these worlds read the first twenty
UNREAD = "and a dog"
FEATURE = f"{DICTIONARY}/features/0"
TEXT = Target(text=TextTarget(text=LONG))
SHORT = Target(text=TextTarget(text="a dog"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving.address(wire_world.picture_state(tmp_path_factory.mktemp("unread"))) as where:
        yield where


@pytest.fixture(scope="module")
def channel(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address) as opened:
        yield opened


def told(answer: Any) -> list[tuple[str, str]]:
    return [(text.field, text.unread) for text in answer.unread_texts]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (TEXT, [("target.text.text", UNREAD)]),
        (SHORT, []),
        (
            Target(contrast=ContrastTarget(positive=SHORT, negative=TEXT)),
            [("target.contrast.negative.text.text", UNREAD)],
        ),
    ],
)
def test_attribute_tells_of_its_target(
    channel: grpc.Channel, target: Target, expected: Any
) -> None:
    service = attribution_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]
    asked = AttributeRequest(image=wire_world.png(), dictionaries=[DICTIONARY], target=target)
    assert told(service.Attribute(asked)) == expected


def test_intervene_tells_once_for_all_pictures(channel: grpc.Channel) -> None:
    service = intervention_grpc.InterventionServiceStub(channel)  # type: ignore[no-untyped-call]
    plan = of(
        intervention.InterventionPlan,
        edits=[{"feature": FEATURE, "operation": "EDIT_OPERATION_ABLATE"}],
        targets=[{"id": "a", "target": SHORT}, {"id": "b", "target": TEXT}],
    )
    seen = intervention.InterventionImage(image=wire_world.png())
    answer = service.Intervene(intervention.InterveneRequest(plan=plan, images=[seen, seen]))
    assert told(answer.summary) == [("plan.targets[1].target.text.text", UNREAD)]


def test_scores_and_searches_by_meaning_tell(channel: grpc.Channel) -> None:
    scoring = description_grpc.DescriptionServiceStub(channel)  # type: ignore[no-untyped-call]
    asked = description.ScoreDescriptionRequest(feature=FEATURE, text=LONG)
    assert told(scoring.ScoreDescription(asked)) == [("text", UNREAD)]
    searching = search_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
    found = searching.SearchFeatures(search.SearchFeaturesRequest(text=LONG))
    assert told(found) == [("text", UNREAD)]
    words = search.SearchFeaturesRequest(text=LONG, match=search.FEATURE_MATCH_LABEL)
    assert told(searching.SearchFeatures(words)) == []  # all words are looked for


def test_a_generation_tells_of_prompts_and_texts(
    tiny_generator: SdxlModel,
    generated_bundles: list[Bundle],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(SdxlModel, "unread_text", lambda _, text: text[wire_world.READS :].strip())
    state = generations.state(tiny_generator, generated_bundles, wire_world.labelling())
    settings = of(
        generation.GenerationSettings,
        model=generations.MODEL,
        prompt=LONG,
        negative_prompt=LONG,
        guidance_scale=2,
        steps=1,
        transports=[{"dictionary": "dictionaries/up", "source_prompt": LONG}],
    )
    with serving.serving(state) as channel, caplog.at_level(logging.DEBUG):
        service = generation_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        asked = generation.GenerateRequest(settings=settings, effect_texts=["a dog", LONG])
        *_, last = service.Generate(asked)
        encoding = attribution_grpc.AttributionServiceStub(channel)  # type: ignore[no-untyped-call]
        encoded = encoding.Encode(
            of(
                EncodeRequest,
                image=wire_world.png(),
                dictionary="dictionaries/up",
                noising={"prompt": LONG},
            )
        )
    fields = ["prompt", "negative_prompt", "transports[0].source_prompt"]
    places = [*(f"settings.{field}" for field in fields), "effect_texts[1]"]
    assert told(last.result) == [(place, UNREAD) for place in places]
    assert told(encoded) == [("noising.prompt", UNREAD)]
    assert "letters of it" not in caplog.text


def test_the_command_line_and_the_page_say_it(address: str) -> None:
    options = ["--text", LONG, "--features", "--address", address]
    done = CliRunner().invoke(app, ["search", *options])
    assert done.exit_code == 0, done.output
    said = f"the model does not read the end of text: '{UNREAD}'; shorten it"
    assert done.stderr.strip() == said
    scored = CliRunner().invoke(app, ["describe", FEATURE, "--score", LONG, "--address", address])
    assert scored.stderr.strip() == said
    shown = answer_html.unread([UnreadText(field="settings.prompt", unread="<b>")])
    assert 'vs-warning">the model does not read the end of settings.prompt' in shown
    assert "&lt;b&gt;" in shown
