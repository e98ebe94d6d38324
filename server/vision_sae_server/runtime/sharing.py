"""Measures, at start-up, how many passes may run in parallel and how many pictures share a pass.

The rounding of a matrix product may depend on its size and on the number of threads. Answers must
not depend on the load, so parallel passes and batches are used only as far as every picture has, on
this machine, the same bits as alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.protocol import Codes, SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import Model
from vision_sae.models.vectors import site_vectors, vectors_at
from vision_sae.threads import one_thread
from vision_sae_server.runtime.devices import largest_batch, peak_bytes
from vision_sae_server.runtime.lanes import batch_sizes


class Sharing(NamedTuple):
    """How a model runs under load."""

    side_by_side: int
    """Number of parallel passes, each on one core."""
    at_once: int
    """The most pictures in one pass; batches have one of the `batch_sizes`."""


def sharing(model: Model, dictionaries: Sequence[SiteDictionary], most: int) -> Sharing:
    """Measure what ``model`` and its ``dictionaries`` allow, with batches of up to ``most``
    pictures.

    A generator gets one picture at a time. On a GPU there are no parallel passes, and a batch fits
    into the memory that is free.
    """
    if isinstance(model, NoisedPictures):
        return Sharing(1, 1)
    most = _fitting(model, most)
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


def check_alike(models: Sequence[Model]) -> None:
    """Raise `InvalidInputError` unless all replicas of a model give a picture the same bits.

    Otherwise answers would depend on the replica.
    """
    first, *others = models
    size, site = first.preprocessing, list(first.sites)[-1]
    picture = torch.randn(3, size.height, size.width, generator=torch.Generator().manual_seed(0))
    vectors = site_vectors(first, site, picture).cpu() if others else torch.empty(0)
    for other in others:
        if not torch.equal(site_vectors(other, site, picture).cpu(), vectors):
            raise InvalidInputError(
                f"{first.name} gives other numbers on {other.device} than on {first.device}; serve "
                "it on devices of one kind",
                field="serve.devices",
            )


def _fitting(model: Model, most: int) -> int:
    """The most pictures in a batch, ``most`` or fewer, for which a GPU has memory left."""
    if model.device.type != "cuda" or most == 1:
        return most
    size, site = model.preprocessing, list(model.sites)[-1]
    one, two = (
        peak_bytes(
            partial(site_vectors, model, site, torch.zeros(count, 3, size.height, size.width)),
            model.device,
        )
        for count in (1, 2)
    )
    free, _ = torch.cuda.mem_get_info(model.device)
    return largest_batch(one, two, free, most)


def _equal(one: Codes, other: Codes) -> bool:
    return torch.equal(one.indices, other.indices) and torch.equal(one.values, other.values)


def _same(model: Model, site: str, pictures: Tensor, alone: Tensor) -> int:
    """The largest of the `batch_sizes` up to which batches give the vectors ``alone`` bit for bit;
    0 when even a batch of one does not."""
    same = 0
    for size in batch_sizes(len(pictures)):
        if not torch.equal(site_vectors(model, site, pictures[:size]), alone[:size]):
            break
        same = size
    return same
