"""The k largest positive pre-activations of each row on a CPU; see `kernels_shortlist`."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.dictionaries import kernels_cpu
from vision_sae.dictionaries import kernels_shortlist as loops

BLOCK_ROWS = 384
"""Rows that a thread works on at a time: their integers and lists stay in its core's cache. The
rows of every tile divide this number."""
_FURTHER_PLACES = 64
"""Places of a list beyond 2 k. In a longer list, more features wait before a bound drops them."""
_WRONG = 0.005
"""The share of rows for which a guess may be wrong: they are listed a second time."""
_LOWER = 0.8
"""How much of a guess is left where it was wrong for too many rows."""
_PANELS = 8
"""Panels that a thread rounds at a time."""


_WORTHWHILE = 1024
"""Features from which a shortlist takes less time than a product and torch's top-k. The number of
rows decides nothing: a row's code is the same in every batch."""


def is_available() -> bool:
    """Whether this CPU has the instructions."""
    return loops.tile() is not None


class Shortlist:
    """The encoder of a dictionary in integers, beside its weights."""

    def __init__(self, w_enc: Float32[Tensor, "F D"], b_enc: Float32[Tensor, " F"]) -> None:
        """Take weights in host memory; the shortlist needs `is_available`."""
        tile = loops.tile()
        if tile is None:
            raise RuntimeError("this CPU lacks AVX2; ask is_available first")
        self.grain = tile.rows
        """Rows that are computed together; shares of rows begin at its multiples."""
        self._tile, self._w_enc, self._b_enc = tile, w_enc.numpy(), b_enc.numpy()
        width, dim = w_enc.shape
        panels, columns = -(-width // tile.columns), tile.columns
        scale, bias, slack = torch.empty(3, panels * columns).numpy()
        self._rounded = loops.Rounded(
            torch.empty(panels, loops.pairs_of(dim), columns, 2, dtype=torch.int16).numpy(),
            scale,
            bias,
            slack,
            torch.empty(panels * columns, 2).numpy(),
        )
        self._rounds = False
        self._guesses: dict[int, float] = {}
        """{k: a guess of the k-th largest pre-activation as a share of a row's norm}, from the rows
        before."""
        self.refresh()

    def refresh(self) -> None:
        """Round the weights again, after they changed."""

        def work(first: int, last: int) -> None:
            loops.round_panels(first, last, self._w_enc, self._b_enc, self._rounded)

        kernels_cpu.current_lanes().run(work, len(self._rounded.panels), grain=_PANELS)
        self._rounds = bool(np.isfinite(self._rounded.scale).all())

    def lists(
        self, vectors: NDArray[np.float32], k: int, *, guess: float = 0.0
    ) -> tuple[loops.Lists, NDArray[np.float32]]:
        """(lists, norms of the rows): the features of each row (N, D) that can be among its k
        largest, with bounds. With a ``guess``, rows may lack a list; see `loops.list_largest`."""
        n, places = len(vectors), min(2 * k + _FURTHER_PLACES, len(self._w_enc))
        lists = loops.Lists(
            np.empty((n, places), dtype=np.int32),
            np.empty((n, places), dtype=np.float32),
            np.zeros(n, dtype=np.float32),
            np.full(n, loops.NO_LIST, dtype=np.int32),
            np.zeros(n, dtype=np.float32),
        )
        numbers = np.zeros((n, 3), dtype=np.float32)
        if self._rounds and n:
            rows = -(-n // self._tile.rows) * self._tile.rows
            x = np.empty((rows, self._rounded.panels.shape[1], 2), dtype=np.int16)
            loops.round_rows(vectors, x, numbers)
            loops.list_largest(x, numbers, self._rounded, k, self._tile.rows, guess, lists)
        self._compute(vectors, k, lists, np.flatnonzero(lists.counts == loops.NO_LIST))
        return lists, numbers[:, 0] * numbers[:, 1]

    def _compute(
        self, vectors: NDArray[np.float32], k: int, lists: loops.Lists, rows: NDArray[np.int64]
    ) -> None:
        """List the k largest features of rows that bounds did not settle, by a float32 product."""
        for part in np.array_split(rows, -(-len(rows) // self._tile.rows)) if len(rows) else ():
            with np.errstate(over="ignore", invalid="ignore"):  # the result shows it
                values = vectors[part] @ self._w_enc.T + self._b_enc
            values[np.isnan(values)] = np.nan  # whose bits are positive
            features = np.zeros((len(part), k), dtype=np.int32)
            counts = np.zeros(len(part), dtype=np.int32)
            kernels_cpu.choose_largest(values.view(np.int32), k, features, counts)
            lists.features[part, :k], lists.counts[part] = features, counts
            lists.upper[part, :k] = np.take_along_axis(values, features, axis=1)
            lists.errors[part] = lists.least[part] = 0

    def largest(
        self, vectors: Float32[Tensor, "N D"], k: int
    ) -> tuple[Int64[Tensor, "N K"], Float32[Tensor, "N K"]]:
        """(features, pre-activations) of the k largest positive pre-activations of each row.

        Features ascend in a row; both are 0 in unused slots.
        """
        features = torch.zeros(len(vectors), k, dtype=torch.int32)
        values, counts = torch.empty(len(vectors), k), np.empty(len(vectors), dtype=np.int32)
        arrays = vectors.contiguous().numpy(), features.numpy(), values.numpy()

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
            self.choose(arrays[0][rows], k, arrays[1][rows], arrays[2][rows], counts[rows])

        kernels_cpu.current_lanes().run(work, len(vectors), grain=self.grain)
        return features.long(), values

    def choose(
        self,
        vectors: NDArray[np.float32],
        k: int,
        features: NDArray[np.int32],
        values: NDArray[np.float32],
        counts: NDArray[np.int32],
    ) -> None:
        """Write the k largest positive pre-activations of each row (N, D), in this thread.

        ``features`` (N, >= k) ascend, ``values`` (N, >= k) are 0 in unused slots, and row n uses
        ``counts[n]`` slots.
        """
        late = [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(vectors), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            guess = self._guesses.get(k, 0.0)
            lists, norms = self.lists(vectors[rows], k, guess=guess)
            late.append(start + np.flatnonzero(lists.counts == loops.WRONG_GUESS))
            self._guesses[k] = _next_guess(guess, lists, norms, k)
            self.choose_listed(vectors[rows], lists, k, features[rows], values[rows], counts[rows])
        again = np.concatenate(late)
        if len(again):
            lists, _ = self.lists(vectors[again], k)
            results = features[again], values[again], counts[again]
            self.choose_listed(vectors[again], lists, k, *results)
            features[again], values[again], counts[again] = results

    def least_bounds(self, lists: loops.Lists, out: NDArray[np.float32]) -> None:
        """Write the k largest positive lower bounds of each row into ``out`` (N, k) of zeros."""
        loops.least_bounds(lists, self._rounded, out)

    def choose_listed(
        self,
        vectors: NDArray[np.float32],
        lists: loops.Lists,
        k: int,
        features: NDArray[np.int32],
        values: NDArray[np.float32],
        counts: NDArray[np.int32],
    ) -> None:
        """`choose` among the features of ``lists``, which loses its order."""
        loops.choose_listed(vectors, self._w_enc, self._b_enc, lists, k, features, values, counts)


def _next_guess(guess: float, lists: loops.Lists, norms: NDArray[np.float32], k: int) -> float:
    """What to expect of the k-th largest pre-activation of further rows, as a share of the norm."""
    wrong = lists.counts == loops.WRONG_GUESS
    settled = (lists.counts >= k) & (norms > 0)
    shares = np.where(wrong, _LOWER * guess, lists.least / np.where(settled, norms, 1))
    shares = shares[settled | wrong]
    return float(np.quantile(shares, _WRONG)) if len(shares) else 0.0


_KEPT: WeakKeyDictionary[object, tuple[tuple[int, int], Shortlist]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def shortlist_of(owner: object, w_enc: Tensor, b_enc: Tensor) -> Shortlist | None:
    """The shortlist of the weights of ``owner``, kept as long as ``owner`` and made anew when the
    weights change. None where a dense product is faster, or is needed for gradients."""
    if len(w_enc) < _WORTHWHILE or not is_available() or w_enc.dtype != torch.float32:
        return None
    if any(not t.is_contiguous() or t.device.type != "cpu" for t in (w_enc, b_enc)):
        return None
    if torch.is_grad_enabled() and (w_enc.requires_grad or b_enc.requires_grad):
        return None
    state = _version(w_enc), _version(b_enc)
    with _LOCK:
        kept = _KEPT.get(owner)
        if kept is None or kept[0] != state:
            kept = state, Shortlist(w_enc.detach(), b_enc.detach())
            _KEPT[owner] = kept
        return kept[1]


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place. Tensors of inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version
