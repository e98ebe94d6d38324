"""Evidence of a bundle's features, from its postings."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from vision_sae.bundles.codes import SparseRows
from vision_sae.bundles.layout import DESCRIPTIONS, MATCHES
from vision_sae.bundles.read import Bundle
from vision_sae.evidence.postings import Postings
from vision_sae.evidence.protocol import silent
from vision_sae.files import sha256_json
from vision_sae.models.grid import Geometry
from vision_sae.resources import dictionary_resource

_QUERIES = 8
"""Number of a feature's strongest patches for which neighbours are searched."""
_NEIGHBOURS = 256
"""Number of neighbours of each of these patches."""


class BundleEvidence(Postings):
    """Evidence of the features of a bundle; see `vision_sae.evidence.protocol.Evidence`."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.mask_quantile: float = bundle.manifest["build"]["mask_quantile"]
        self.name = dictionary_resource(bundle.name)
        measured = {
            name: file
            for name, file in bundle.manifest["files"].items()
            if name != DESCRIPTIONS and not name.startswith(MATCHES)
        }
        self.identity = sha256_json([measured, bundle.manifest["build"]])
        self.data_sha256: str = bundle.manifest["data_sha256"]
        self.site = bundle.site
        self.images = bundle.images
        self.grid = bundle.grid

    @property
    def postings(self) -> SparseRows:
        """feature -> (patches, activations), strongest first."""
        return self.bundle.postings

    def thumbnail(self, image: int) -> bytes:
        """JPEG thumbnail of a picture."""
        return self.bundle.thumbnails[image]

    def geometry(self, image: int) -> Geometry:
        """The resizing and cropping of a picture for the model."""
        return self.bundle.geometry(image)

    def look_alikes(self, unit: int, count: int) -> Int64[np.ndarray, " n"]:
        """Silent pictures whose patches are nearest, in the patch index, to the feature's strongest
        patches."""
        index = self.bundle.patch_index
        strongest = [firing.patch for firing in self.firings(unit)[:_QUERIES]]
        if not strongest:
            return np.zeros(0, dtype=np.int64)
        queries = index.vectors(np.array(strongest))
        depth = min(_NEIGHBOURS, len(index))
        cosines, rows = index.search(queries, depth, self.bundle.searchable)
        is_hit = rows >= 0
        images, nearness = rows[is_hit] // self.grid.patches, cosines[is_hit]
        images = images[np.argsort(-nearness, kind="stable")]
        images = images[silent(self, unit)[images]]
        _, first = np.unique(images, return_index=True)
        return np.asarray(images[np.sort(first)][:count], dtype=np.int64)
