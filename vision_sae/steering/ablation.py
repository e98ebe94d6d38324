"""Switching units off inside a model, and leaving everything else as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.models.hooks import Edit, at_patches
from vision_sae.models.protocol import Model
from vision_sae.transfers import Placed


def without_neurons(neurons: Sequence[int]) -> Edit:
    """An edit that sets these neurons to zero in every token."""
    chosen = Placed(torch.tensor(neurons, dtype=torch.int64))

    def edit(vectors: Tensor) -> Tensor:
        return vectors.index_fill(-1, chosen.at(vectors.device), 0)

    return edit


def without_features(dictionary: Dictionary, features: Sequence[int], special: int) -> Edit:
    """An edit that takes these features out of every patch.

    ``x' = x + decode(codes without them) - decode(codes)``: the reconstruction error stays, and a
    patch in which none of the features fires does not change. ``special`` is the number of
    leading tokens that are no patches; these tokens stay as they are.
    """
    mask = torch.zeros(dictionary.width, dtype=torch.bool)
    mask[list(features)] = True
    off = Placed(mask)

    def change(vectors: Tensor) -> Tensor:
        # The hook runs inside the model's autocast; a dictionary works in its own precision.
        with torch.autocast(vectors.device.type, enabled=False):
            beside = resident(dictionary, vectors.device)
            codes = beside.encode(vectors.float())
            silenced = off.at(vectors.device)[codes.indices]
            kept = Codes(codes.indices, codes.values.masked_fill(silenced, 0))
            touched = (kept.values != codes.values).any(1)
            if vectors.device.type != "cpu":  # choosing rows by a mask would wait for the GPU
                moved = vectors + beside.decode(kept) - beside.decode(codes)
                return torch.where(touched[:, None], moved, vectors)
            before, after = (Codes(*(part[touched] for part in c)) for c in (codes, kept))
            changed = vectors.clone()
            changed[touched] += beside.decode(after) - beside.decode(before)
            return changed

    return at_patches(special, change)


@contextmanager
def edited(model: Model, edits: Mapping[str, Edit]) -> Iterator[None]:
    """Apply {site: edit} during the forward passes of the body."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.enter_context(model.replace(site, edit))
        yield
