"""Label the demo's released dictionaries on all their training pictures.

    python -m tools.demo.label_dictionaries --store DATA/vit --dictionary DATA/dictionary --out DIR

The script needs no bundle: the codes of all pictures are enough. ``DIR/descriptions.jsonl`` gets a
description of every feature. ``DIR/figures.json`` gets the measured truth of the descriptions on
the auditing side of the sources, which no step used to choose or judge labels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vision_sae.activations.store import ActivationStore
from vision_sae.bundles import codes as codes_module
from vision_sae.bundles.codes import CodesBuilder, SparseRows, by_feature
from vision_sae.descriptions.grounding import Grounding
from vision_sae.descriptions.predicates.facts import Facts
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.evaluation.label_truth import label_truth
from vision_sae.evidence.postings import Postings
from vision_sae.evidence.protocol import silent
from vision_sae.files import sha256_json, write_json
from vision_sae.models.grid import Geometry
from vision_sae.vectors import normalised

_BATCH = 4096
_MASK_QUANTILE = 0.5


class StoreEvidence(Postings):
    """Evidence of a dictionary's features over a store; codes are kept in ``directory``."""

    def __init__(self, store: ActivationStore, dictionary: Path, directory: Path) -> None:
        self._store, self._directory = store, directory
        self.dictionary, self.trained = load_dictionary(dictionary)
        self.mask_quantile = _MASK_QUANTILE
        self.name = f"dictionaries/{dictionary.name}"
        self.site: str = self.trained["site"]
        self.images, self.grid = store.images, store.grid
        self.data_sha256: str = store.manifest["data_sha256"]
        self.identity = sha256_json([self.data_sha256, self.trained["files"]])
        self._thumbnails = list(store.thumbnails())

    @cached_property
    def postings(self) -> SparseRows:
        """feature -> (patches, activations), strongest first."""
        if not (self._directory / "values.npy").is_file():
            builder = CodesBuilder()
            rows = tqdm(total=self._store.rows, desc="encode", unit="patch")
            with torch.inference_mode(), rows:
                for vectors in self._store.batches(self.site, _BATCH):
                    builder.add(self.dictionary.encode(vectors))
                    rows.update(len(vectors))
            rows_of_features = by_feature(builder.by_patch(), self.dictionary.width)
            codes_module.save(rows_of_features, self._directory, "patches")
        return codes_module.load(self._directory, "patches")

    def thumbnail(self, image: int) -> bytes:
        """JPEG thumbnail of a picture."""
        return self._thumbnails[image]

    def geometry(self, image: int) -> Geometry:
        """How a picture was resized and cropped for the model."""
        return self._store.geometry(image)

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        embeddings = self._store.embeddings
        return normalised(embeddings, embeddings.mean(0))

    def look_alikes(self, unit: int, count: int) -> NDArray[np.int64]:
        """Silent pictures with the embeddings nearest to those of the strongest pictures."""
        firing = [firing.image for firing in self.firings(unit)[:8]]
        if not firing:
            return np.zeros(0, dtype=np.int64)
        nearness = self._directions @ self._directions[firing].mean(0)
        nearness[~silent(self, unit)] = -np.inf
        order = np.argsort(-nearness, kind="stable")[:count]
        return np.asarray(order[np.isfinite(nearness[order])], dtype=np.int64)


def main() -> None:
    """Read the command line and label."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--dictionary", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    evidence = StoreEvidence(ActivationStore(arguments.store), arguments.dictionary, out / "codes")
    grounding = Grounding(Facts(evidence, out.parent / "looks", progress=True))
    units = range(evidence.width)
    descriptions = list(tqdm(grounding.label(evidence, units), total=len(units), unit="feature"))
    with (out / "descriptions.jsonl").open("w") as file:
        for description in descriptions:
            file.write(json.dumps(asdict(description), sort_keys=True) + "\n")
    write_json(out / "figures.json", label_truth(evidence, grounding.facts, descriptions))


if __name__ == "__main__":
    main()
