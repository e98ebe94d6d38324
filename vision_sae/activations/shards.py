"""Shards of an ActivationStore: collected in memory batch by batch, then written at once."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.store import ImageRecord, read_images, read_jsonl
from vision_sae.activations.thumbnails import THUMBNAIL_OFFSETS, Thumbnails, write_thumbnails
from vision_sae.arrays import read_array
from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.files import fsync
from vision_sae.models.precision import MOST_LOST, lost_share
from vision_sae.pictures.reading import Skipped
from vision_sae.transfers import Leaving

_LOG = logging.getLogger(__name__)
_REMEDY = "harvest with --store-dtype bfloat16 or float32"


@dataclass
class Shard:
    """The content of the files of one shard."""

    records: list[ImageRecord] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    arrays: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))
    """{file name: its parts, one for each batch}"""

    def add(self, batch: Shard) -> None:
        """Append the content of one batch."""
        self.records += batch.records
        self.thumbnails += batch.thumbnails
        self.skipped += batch.skipped
        for file, parts in batch.arrays.items():
            self.arrays[file] += parts


class Rounding(NamedTuple):
    """Values of a site in a batch of pictures, rounded on the device that computed them."""

    values: Float[Tensor, "*shape"]
    """The values as the model gave them, for messages."""
    low: Shaped[Tensor, "*shape"]
    """The values in the store's precision."""
    checks: Float[Tensor, " 3"]
    """Whether all values are finite, whether they still are when rounded, and the relative rounding
    error."""

    @classmethod
    def of(cls, values: Float[Tensor, "*shape"], dtype: str) -> Rounding:
        """Round values to ``dtype``; nothing is checked yet."""
        low = values.to(getattr(torch, dtype))
        lost = lost_share(values, low)
        finite, holds = (some.isfinite().all().to(lost.dtype) for some in (values, low))
        return cls(values, low, torch.stack([finite, holds, lost]))

    def array(
        self,
        site: str,
        pictures: Sequence[str] = (),
        *,
        remedy: str = _REMEDY,
    ) -> Shaped[np.ndarray, "*shape"]:
        """The rounded values of a rounding in host memory, bfloat16 as uint16.

        Raises `InvalidInputError` for NaN and infinity, for values beyond the range of the
        precision, and when the relative rounding error exceeds `MOST_LOST`.
        """
        finite, holds, lost = self.checks.tolist()
        dtype = str(self.low.dtype).removeprefix("torch.")
        if not finite:
            check_finite(site, self.values, pictures)
        if not holds:
            raise InvalidInputError(
                f"site {site} has values that {dtype} cannot hold (largest "
                f"{self.values.abs().max():.3g}); {remedy}",
                field="dtype",
            )
        if lost > MOST_LOST:
            raise InvalidInputError(
                f"site {site} has values too small for {dtype} (largest "
                f"{self.values.abs().max():.3g}): its relative error would be {lost:.2g}, more "
                f"than {MOST_LOST:g}; {remedy}",
                field="dtype",
            )
        if self.low.dtype == torch.bfloat16:
            return self.low.view(torch.int16).numpy().view(np.uint16)
        return self.low.numpy()


class Departure:
    """Roundings, and further tensors of a batch, on their way to host memory.

    They leave batch by batch: the copies of one batch run beside the computation of the next, and
    the device holds two batches however many pictures a shard has.
    """

    def __init__(self, roundings: Sequence[Rounding], *others: Tensor) -> None:
        self._roundings = roundings
        parts = (part for each in roundings for part in (each.low, each.checks))
        self._leaving = Leaving(*parts, *others)

    def arrive(self) -> tuple[list[Rounding], tuple[Tensor, ...]]:
        """(the roundings, the further tensors) in host memory."""
        tensors = iter(self._leaving.arrive())
        roundings = [
            each._replace(low=next(tensors), checks=next(tensors)) for each in self._roundings
        ]
        return roundings, tuple(tensors)


def rounded(
    site: str,
    values: Float[Tensor, "*shape"],
    dtype: str,
    *,
    pictures: Sequence[str] = (),
    remedy: str = _REMEDY,
) -> Shaped[np.ndarray, "*shape"]:
    """Round the values of a site in a batch of ``pictures`` to the store's precision; see
    `Rounding.array`."""
    ((rounding,), _) = Departure([Rounding.of(values, dtype)]).arrive()
    return rounding.array(site, pictures, remedy=remedy)


def check_finite(what: str, values: Float[Tensor, "B ..."], pictures: Sequence[str] = ()) -> None:
    """Raise `InvalidInputError` when a model's output contains NaN or infinity; the message names
    the first of ``pictures`` with such a value."""
    if values.isfinite().all():
        return
    wrong = (~values.isfinite()).nonzero()[0].tolist()
    of = f" of picture {pictures[wrong[0]]}" if pictures else ""
    raise InvalidInputError(
        f"the model gives {what}{of} the value {float(values[tuple(wrong)])} at {wrong[1:]}; its "
        "weights or its precision are at fault: use another precision, or leave the picture out",
        field="model",
    )


def write_shard(shards: Path, name: str, shard: Shard) -> None:
    """Write a shard atomically: to a temporary folder, which is then renamed."""
    temporary = shards / f".{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for file, parts in shard.arrays.items():
        np.save(temporary / file, np.concatenate(parts), allow_pickle=False)
    write_thumbnails(temporary, shard.thumbnails)
    layout.write_images(temporary / layout.IMAGES, shard.records)
    skipped = [json.dumps(asdict(s), sort_keys=True) + "\n" for s in shard.skipped]
    (temporary / layout.SKIPPED).write_text("".join(skipped))
    for path in temporary.iterdir():
        fsync(path)
    shutil.rmtree(shards / name, ignore_errors=True)  # a damaged shard may be in the way
    os.rename(temporary, shards / name)
    fsync(shards)


def is_whole(shard: Path) -> bool:
    """Whether an earlier run wrote this shard completely; logs a warning for a damaged shard."""
    if not shard.is_dir():
        return False
    try:
        count = len(read_images(shard / layout.IMAGES))
        read_jsonl(shard / layout.SKIPPED)
        rows = [len(read_array(p)) for p in shard.glob("*.npy") if p.name != THUMBNAIL_OFFSETS]
        rows += [len(Thumbnails(shard))] if count else []
        if any(length != count for length in rows):
            raise CorruptArtifactError(f"{shard} holds arrays of {rows}, not of {count} pictures")
    except CorruptArtifactError as error:
        _LOG.warning("%s: this shard is written again", error)
        return False
    return True
