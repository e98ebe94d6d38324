"""Switching units off inside a model, and leaving everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.models.hooks import Edit, at_patches
from vision_sae.models.protocol import Model


def without_neurons(neurons: Sequence[int]) -> Edit:
    """An edit that sets these neurons to zero in every token."""
    chosen = torch.tensor(neurons, dtype=torch.int64)

    def edit(vectors: Tensor) -> Tensor:
        return vectors.index_fill(-1, chosen.to(vectors.device), 0)

    return edit


def without_features(dictionary: Dictionary, features: Sequence[int], special: int) -> Edit:
    """An edit that takes these features out of every patch.

    ``x' = x + decode(codes without them) - decode(codes)``: what the dictionary does not explain
    stays, and a patch in which none of them fires does not change. ``special`` is the number of
    leading tokens that are no patches; they stay as they are.
    """
    off = torch.zeros(dictionary.width, dtype=torch.bool)
    off[list(features)] = True

    def change(vectors: Tensor) -> Tensor:
        # The hook runs inside the model's autocast; a dictionary works in its own precision.
        with torch.autocast(vectors.device.type, enabled=False):
            codes = dictionary.encode(vectors.float())
            kept = Codes(codes.indices, codes.values.masked_fill(off[codes.indices], 0))
            touched = (kept.values != codes.values).any(1)
            before, after = (Codes(*(part[touched] for part in c)) for c in (codes, kept))
            changed = vectors.clone()
            changed[touched] += dictionary.decode(after) - dictionary.decode(before)
            return changed

    return at_patches(special, change)


@contextmanager
def edited(model: Model, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Apply one edit a site during forwards in the body: {site: edit}."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.enter_context(model.replace(site, edit))
        yield
