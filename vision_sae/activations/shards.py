"""One shard of an ActivationStore: collected in memory batch by batch, then written whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.store import ImageRecord, read_images, read_jsonl
from vision_sae.activations.thumbnails import THUMBNAIL_OFFSETS, Thumbnails, write_thumbnails
from vision_sae.arrays import read_array
from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.files import fsync
from vision_sae.models.precision import MOST_LOST, share_lost
from vision_sae.pictures.reading import Skipped

_LOG = logging.getLogger(__name__)


@dataclass
class Shard:
    """What will be the files of one shard."""

    records: list[ImageRecord] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    arrays: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))
    """{file name: its parts, one a batch}"""

    def add(self, batch: Shard) -> None:
        """Append what is of one batch."""
        self.records += batch.records
        self.thumbnails += batch.thumbnails
        self.skipped += batch.skipped
        for file, parts in batch.arrays.items():
            self.arrays[file] += parts


def rounded(
    site: str,
    values: Tensor,
    dtype: str,
    *,
    pictures: Sequence[str] = (),
    remedy: str = "harvest with --dtype bfloat16 or float32",
) -> NDArray[Any]:
    """Round one batch of a site, of ``pictures``, to the store's precision.

    Raises `InvalidInputError` for what is no number, for what ``dtype`` cannot hold, and where
    rounding would lose more than `MOST_LOST`, instead of storing infinity or zeros.
    """
    check_finite(site, values, pictures)
    low = values.to(getattr(torch, dtype))
    if not low.isfinite().all():
        raise InvalidInputError(
            f"site {site} has values that {dtype} cannot hold (largest "
            f"{values.abs().max():.3g}); {remedy}",
            field="dtype",
        )
    if (lost := share_lost(values, low)) > MOST_LOST:
        raise InvalidInputError(
            f"site {site} has values too small for {dtype} (largest {values.abs().max():.3g}): its "
            f"relative error would be {lost:.2g}, more than {MOST_LOST:g}; {remedy}",
            field="dtype",
        )
    low = low.cpu()
    return low.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else low.numpy()


def check_finite(what: str, values: Tensor, pictures: Sequence[str] = ()) -> None:
    """Raise `InvalidInputError`, with the first of ``pictures``, for values (images, ...) that the
    model made and that are no numbers."""
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
    """Write a shard beside its place and rename it: it is there whole, or not at all."""
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
    shutil.rmtree(shards / name, ignore_errors=True)  # one that was found damaged
    os.rename(temporary, shards / name)
    fsync(shards)


def is_whole(shard: Path) -> bool:
    """Whether a shard that an earlier run wrote is there; one that is damaged is not, and a line
    says so."""
    if not shard.is_dir():
        return False
    try:
        count = len(read_images(shard / layout.IMAGES))
        read_jsonl(shard / layout.SKIPPED)
        rows = [len(read_array(p)) for p in shard.glob("*.npy") if p.name != THUMBNAIL_OFFSETS]
        rows += [len(Thumbnails(shard))] if count else []
        if any(found != count for found in rows):
            raise CorruptArtifactError(f"{shard} holds arrays of {rows}, not of {count} pictures")
    except CorruptArtifactError as error:
        _LOG.warning("%s: this shard is made anew", error)
        return False
    return True
