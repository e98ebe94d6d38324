"""p(d): the prior probability of a text, by a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vision_sae.descriptions.captioning.text_models import load_pretrained, load_weights
from vision_sae.errors import InvalidInputError

_FIELD = "describe.milan.language_model"


class LanguageModel:
    """A causal language model of transformers and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Raises `InvalidInputError` for a tokenizer without an end-of-sequence token."""
        self._model, self._tokenizer = model, tokenizer
        self._end = tokenizer.eos_token_id
        self._begin = self._end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if self._end is None:
            raise InvalidInputError(
                f"{_FIELD}: its tokenizer has no end-of-sequence token, so the probability of a "
                "whole text is undefined; name another model",
                field=_FIELD,
            )

    @torch.inference_mode()
    def log_probabilities(self, texts: Sequence[str]) -> list[float]:
        """log p(d) of each text in nats: the sum over its tokens and the end token.

        The begin token precedes the tokens of the text; without a begin token, the end token does.
        """
        rows = [
            torch.tensor([self._begin, *ids, self._end])
            for ids in self._tokenizer(list(texts), add_special_tokens=False).input_ids
        ]
        # The padding after a text can be any token: a causal model does not attend to it.
        filled = pad_sequence(rows, batch_first=True, padding_value=self._end)
        filled = filled.to(self._model.device)
        logits: Tensor = self._model(input_ids=filled[:, :-1]).logits.float()
        surprise = nn.functional.cross_entropy(
            logits.transpose(1, 2), filled[:, 1:], reduction="none"
        )
        surprise = surprise.cpu().double()
        return [-float(s[: len(r) - 1].sum()) for s, r in zip(surprise, rows, strict=True)]


def load_language_model(name: str) -> LanguageModel:
    """Load a language model by directory, hub name or ``demo:captions-lm``.

    Raises `NotFoundError` when there is no such model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vision_sae.models.embedded import captioner as demo

    path = str(demo.PACKAGED.get(name, name))
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, path, field=_FIELD)
    return LanguageModel(load_weights(AutoModelForCausalLM, path, field=_FIELD), tokenizer)
