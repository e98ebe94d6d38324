"""One shard of an ActivationStore: collected in memory batch by batch, then written whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_sae.activations import store as layout
from vision_sae.activations.decoding import Refused
from vision_sae.activations.store import ImageRecord, read_images, read_jsonl
from vision_sae.activations.thumbnails import THUMBNAIL_OFFSETS, Thumbnails, write_thumbnails
from vision_sae.arrays import read_array
from vision_sae.errors import CorruptArtifactError, InvalidInputError
from vision_sae.files import fsync

_LOG = logging.getLogger(__name__)


@dataclass
class Shard:
    """What will be the files of one shard."""

    records: list[ImageRecord] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    arrays: dict[str, list[NDArray[Any]]] = field(default_factory=lambda: defaultdict(list))
    """{file name: its parts, one a batch}"""

    def add(self, batch: Shard) -> None:
        """Append what is of one batch."""
        self.records += batch.records
        self.thumbnails += batch.thumbnails
        self.refused += batch.refused
        for file, parts in batch.arrays.items():
            self.arrays[file] += parts


def rounded(site: str, values: Tensor, dtype: str) -> NDArray[Any]:
    """Round to the store's precision; refuse what does not fit instead of storing infinity."""
    low = values.to(getattr(torch, dtype)).cpu()
    if not torch.isfinite(low).all():
        raise InvalidInputError(
            f"site {site} has values that {dtype} cannot hold (largest "
            f"{values.abs().max():.3g}); harvest with --dtype bfloat16",
            field="dtype",
        )
    return low.view(torch.int16).numpy().view(np.uint16) if dtype == "bfloat16" else low.numpy()


def write_shard(shards: Path, name: str, shard: Shard) -> None:
    """Write a shard beside its place and rename it: it is there whole, or not at all."""
    temporary = shards / f".{name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for file, parts in shard.arrays.items():
        np.save(temporary / file, np.concatenate(parts), allow_pickle=False)
    write_thumbnails(temporary, shard.thumbnails)
    layout.write_images(temporary / layout.IMAGES, shard.records)
    refused = [json.dumps(asdict(r), sort_keys=True) + "\n" for r in shard.refused]
    (temporary / layout.SKIPPED).write_text("".join(refused))
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
