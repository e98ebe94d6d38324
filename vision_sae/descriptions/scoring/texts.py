"""Embeddings of texts, each computed once.

Contrastive models put all texts into a narrow cone, and some pictures near the whole cone: a
picture of a thing is similar to the name of any thing. The mean of many texts is subtracted, which
removes the similarity of a picture to every text and leaves its similarity to one text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from vision_sae.models.protocol import ContrastiveModel
from vision_sae.vectors import normalised

_KEPT = 32768
"""Size of the cache of embeddings; the oldest embeddings are removed first."""


class TextEmbeddings:
    """Embeds texts with one model, as directions from ``centre`` if there is one."""

    def __init__(
        self,
        model: ContrastiveModel,
        centre: Float32[np.ndarray, E] | None = None,
        *,
        words: Sequence[str] = (),
        vectors: Float32[np.ndarray, "W E"] | None = None,
    ) -> None:
        """``vectors`` are the model's embeddings of ``words``, which are not embedded again."""
        self._model, self._centre = model, centre
        self._row = {word: row for row, word in enumerate(words)}
        self._words = self._directions(vectors) if vectors is not None else None
        self._kept: dict[str, NDArray[np.float32]] = {}

    def __call__(self, texts: Sequence[str]) -> Float32[np.ndarray, "T E"]:
        """Embeddings of length 1.

        The bits of an embedding do not depend on earlier texts or on other texts of a call. Each
        text is embedded alone, because a batch changes the last bits and the order of near ties.
        """
        known = {text: self._kept[text] for text in texts if text in self._kept}
        if self._words is not None:
            known |= {text: self._words[self._row[text]] for text in texts if text in self._row}
        new = list(dict.fromkeys(text for text in texts if text not in known))
        with torch.inference_mode():
            known |= {text: self._embed([text])[0] for text in new}
        self._kept |= {text: known[text] for text in new[-_KEPT:]}
        for oldest in list(self._kept)[: max(len(self._kept) - _KEPT, 0)]:
            self._kept.pop(oldest, None)  # another thread may have removed it already
        rows = [known[text] for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self._model.embedding_dim), np.float32)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._directions(np.asarray(self._model.embed_texts(texts).float().cpu().numpy()))

    def _directions(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return vectors if self._centre is None else normalised(vectors, self._centre)
