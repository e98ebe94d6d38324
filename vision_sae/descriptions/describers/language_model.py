"""p(d): how likely a text is whatever it describes, by a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vision_sae.descriptions.describers.text_models import load_pretrained, load_weights
from vision_sae.errors import InvalidInputError

_FIELD = "describe.milan.language_model"


class LanguageModel:
    """A causal language model of transformers and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Raises `InvalidInputError` when texts have no begin or no end."""
        self._model, self._tokenizer = model, tokenizer
        self._end = tokenizer.eos_token_id
        self._begin = self._end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if self._end is None:
            raise InvalidInputError(
                f"{_FIELD}: its tokenizer has no end-of-sequence token, so no text has a "
                "probability of its own",
                field=_FIELD,
            )

    @torch.inference_mode()
    def log_probabilities(self, texts: Sequence[str]) -> list[float]:
        """log p(d) of each text in nats: the sum over its tokens and the one that ends it.

        The text is scored as its tokenizer spells it, behind the token that begins a text (or,
        where there is none, the one that ends the text before).
        """
        rows = [
            torch.tensor([self._begin, *ids, self._end])
            for ids in self._tokenizer(list(texts), add_special_tokens=False).input_ids
        ]
        # Behind a text's end anything may stand: a causal model does not look there.
        filled = pad_sequence(rows, batch_first=True, padding_value=self._end)
        logits: Tensor = self._model(input_ids=filled[:, :-1]).logits.float()
        surprise = nn.functional.cross_entropy(
            logits.transpose(1, 2), filled[:, 1:], reduction="none"
        ).double()
        return [-float(s[: len(r) - 1].sum()) for s, r in zip(surprise, rows, strict=True)]


def load_language_model(name: str) -> LanguageModel:
    """Load by directory, hub name or ``demo:captions-lm``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from vision_sae.demo import captioner as demo

    path = str(demo.PACKAGED.get(name, name))
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, path, field=_FIELD)
    return LanguageModel(load_weights(AutoModelForCausalLM, path, field=_FIELD), tokenizer)
