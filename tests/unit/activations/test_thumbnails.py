"""Thumbnails in two files: what goes in comes out, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from vision_sae.activations.thumbnails import Thumbnails, write_thumbnails


def test_thumbnails_come_back_in_order(tmp_path: Path) -> None:
    write_thumbnails(tmp_path, [b"one", b"", b"three"])
    thumbnails = Thumbnails(tmp_path)
    assert list(thumbnails) == [b"one", b"", b"three"]
    assert (len(thumbnails), thumbnails[-1], thumbnails[1:]) == (3, b"three", [b"", b"three"])


def test_there_is_no_thumbnail_beyond_the_last(tmp_path: Path) -> None:
    write_thumbnails(tmp_path, [b"one"])
    with pytest.raises(IndexError):
        Thumbnails(tmp_path)[1]
