"""MILAN's objective against every text there is, on models small enough to list them all."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2LMHeadModel,
)
from transformers.modeling_outputs import BaseModelOutput

from tests.worlds.milan import (
    encoder_decoder,
    evidence_of,
    gpt2_config,
    processor,
    save,
    shake,
    word_tokenizer,
)
from tests.worlds.tiny import noise_image
from vision_sae.descriptions.captioning.captioner import EncoderDecoderCaptioner, ExpertsCaptioner
from vision_sae.descriptions.captioning.language_model import LanguageModel
from vision_sae.descriptions.describers.milan import MilanConfig, MilanDescriber
from vision_sae.descriptions.regions import blanked, region, thumbnail
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import split

WORDS = ("red", "blue", "thing")
LONGEST = 4
"""Tokens: up to three words and the end."""
CORNER = np.array([[True, False], [False, False]])
RIGHT = np.array([[False, True], [False, True]])
TEXTS = {
    " ".join(WORDS[i - 1] for i in ids): ids
    for length in range(1, LONGEST)
    for ids in product((1, 2, 3), repeat=length)
}
"""Every text and the numbers of its tokens."""


@pytest.fixture(scope="module")
def evidence() -> ArrayEvidence:
    """Three units over six pictures; one looks at corners, one at right halves, one at nothing."""
    pictures = [noise_image(16, 16, seed=i) for i in range(6)]
    units = [[(0, CORNER), (1, RIGHT), (2, RIGHT), (3, CORNER)], [(4, RIGHT), (5, RIGHT)], []]
    return evidence_of(pictures, units)


def log_softmax_sum(logits: Tensor, targets: Tensor) -> float:
    """Sum over positions of log p(target), in float64."""
    log_p = logits.detach().double().log_softmax(-1)
    return float(log_p[torch.arange(len(targets)), targets].sum())


Likelihood = Callable[[tuple[int, ...]], float]


def enumerated(likelihood: Likelihood) -> dict[str, float]:
    with torch.inference_mode():
        return {text: likelihood(ids) for text, ids in TEXTS.items()}


def best_first(values: dict[str, float]) -> list[str]:
    return sorted(values, key=lambda text: -values[text])


def test_the_beam_finds_every_text_at_its_exact_likelihood(evidence: ArrayEvidence) -> None:
    model = shake(encoder_decoder(4), seed=1)
    captioner = EncoderDecoderCaptioner(model, processor(16), word_tokenizer(WORDS))
    exemplars = split(evidence, 0).describe  # pictures 0 and 2: ranks 1 and 3
    found = captioner.hypotheses(evidence, exemplars, beam=50, max_tokens=LONGEST)

    # Tokens are CLS and four patches by rows: the corner is token 1, the right half tokens 2 and 4.
    with torch.inference_mode():
        states = [
            model.encoder(
                processor(16)(thumbnail(evidence, image), return_tensors="pt").pixel_values
            ).last_hidden_state[0]
            for image in (0, 2)
        ]
        memory = torch.cat([states[0][[1]], states[1][[2, 4]]])[None].half().float()

    def likelihood(ids: tuple[int, ...]) -> float:
        inputs = torch.tensor([[0, *ids]])
        logits = model.decoder(input_ids=inputs, encoder_hidden_states=memory).logits[0]
        return log_softmax_sum(logits, torch.tensor([*ids, 0]))

    by_hand = enumerated(likelihood)
    assert [h.text for h in found] == best_first(by_hand)
    assert dict(found) == pytest.approx(by_hand, abs=1e-4)
    spread = max(by_hand.values()) - min(by_hand.values())
    assert spread > 3, "texts that are all as likely would prove nothing"


def test_a_narrow_beam_keeps_the_likeliest_texts_that_it_met(evidence: ArrayEvidence) -> None:
    model = shake(encoder_decoder(4), seed=1)
    captioner = EncoderDecoderCaptioner(model, processor(16), word_tokenizer(WORDS))
    exemplars = split(evidence, 0).describe
    wide = dict(captioner.hypotheses(evidence, exemplars, beam=50, max_tokens=LONGEST))
    narrow = captioner.hypotheses(evidence, exemplars, beam=5, max_tokens=LONGEST)
    assert 1 <= len(narrow) <= 5
    assert dict(narrow) == pytest.approx({h.text: wide[h.text] for h in narrow}, abs=1e-4)


def tiny_blip() -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 5, "encoder_hidden_size": 16, "intermediate_size": 16}
    text |= {"bos_token_id": 4, "sep_token_id": 0, "pad_token_id": 0, "eos_token_id": 0}
    vision = sizes | {"image_size": 16, "patch_size": 8, "intermediate_size": 16}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    )

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        states = model.vision_model(pixel_values=pixels)[0]
        return model.text_decoder(input_ids=ids, encoder_hidden_states=states).logits[0]

    return shake(model, seed=3), logits


def tiny_git() -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = sizes | {"image_size": 16, "patch_size": 8, "intermediate_size": 16}
    model = GitForCausalLM(
        GitConfig(
            **sizes,
            vision_config=vision,
            vocab_size=5,
            intermediate_size=16,
            bos_token_id=4,
            eos_token_id=0,
            pad_token_id=0,
        )
    )

    def logits(pixels: Tensor, ids: Tensor) -> Tensor:
        return model(pixel_values=pixels, input_ids=ids).logits[0, -ids.shape[1] :]

    return shake(model, seed=3), logits


@pytest.mark.parametrize("make", [tiny_blip, tiny_git])
def test_other_captioners_average_the_log_likelihoods_of_the_exemplars(
    evidence: ArrayEvidence, make: Callable[[], tuple[Any, Callable[[Tensor, Tensor], Tensor]]]
) -> None:
    model, logits = make()
    tokenizer = word_tokenizer((*WORDS, "<start>"))
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    captioner = ExpertsCaptioner(model, processor(16), tokenizer)
    exemplars = split(evidence, 0).describe
    # <start> may stand inside: 4 + 16 + 64 spellings, more than a beam of 50 holds.
    found = dict(captioner.hypotheses(evidence, exemplars, beam=120, max_tokens=LONGEST))

    pixels = []
    for firing in exemplars:
        picture = thumbnail(evidence, firing.image)
        alone = blanked(picture, region(evidence, firing, picture.size), (128, 128, 128))
        pixels.append(processor(16)(alone, return_tensors="pt").pixel_values)

    def likelihood(ids: tuple[int, ...]) -> float:
        inputs, targets = torch.tensor([[4, *ids]]), torch.tensor([*ids, 0])
        return float(np.mean([log_softmax_sum(logits(p, inputs), targets) for p in pixels]))

    by_hand: dict[str, float] = {}  # of several spellings of a text, the likeliest
    for ids in (ids for n in range(1, LONGEST) for ids in product((1, 2, 3, 4), repeat=n)):
        text = " ".join(WORDS[i - 1] for i in ids if i != 4)
        if text:
            by_hand[text] = max(likelihood(ids), by_hand.get(text, -math.inf))
    assert found == pytest.approx(by_hand, abs=1e-4)


def test_a_language_model_sums_over_all_tokens_and_the_end() -> None:
    model = shake(GPT2LMHeadModel(gpt2_config(4)), seed=2)
    texts = ["red", "thing blue red", "blue thing"]
    found = LanguageModel(model, word_tokenizer(WORDS)).log_probabilities(texts)

    def by_hand(ids: list[int]) -> float:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[0, *ids]])).logits[0]
        return log_softmax_sum(logits, torch.tensor([*ids, 0]))

    assert found == pytest.approx([by_hand([1]), by_hand([3, 2, 1]), by_hand([2, 3])], abs=1e-5)


def test_a_language_model_whose_texts_never_end_is_refused() -> None:
    tokenizer = word_tokenizer(WORDS)
    tokenizer.eos_token = None
    with pytest.raises(InvalidInputError, match="no end-of-sequence token") as raised:
        LanguageModel(GPT2LMHeadModel(gpt2_config(4)), tokenizer)
    assert raised.value.field == "describe.milan.language_model"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A captioner and a language model as local directories, their tokenizers different."""
    root = tmp_path_factory.mktemp("models")
    captioner = shake(encoder_decoder(4), seed=1)
    language_model = shake(GPT2LMHeadModel(gpt2_config(4)), seed=2)
    return {
        "captioner": save(root / "captioner", captioner, word_tokenizer(WORDS), side=16),
        "language_model": save(root / "language", language_model, word_tokenizer(WORDS[::-1])),
    }


def milan(directories: dict[str, str], **options: Any) -> MilanDescriber:
    return MilanDescriber(MilanConfig(**(directories | {"max_tokens": LONGEST} | options)))


@pytest.mark.parametrize("weight", [0.0, 0.2, 1.0])
def test_all_texts_of_the_beam_are_ranked_by_pmi(
    evidence: ArrayEvidence, directories: dict[str, str], weight: float
) -> None:
    (label,) = milan(directories, weight=weight).describe(evidence, [0])

    captioner = EncoderDecoderCaptioner(
        shake(encoder_decoder(4), seed=1), processor(16), word_tokenizer(WORDS)
    )
    exemplars = split(evidence, 0).describe
    likelihoods = dict(captioner.hypotheses(evidence, exemplars, beam=50, max_tokens=LONGEST))
    language_model = LanguageModel(
        shake(GPT2LMHeadModel(gpt2_config(4)), seed=2), word_tokenizer(WORDS[::-1])
    )
    priors = dict(zip(TEXTS, language_model.log_probabilities(list(TEXTS)), strict=True))
    pmi = {text: likelihoods[text] - weight * priors[text] for text in TEXTS}

    expected = best_first(pmi)
    assert label.text == expected[0]
    assert [text for text, _ in label.candidates] == expected[:10]
    assert dict(label.candidates) == pytest.approx({t: pmi[t] for t in expected[:10]}, abs=1e-4)
    (score,) = label.scores
    assert (score.metric, score.n) == ("pmi", len(exemplars))
    assert score.value == pytest.approx(pmi[expected[0]], abs=1e-4)
    assert label.details["log_p_given_exemplars"] == pytest.approx(likelihoods[expected[0]])
    assert label.details["log_p"] == pytest.approx(priors[expected[0]], abs=1e-5)
    assert label.evidence == tuple(firing.patch for firing in exemplars)


def test_a_label_does_not_depend_on_what_is_described_with_it(
    evidence: ArrayEvidence, directories: dict[str, str]
) -> None:
    together = list(milan(directories).describe(evidence, [0, 1, 0]))
    alone = [next(milan(directories).describe(evidence, [unit])) for unit in (0, 1, 0)]
    assert together == alone
    assert together[0].candidates != together[1].candidates


def test_only_as_many_exemplars_as_configured_are_looked_at(
    evidence: ArrayEvidence, directories: dict[str, str]
) -> None:
    (label,) = milan(directories, exemplars=1).describe(evidence, [0])
    assert label.evidence == (split(evidence, 0).describe[0].patch,)


def test_a_silent_unit_has_no_label(evidence: ArrayEvidence, directories: dict[str, str]) -> None:
    (label,) = milan(directories).describe(evidence, [2])
    assert (label.text, label.abstained) == (None, "it fires in no picture to describe it by")


@pytest.mark.parametrize("part", ["captioner", "language_model"])
@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
def test_a_bad_path_is_named(
    evidence: ArrayEvidence, directories: dict[str, str], tmp_path: Path, part: str, there: bool
) -> None:
    path = tmp_path / "model"
    if there:
        path.mkdir()
    describer = milan(directories, **{part: str(path)})
    with pytest.raises(NotFoundError, match=str(path)) as raised:
        next(describer.describe(evidence, [0]))
    assert raised.value.field == f"describe.milan.{part}"


def test_an_encoder_whose_tokens_form_no_square_is_refused(evidence: ArrayEvidence) -> None:
    model = encoder_decoder(4, side=16)
    model.encoder.forward = lambda pixels: BaseModelOutput(torch.ones(1, 34, 16))
    captioner = EncoderDecoderCaptioner(model, processor(16), word_tokenizer(WORDS))
    with pytest.raises(InvalidInputError, match="34 states of its encoder do not lie on a square"):
        captioner.hypotheses(evidence, split(evidence, 0).describe, beam=2, max_tokens=3)
