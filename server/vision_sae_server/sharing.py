"""How the passes of one model share the cores, found out so that no answer shows it.

How a matrix product rounds may depend on its size and on the threads that compute it. What is
served must not depend on who else asks; so passes are run side by side, and pictures put together,
only as far as this machine gives every picture just the bits that it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, SiteDictionary
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model
from vision_sae.threads import one_thread
from vision_sae_server.lanes import batch_sizes
from vision_sae_server.vectors import site_vectors, vectors_at


class Sharing(NamedTuple):
    """How a model is run under load."""

    side_by_side: int
    """Passes at the same time, each with one core."""
    at_once: int
    """The most pictures in one pass; batches are of `batch_sizes`."""


def sharing(model: Model, dictionaries: Sequence[SiteDictionary], most: int) -> Sharing:
    """What ``model`` and its ``dictionaries`` allow, with up to ``most`` pictures at once, measured
    by running them.

    A generator's pictures are noised, and stay by themselves. On a GPU one pass has it all.
    """
    if isinstance(model, NoisedPictures):
        return Sharing(1, 1)
    size, site = model.preprocessing, list(model.sites)[-1]
    random = torch.Generator().manual_seed(0)
    pictures = torch.randn(most, 3, size.height, size.width, generator=random)
    alone = torch.stack([site_vectors(model, site, picture) for picture in pictures])
    cores = torch.get_num_threads() if torch.device(model.device).type == "cpu" else 1
    if cores > 1:
        vectors = vectors_at(model, [d.site for d in dictionaries], pictures[:1])
        codes = [d.dictionary.encode(vectors[d.site][0]) for d in dictionaries]
        with one_thread():
            at_once = _same(model, site, pictures, alone)
            again = [d.dictionary.encode(vectors[d.site][0]) for d in dictionaries]
        if at_once > 0 and all(map(_equal, codes, again)):
            return Sharing(cores, at_once)
    return Sharing(1, max(1, _same(model, site, pictures, alone)))


def _equal(one: Codes, other: Codes) -> bool:
    return torch.equal(one.indices, other.indices) and torch.equal(one.values, other.values)


def _same(model: Model, site: str, pictures: Tensor, alone: Tensor) -> int:
    """The largest of `batch_sizes` in which pictures have the vectors ``alone``, bit for bit, as
    they have in all smaller ones; 0 when not even one has."""
    same = 0
    for size in batch_sizes(len(pictures)):
        if not torch.equal(site_vectors(model, site, pictures[:size]), alone[:size]):
            break
        same = size
    return same
