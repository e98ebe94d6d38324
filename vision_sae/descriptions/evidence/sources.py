"""Which pictures are independent evidence, and which silence is whose to look at.

Crops of one photograph are one piece of evidence, whatever they show. A unit's firings are dealt
out to describers and scorers by `vision_sae.descriptions.evidence.protocol.split`; pictures in
which it is silent are dealt out here, once for all units: a describer may choose among labels by
the silent half of its own, and is scored on the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vision_sae.activations.store import sources_of
from vision_sae.descriptions.evidence.protocol import Evidence


class Sources:
    """Which pictures of a data set come from one source."""

    def __init__(self, evidence: Evidence) -> None:
        self.of_picture = sources_of(evidence.images)
        """Number of each picture's source (N)."""
        self.for_describing = self.of_picture % 2 == 0
        """The pictures (N) whose silence describers may look at."""
        self.for_scoring = ~self.for_describing
        """The pictures (N) on whose silence descriptions are scored."""

    def first_of_each(self, pictures: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first picture of each source, in the order given."""
        _, first = np.unique(self.of_picture[pictures], return_index=True)
        return pictures[np.sort(first)]

    def none_of(self, pictures: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The pictures (N) that share no source with any of ``pictures``."""
        taken = np.zeros(self.of_picture.max(initial=-1) + 1, dtype=np.bool_)
        taken[self.of_picture[pictures]] = True
        return ~taken[self.of_picture]
