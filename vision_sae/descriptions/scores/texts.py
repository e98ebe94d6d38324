"""Embeddings of texts, each made once.

Contrastive models put all texts into a narrow cone, and some pictures near all of it: a picture of
a thing resembles any name of a thing. Subtracting the mean of many texts takes away what a picture
has with every text, and leaves what it has with this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vision_sae.models.protocol import ContrastiveModel
from vision_sae.vectors import normalised

_KEPT = 32768
"""Embeddings kept for later; beyond, the oldest are forgotten."""


class TextEmbeddings:
    """The texts of one model, as directions from ``centre`` (E) where there is one."""

    def __init__(
        self,
        model: ContrastiveModel,
        centre: NDArray[np.float32] | None = None,
        *,
        words: Sequence[str] = (),
        vectors: NDArray[np.float32] | None = None,
    ) -> None:
        """``vectors`` (W, E) are the model's embeddings of ``words``, where they are there already:
        most labels are words."""
        self._model, self._centre = model, centre
        self._row = {word: row for row, word in enumerate(words)}
        self._words = self._directions(vectors) if vectors is not None else None
        self._kept: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (T, E) of unit length, float32.

        The same bits whatever was asked for before or along with a text: each is embedded by
        itself, because the company in a batch moves the last bits, and with them near ties.
        """
        known = {text: self._kept[text] for text in texts if text in self._kept}
        if self._words is not None:
            known |= {text: self._words[self._row[text]] for text in texts if text in self._row}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        with torch.inference_mode():
            known |= {text: self._embed([text])[0] for text in new}
        self._kept |= {text: known[text] for text in new[-_KEPT:]}
        for oldest in list(self._kept)[: max(len(self._kept) - _KEPT, 0)]:
            self._kept.pop(oldest, None)  # another thread may have been faster
        rows = [known[text] for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self._model.embedding_dim), np.float32)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._directions(np.asarray(self._model.embed_texts(texts).float().cpu().numpy()))

    def _directions(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors if self._centre is None else normalised(vectors, self._centre)
