"""What an encoder does not read of a text, and that no log tells its words."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from vision_sae.models.context import unread_by, unread_by_open_clip
from vision_sae.models.embedded.wheels import MINILM
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.sdxl import SdxlModel

SIMPLE = {  # in a context of six tokens, two of which are at the ends
    "": "",
    "a red cat": "",
    "a red cat sat": "",
    "a red cat sat down": "down",
    "A  Red\n cat sat   DOWN there. ": "DOWN there.",
    "&amp; a red cat sat &amp; sat": "sat &amp; sat",
    "one two three unbelievableness": "ableness",
    "five six 10 11": "11",  # each digit is a token
}


@pytest.mark.parametrize("text", SIMPLE)
def test_what_open_clips_tokenizer_cuts_is_the_end_of_the_text(text: str) -> None:
    assert unread_by_open_clip(SimpleTokenizer(context_length=6), text) == SIMPLE[text]


@pytest.mark.parametrize(
    ("text", "unread"),
    [
        ("a large red star", ""),
        ("the left of a large red star at the left", "star at the left"),
        ("A  LARGE red\tstar at the LEFT of  it", "LEFT of  it"),
    ],
)
@pytest.mark.parametrize("mode", ["", "clips"])
def test_what_a_tokenizer_of_transformers_cuts(text: str, unread: str, mode: str) -> None:
    tokenizer = HFTokenizer(str(MINILM.path()), context_length=8 + bool(mode))
    tokenizer.tokenizer_mode = mode
    assert unread_by_open_clip(tokenizer, text) == unread


def test_without_the_unread_end_the_tokens_are_the_same() -> None:
    tokenizer, text = SimpleTokenizer(), "The HÄUSER are   😀 of 1990, aren't they? " * 9
    unread = unread_by_open_clip(tokenizer, text)
    assert text.strip().endswith(unread)
    assert torch.equal(tokenizer([text]), tokenizer([text.strip().removesuffix(unread)]))


def test_of_two_text_encoders_the_one_that_reads_less_counts(
    tiny_pipeline: Any, tiny_generator: SdxlModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_pipeline.tokenizer, "model_max_length", 5)
    monkeypatch.setattr(tiny_pipeline.tokenizer_2, "model_max_length", 4)
    assert unread_by(tiny_pipeline.tokenizer, "a Red star left", 3) == "left"
    assert tiny_generator.unread_text("a Red star left") == "star left"
    assert tiny_generator.unread_text("a Red") == ""


def test_a_prompt_that_is_cut_is_in_no_log(
    tiny_generator: SdxlModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("diffusers", "transformers"):  # they show what they log themselves
        monkeypatch.setattr(logging.getLogger(library), "propagate", True)
    prompt = "a red star at the left " * 9
    assert tiny_generator.unread_text(prompt) != ""
    tiny_generator.start(GenerationSettings(prompt, negative_prompt=prompt, guidance_scale=3.0))
    assert caplog.text == ""
