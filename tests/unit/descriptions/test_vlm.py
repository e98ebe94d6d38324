"""The describer that asks a vision-language server, against a server of the test's own."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.worlds.milan import evidence_of
from vision_sae.descriptions.describers.vlm import VlmConfig, VlmDescriber
from vision_sae.descriptions.protocol import Description
from vision_sae.errors import InvalidInputError, RemoteServerAwayError, RemoteServerError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import split

CENTRE = np.zeros((4, 4), dtype=np.bool_)
CENTRE[1:3, 1:3] = True


@dataclass
class Asked:
    """A server on a free port: what it was sent, and what it answers, the last one for ever."""

    url: str = ""
    answers: list[tuple[int, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def says(self, text: Any) -> None:
        self.answers = [(200, {"choices": [{"message": {"role": "assistant", "content": text}}]})]


@pytest.fixture
def server() -> Iterator[Asked]:
    asked = Asked()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.paths.append(self.path)
            asked.headers.append({k.lower(): v for k, v in self.headers.items()})
            asked.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            status, answer = asked.answers[min(len(asked.requests), len(asked.answers)) - 1]
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            if status == 307:
                self.send_header("location", "/elsewhere")
            self.send_header("content-type", "application/json")
            self.send_header("retry-after-ms", "1")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    asked.url = f"http://127.0.0.1:{http.server_port}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield asked
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.fixture(scope="module")
def evidence() -> ArrayEvidence:
    """One unit that fires in the centre of four white pictures, and a silent one."""
    pictures = [Image.new("RGB", (32, 32), "white")] * 4
    return evidence_of(pictures, [[(i, CENTRE) for i in range(4)], []])


def ask(server: Asked, evidence: ArrayEvidence, unit: int = 0, **options: Any) -> Description:
    config = VlmConfig(**({"url": server.url, "model": "seer", "retries": 0} | options))
    (label,) = VlmDescriber(config).describe(evidence, [unit])
    return label


def test_one_request_shows_the_outlined_exemplars_and_asks_for_a_label(
    server: Asked, evidence: ArrayEvidence
) -> None:
    server.says(' "Striped red fabric." \n')
    label = ask(server, evidence)

    assert (label.text, label.abstained, label.describer) == ("Striped red fabric", "", "vlm")
    exemplars = split(evidence, 0).describe
    assert label.evidence == tuple(firing.patch for firing in exemplars)
    (request,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert (request["model"], request["temperature"]) == ("seer", 0)
    (message,) = request["messages"]
    prompt, *shown = message["content"]
    assert "answer: none" in prompt["text"]
    assert len(shown) == len(exemplars) == 2
    kind, _, data = shown[0]["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    # The box of 16 pixels, grown by half of that: the whole picture, 7 times as large. The outline
    # is red where the region begins, 8 * 7 pixels in; all else is white.
    assert crop.shape == (224, 224, 3)
    assert crop[112, 56].tolist() == crop[56, 112].tolist() == [255, 0, 0]
    assert crop[112, 112].tolist() == crop[112, 20].tolist() == [255, 255, 255]


def test_only_as_many_exemplars_as_configured_are_sent(
    server: Asked, evidence: ArrayEvidence
) -> None:
    server.says("wool")
    label = ask(server, evidence, exemplars=1)
    assert len(label.evidence) == 1
    assert len(server.requests[0]["messages"][0]["content"]) == 2  # the prompt and one crop


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("None.", "the model sees nothing in common"),
        ("  ", "the model's answer is empty"),
        (None, "the model's answer is empty"),
        ("stripes " * 20, "the model's answer is no label: 159 characters"),
        ("Stripes\nand dots", "the model's answer is no label: 16 characters"),
        ("wool\0", "the model's answer is no label: 5 characters"),
    ],
)
def test_what_is_no_label_is_an_abstention_with_the_reason(
    server: Asked, evidence: ArrayEvidence, answer: str | None, reason: str
) -> None:
    server.says(answer)
    label = ask(server, evidence)
    assert (label.text, label.abstained) == (None, reason)
    assert str(label.details["answer"]).isprintable()  # stores refuse control characters


def test_a_silent_unit_is_not_asked_about(server: Asked, evidence: ArrayEvidence) -> None:
    label = ask(server, evidence, unit=1)
    assert (label.text, label.abstained) == (None, "it fires in no picture to describe it by")
    assert server.requests == []


def test_a_busy_server_is_asked_again(server: Asked, evidence: ArrayEvidence) -> None:
    server.says("wool")
    server.answers = [(503, {}), (429, {}), *server.answers]
    assert ask(server, evidence, retries=2).text == "wool"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((500, {}), "answered with HTTP status 500"),
        ((401, {"error": {"message": "who are you?"}}), "answered with HTTP status 401"),
        ((307, {}), "answered with HTTP status 307"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, {"choices": [{"message": {"content": 7}}]}), "no chat completion"),
        ((200, b"<html>"), "no chat completion"),
    ],
)
def test_a_server_that_fails_gives_an_error_and_no_label(
    server: Asked, evidence: ArrayEvidence, answer: tuple[int, Any], said: str
) -> None:
    server.answers = [answer]
    with pytest.raises(RemoteServerError, match=said):
        ask(server, evidence)
    assert server.paths == ["/v1/chat/completions"]  # a redirection is not followed


@pytest.mark.parametrize(
    ("status", "away"), [(400, False), (422, False), (401, True), (404, True), (503, True)]
)
def test_an_answer_that_any_unit_would_get_says_that_the_server_is_away(
    server: Asked, evidence: ArrayEvidence, status: int, away: bool
) -> None:
    server.answers = [(status, {})]
    with pytest.raises(RemoteServerError) as raised:
        ask(server, evidence, retries=0)
    assert isinstance(raised.value, RemoteServerAwayError) == away


def test_a_server_that_is_not_there_gives_an_error(evidence: ArrayEvidence) -> None:
    with pytest.raises(RemoteServerAwayError, match="could not be reached"):
        ask(Asked(url="http://127.0.0.1:9/v1"), evidence)


def test_a_silent_server_is_given_up_in_time(evidence: ArrayEvidence) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as mute:  # accepts, and never answers
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/v1"
        with pytest.raises(RemoteServerError, match="could not be reached"):
            ask(Asked(url=url), evidence, timeout_seconds=0.2)


def test_the_key_comes_from_the_environment_and_is_never_logged(
    server: Asked,
    evidence: ArrayEvidence,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("VISION_SAE_VLM_API_KEY", "sesame-7")
    caplog.set_level(logging.DEBUG)
    server.says("wool")
    label = ask(server, evidence)
    assert server.headers[0]["authorization"] == "Bearer sesame-7"
    assert "sesame-7" not in caplog.text
    assert "sesame-7" not in repr(label)


def test_nothing_meant_for_another_server_is_sent(
    server: Asked, evidence: ArrayEvidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISION_SAE_VLM_API_KEY", raising=False)
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "elsewhere-8")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would not answer
    server.says("wool")
    assert ask(server, evidence).text == "wool"
    assert "authorization" not in server.headers[0]
    assert "elsewhere-8" not in repr(server.headers)


@pytest.mark.parametrize("missing", ["url", "model"])
def test_it_is_off_by_default(missing: str) -> None:
    given = {"url": "https://example.org/v1", "model": "seer"}
    with pytest.raises(InvalidInputError, match=f"describe.vlm.{missing} is not set") as raised:
        VlmDescriber(VlmConfig(**(given | {missing: None})))
    assert raised.value.field == f"describe.vlm.{missing}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.org/v1", "example.org is another machine; use https"),
        ("http://localhost.example.org/v1", "another machine"),
        ("http://10.0.0.1:8000/v1", "another machine"),
        ("ftp://localhost/v1", "must be an http or https URL"),
        ("localhost:8000/v1", "must be an http or https URL"),
        ("http://[::1/v1", "must be an http or https URL"),
        ("https://user:secret@example.org/v1", "without a user name"),
    ],
)
def test_pictures_do_not_leave_the_machine_in_clear_text(url: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as raised:
        VlmDescriber(VlmConfig(url=url, model="seer"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:1/v1", "http://127.8.0.1/v1", "http://[::1]:8/v1", "https://a.org"]
)
def test_this_machine_and_https_are_allowed(url: str) -> None:
    VlmDescriber(VlmConfig(url=url, model="seer"))
