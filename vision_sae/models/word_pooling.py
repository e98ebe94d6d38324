"""A text tower's pooling that reads words beside what they mean together.

The last layer of a sentence encoder says what a sentence is about; that a "fire engine" shares a
word with "fire" is nearer to the surface, in its word embeddings. For names of things that no
training picture showed, both are needed. open_clip's configs know it by the name that registering
gives it, ``words_and_meaning_pooler``.
"""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float
from open_clip.hf_model import register_pooler
from torch import Tensor, nn
from torch.nn.functional import normalize

WIDTH = 384
"""The width of MiniLM. open_clip tells a pooling nothing about its tower."""


class WordsAndMeaningPooler(nn.Module):
    """The mean of the last layer, plus a linear map of the mean word embedding; both of length one.

    The tower's config must have ``output_hidden_states``. With weights of zero, as it begins, this
    is the tower's own embedding of a sentence.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(WIDTH, WIDTH, bias=False)
        nn.init.zeros_(self.words.weight)

    def forward(self, output: Any, attention_mask: Tensor) -> Tensor:
        """transformers' output for tokens (B, T), and which of them are no padding -> (B, D)."""
        return self.join(*read(output, attention_mask))

    def join(
        self, words: Float[Tensor, "B D"], meanings: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B D"]:
        """The two results of `read` as one embedding."""
        return meanings + cast(Tensor, self.words(words))


def read(output: Any, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, D) of the first layer's mean, the words, and of the last one's, the
    meaning."""
    first, *_, last = output.hidden_states
    shown = attention_mask[..., None]
    words, meanings = (normalize((layer.float() * shown).sum(1), dim=-1) for layer in (first, last))
    return words, meanings


register_pooler(WordsAndMeaningPooler)
