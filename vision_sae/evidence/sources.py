"""The split of sources into halves for describing and scoring.

Crops of one photograph are one piece of evidence, whatever they show.
`vision_sae.evidence.protocol.split` splits the pictures that fire a unit. `Sources` splits all
pictures, once for all units: describers may choose labels by the pictures of the describing half in
which the unit is silent, and scores use the silent pictures of the other half.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from jaxtyping import Bool, Int64
from numpy.typing import NDArray

from vision_sae.activations.store import sources_of
from vision_sae.evidence.protocol import Evidence


class Sources:
    """The sources of the N pictures of a data set."""

    def __init__(self, evidence: Evidence) -> None:
        self.of_picture = sources_of(evidence.images)
        """Number of each picture's source (N)."""
        self.for_describing = self.of_picture % 2 == 0
        """Whether describers may use each picture (N) in which a unit is silent."""
        self.for_scoring = ~self.for_describing
        """Whether scores use each picture (N) in which a unit is silent."""

    def first_of_each(self, pictures: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " sources"]:
        """The first picture of each source, in the order of ``pictures``."""
        _, first = np.unique(self.of_picture[pictures], return_index=True)
        return pictures[np.sort(first)]

    def none_of(self, pictures: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " N"]:
        """Whether each picture shares no source with any of ``pictures``."""
        taken = np.zeros(self.of_picture.max(initial=-1) + 1, dtype=np.bool_)
        taken[self.of_picture[pictures]] = True
        return cast(NDArray[np.bool_], ~taken[self.of_picture])
