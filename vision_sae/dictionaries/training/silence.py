"""Which features are dead, without a wait for the device at every step.

A feature is dead if it has been silent for more than ``dead_after`` rows. The tensors of AuxK have
a row for each dead feature, so the host must know how many there are, and on a GPU it would have to
wait for that number. But a step makes no feature more silent than by the rows of its batch: only
features that are silent for more than ``dead_after - R`` rows now can be dead within the next R
rows. So one look bounds the number for many steps, and a mask tells the dead ones.
"""

from __future__ import annotations

from jaxtyping import Bool, Int64
from torch import Tensor

from vision_sae.dictionaries.training.aux_k import DeadFeatures

_STEPS = 32
"""Steps for which one look at a GPU suffices."""
_STRIDE = 256
"""The bound is a multiple of this, so that few shapes occur."""


class DeadSearch:
    """Finds the dead features of each step of a training (on a GPU: not yet run there)."""

    def __init__(self, silent: Int64[Tensor, " F"], dead_after: int) -> None:
        """``silent`` are the rows since each feature last fired, all zero; the tensor is kept."""
        self._silent, self._dead_after = silent, dead_after
        self._most, self._rows = 0, dead_after

    def look_again(self) -> None:
        """Forget the bound, after a change of ``silent`` from outside."""
        self._rows = -1

    def find(self, dead: Bool[Tensor, " F"], rows: int) -> DeadFeatures | None:
        """The dead features, of which ``dead`` is the mask; None if there are none.

        ``rows`` is the size of the step's batch. On a GPU one call in 32 waits for the device.
        """
        if dead.device.type == "cpu":
            if not dead.any():  # `nonzero` starts threads, even without dead features
                return None
            return DeadFeatures(dead.nonzero()[:, 0], None)
        if self._rows < 0:
            self._look(rows)
        self._rows -= rows
        if not self._most:
            return None
        numbers = self._silent.topk(self._most, sorted=False).indices
        return DeadFeatures(numbers, dead[numbers])

    def _look(self, rows: int) -> None:
        """Bound the number of dead features for `_STEPS` steps of ``rows`` rows."""
        self._rows = _STEPS * rows
        count = int((self._silent > self._dead_after - self._rows).sum())
        self._most = min(-(-count // _STRIDE) * _STRIDE, len(self._silent))
