"""Add a trained dictionary to the dictionaries of the package.

    python -m tools.demo.release_dictionaries --dictionary DIR --notes notes.json \\
        --name demo:dinov2-s/blocks.8.update --labels BUNDLE/descriptions.jsonl --heldout STORE

makes ``dinov2-s/blocks.8.update`` in ``vision_sae/dictionaries/released/embedded`` with rounded
weights, labels and a card, and enters it in ``index.json`` beside. ``notes.json`` has the facts
that no manifest holds; its keys are the fields of
`vision_sae.dictionaries.released.cards.Notes`. Labels from a bundle must belong to this dictionary,
rounded or not. The rounded weights are measured on the store ``--heldout``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vision_sae.activations.store import ActivationStore, read_jsonl
from vision_sae.bundles.read import read_bundle
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.released import lookup
from vision_sae.dictionaries.released.cards import Notes
from vision_sae.dictionaries.released.lookup import INDEX, IndexEntry, add_to_index
from vision_sae.dictionaries.released.release import release
from vision_sae.errors import MismatchError
from vision_sae.files import MANIFEST


def release_demo_dictionary(
    dictionary: Path,
    name: str,
    notes: Notes,
    *,
    labels: Path | None = None,
    evaluation: Mapping[str, ActivationStore] | None = None,
    folder: Path | None = None,
) -> IndexEntry:
    """Release a dictionary into ``folder`` (the package's by default), and enter it in the
    index."""
    folder = folder or lookup.PACKAGED
    rows = _rows(labels, dictionary) if labels else []
    path = name.partition(":")[2]
    release(
        folder / path,
        dictionary,
        name,
        notes,
        labels=rows,
        evaluation=evaluation,
        overwrite=True,
    )
    entry = IndexEntry.of(folder / path, path)
    add_to_index(folder / INDEX, entry)
    return entry


def _rows(labels: Path, dictionary: Path) -> list[dict[str, Any]]:
    """The rows of a file of descriptions. Refuses the file of a bundle of another dictionary.

    The bundle may have been built with the rounded weights.
    """
    if (labels.parent / MANIFEST).is_file():
        described = read_bundle(labels.parent).dictionary.decoder
        released = load_dictionary(dictionary)[0].decoder
        if described.shape != released.shape or not torch.equal(described.half(), released.half()):
            raise MismatchError(
                f"{labels} describes another dictionary than {dictionary}: the decoders differ",
                field="labels",
            )
    return read_jsonl(labels)


def main() -> None:
    """Release one dictionary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dictionary", type=Path, required=True, help="trained dictionary")
    parser.add_argument("--name", required=True, help="demo:MODEL/SITE")
    parser.add_argument("--notes", type=Path, required=True, help="JSON file of the card's notes")
    parser.add_argument("--labels", type=Path, help="descriptions.jsonl of its bundle")
    parser.add_argument("--heldout", type=Path, help="store to measure the rounded weights on")
    given = parser.parse_args()
    entry = release_demo_dictionary(
        given.dictionary,
        given.name,
        Notes.read(given.notes),
        labels=given.labels,
        evaluation={"heldout": ActivationStore(given.heldout)} if given.heldout else {},
    )
    print(f"{entry.name}: {entry.bytes / 1e6:.2f} MB, {entry.labelled} of {entry.width} labelled")


if __name__ == "__main__":
    main()
