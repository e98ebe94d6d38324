from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from vision_sae.arrays import complete, new_array, open_growing
from vision_sae.errors import StorageFullError


def test_array_is_zeros_and_what_is_written_in_place_is_in_the_file(tmp_path: Path) -> None:
    array = new_array(tmp_path / "a.npy", (2, 3), np.float16)
    array[1] = 7
    array.flush()
    read = np.load(tmp_path / "a.npy")
    assert read.dtype == np.float16
    assert read.tolist() == [[0, 0, 0], [7, 7, 7]]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files cannot be given room here")
def test_array_has_its_room_before_anything_is_written(tmp_path: Path) -> None:
    new_array(tmp_path / "a.npy", (1000, 1000), np.float32)
    assert (tmp_path / "a.npy").stat().st_blocks * 512 >= 4_000_000


def test_array_without_room_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StorageFullError, match=r"a\.npy \(4\.0 MB\)"):
        new_array(tmp_path / "a.npy", (1000, 1000), np.float32)
    assert not list(tmp_path.iterdir())


def test_growing_array_goes_on_behind_its_complete_rows(tmp_path: Path) -> None:
    array, done = open_growing(tmp_path / "a.npy", (3,), np.int64)
    assert done == 0
    array[:] = 5
    complete(array, tmp_path / "a.npy", 2)
    again, done = open_growing(tmp_path / "a.npy", (3,), np.int64)
    assert done == 2
    assert again[:2].tolist() == [5, 5]


def test_growing_array_of_another_shape_begins_anew(tmp_path: Path) -> None:
    array, _ = open_growing(tmp_path / "a.npy", (3,), np.int64)
    complete(array, tmp_path / "a.npy", 2)
    other, done = open_growing(tmp_path / "a.npy", (4,), np.int64)
    assert done == 0
    assert other.tolist() == [0, 0, 0, 0]
    _, done = open_growing(tmp_path / "a.npy", (4,), np.int64)  # nothing was completed since
    assert done == 0
