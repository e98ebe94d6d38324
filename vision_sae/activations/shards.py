"""One shard of an ActivationStore: collected in memory batch by batch, then written whole."""

from __future__ import annotations

import json
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
from vision_sae.activations.store import ImageRecord
from vision_sae.activations.thumbnails import write_thumbnails
from vision_sae.errors import InvalidInputError
from vision_sae.files import fsync
from vision_sae.pictures.reading import Skipped


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
    skipped = [json.dumps(asdict(s), sort_keys=True) + "\n" for s in shard.skipped]
    (temporary / layout.SKIPPED).write_text("".join(skipped))
    for path in temporary.iterdir():
        fsync(path)
    os.rename(temporary, shards / name)
    fsync(shards)
