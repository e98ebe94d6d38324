"""The parts of the web page that need no browser."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from vision_sae_client import ClientError
from vision_sae_client.web import answer_html, explain, feature_html, launch, page
from vision_sae_client.web.privacy import keep_uploads_temporary

from vision_sae.tensors import to_proto
from vision_sae.v1.attribution_service_pb2 import ENCODE_ORDER_INFORMATIVE, EncodeResponse
from vision_sae.v1.image_pb2 import Box, PatchGrid

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def answer() -> EncodeResponse:
    """Two features: one with a hostile label and exemplar, one that was abstained from."""
    answer = EncodeResponse(
        dictionary="dictionaries/a",
        grid=PatchGrid(
            rows=2, cols=2, image_width=8, image_height=8, extent=Box(x0=0, y0=0, x1=8, y1=8)
        ),
        explained_variance=0.875,
        active_count=40,
    )
    for index in (7, 3):
        item = answer.features.add(
            max_activation=2.5, heatmap=to_proto(np.eye(2, dtype=np.float16))
        )
        item.feature.index = index
        item.feature.statistics.max = 5.0
    answer.features[0].feature.description.text = HOSTILE
    exemplar = answer.features[0].feature.exemplars.add(
        caption=HOSTILE, box=Box(x0=0, y0=0, x1=4, y1=4), image_width=8, image_height=8
    )
    exemplar.thumbnail.data = png()
    refused = answer.features[1].feature.description
    refused.abstained, refused.abstention_reason = True, "too few pictures"
    return answer


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_cards_show_activation_and_label_or_the_reason_for_none(answer: EncodeResponse) -> None:
    shown = answer_html.cards(answer)
    assert "The 2 of 40 that say most about this" in shown
    assert "feature 7 · activation 2.50" in shown
    assert "width:50.0%" in shown  # 2.5 of the 5.0 it was ever seen at
    assert "abstained: too few pictures" in shown


def test_a_guess_is_marked_for_eyes_and_screen_readers(answer: EncodeResponse) -> None:
    shown = answer_html.cards(answer)
    mark = '<span class="vs-guess" title="No independent judge has confirmed this label.">guess:'
    assert shown.count(mark) == 1  # and not what the describer abstained from
    picture = Image.new("RGB", (8, 8))
    detail = feature_html.detail(picture, answer.grid, answer.features[0])
    assert mark in detail
    assert "Its label is a guess" in detail
    answer.features[0].feature.description.judged_by = "captions"
    shown = answer_html.cards(answer)
    assert mark not in shown
    assert 'title="Confirmed by captions"' in shown
    detail = feature_html.detail(picture, answer.grid, answer.features[0])
    assert "Its label was confirmed by captions." in detail


def test_the_page_asks_for_what_says_most(answer: EncodeResponse, tmp_path: Path) -> None:
    class Asked:
        def encode(self, _data: bytes, **options: object) -> EncodeResponse:
            assert options["order"] == ENCODE_ORDER_INFORMATIVE
            return answer

    (tmp_path / "p.png").write_bytes(png())
    _, _, features, detail = explain.answer(Asked(), str(tmp_path / "p.png"))
    assert 'data-feature="7"' in features
    assert "Where feature 7 fires" in detail


def test_words_from_the_server_are_never_markup(answer: EncodeResponse) -> None:
    picture = Image.new("RGB", (8, 8))
    shown = [
        answer_html.summary(picture, answer),
        answer_html.cards(answer),
        feature_html.detail(picture, answer.grid, answer.features[0]),
        answer_html.failure(HOSTILE),
    ]
    assert "<script" not in "".join(shown)
    assert "&lt;script&gt;" in shown[1]
    assert "&lt;script&gt;" in shown[2]


def test_an_unusual_picture_and_a_negative_share_are_said(answer: EncodeResponse) -> None:
    picture = Image.new("RGB", (8, 8))
    assert "unlike those" not in answer_html.summary(picture, answer)
    answer.unusual_picture, answer.explained_variance = True, -0.25
    shown = answer_html.summary(picture, answer)
    assert "unlike those" in shown
    assert "<strong>-25%</strong>" in shown
    assert "width:0.0%" in shown


def test_a_refusal_is_shown_in_place_of_the_answer(tmp_path: Path) -> None:
    class Refusing:
        def encode(self, *args: object, **options: object) -> None:
            raise ClientError(None, "no server answers")

    (tmp_path / "p.png").write_bytes(png())
    state, summary, features, detail = explain.answer(Refusing(), str(tmp_path / "p.png"))
    assert "no server answers" in summary
    assert (state, features, detail) == (None, "", "")


def test_examples_are_spread_over_the_folder(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for number in range(30):
        (tmp_path / "more" / f"{number:02d}.png").touch()
    (tmp_path / "captions.jsonl").touch()
    # 30 pictures in steps of 2, the first 12 of them.
    names = [Path(path).name for path in explain.example_pictures(tmp_path)]
    assert names == [f"{number:02d}.png" for number in range(0, 24, 2)]
    assert explain.example_pictures(None) == []


@pytest.mark.slow
def test_the_page_forbids_foreign_sources_and_forgets_uploads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gradio

    monkeypatch.setattr(page, "_DELETE_CACHE", (1, 1))
    url = launch("127.0.0.1:1", port=0, prevent_thread_lock=True)
    try:
        answered = httpx.get(url)
        assert "default-src 'self'" in answered.headers["content-security-policy"]
        (stored,) = httpx.post(f"{url}gradio_api/upload", files={"files": png()}).json()
        assert Path(stored).is_relative_to(keep_uploads_temporary().name)
        waited = time.monotonic()
        while Path(stored).exists() and time.monotonic() - waited < 30:
            time.sleep(0.2)
        assert not Path(stored).exists()
    finally:
        gradio.close_all(verbose=False)


@pytest.mark.slow
def test_one_signal_ends_the_demo_once_its_page_is_up() -> None:
    waiting = "from vision_sae.demo.run import _stay; _stay('127.0.0.1:1', 0)"
    command = [sys.executable, "-c", waiting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            shown = iter(process.stdout.readline, "")
            _, url = next(line for line in shown if "The page is at" in line).split(" at ")
            assert httpx.get(url.split()[0]).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
