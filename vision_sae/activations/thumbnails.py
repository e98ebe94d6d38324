"""Small JPEGs of a data set's pictures, in two files: the bytes of all JPEGs, and their offsets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from vision_sae.arrays import read_array
from vision_sae.errors import CorruptArtifactError

THUMBNAILS = "thumbnails.bin"
THUMBNAIL_OFFSETS = "thumbnail_offsets.npy"


def write_thumbnails(directory: Path, thumbnails: Iterable[bytes]) -> None:
    """Write the two files of thumbnails to ``directory``."""
    offsets = [0]
    with (directory / THUMBNAILS).open("wb") as file:
        for thumbnail in thumbnails:
            offsets.append(offsets[-1] + file.write(thumbnail))
    np.save(directory / THUMBNAIL_OFFSETS, np.array(offsets, dtype=np.int64), allow_pickle=False)


class Thumbnails(Sequence[bytes]):
    """The JPEGs in row order; the file is mapped, and a picture is read on access."""

    def __init__(self, directory: Path) -> None:
        self._offsets = read_array(directory / THUMBNAIL_OFFSETS)
        try:
            self._data = np.memmap(directory / THUMBNAILS, dtype=np.uint8, mode="r")
            whole = len(self._data) == self._offsets[-1]
        except (OSError, ValueError):  # no file, or an empty one
            whole = False
        if not whole:
            raise CorruptArtifactError(
                f"{directory / THUMBNAILS} does not hold the pictures that {THUMBNAIL_OFFSETS} "
                "names; make the folder again"
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # raises IndexError and resolves negative indices
        return self._data[self._offsets[i] : self._offsets[i + 1]].tobytes()
