"""The files below a folder, and what is left out of them.

Links to folders are followed, each folder is read once, so that no link leads in circles. Left out,
and said, are hidden files and folders (their names begin with a dot), files of other kinds, what
cannot be opened, and names that are not UTF-8: no store or message can hold these.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from vision_sae.pictures.reading import UNREADABLE, Skipped
from vision_sae.texts import has_lone_surrogate

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
HIDDEN, OTHER, BAD_NAME, LINK = "hidden", "of another kind", "not named in UTF-8", "a link"


def picture_files(folder: Path, besides: Collection[str] = ()) -> tuple[list[Path], list[Skipped]]:
    """(the pictures below ``folder`` in order, what is left out); files in ``folder`` itself that
    are named in ``besides`` are neither."""
    walk = _Walk(folder, besides)
    walk.enter(folder)
    while walk.links:
        walk.enter(walk.links.pop(0))
    return sorted(walk.files), sorted(walk.left_out, key=lambda skipped: skipped.id)


class _Walk:
    def __init__(self, folder: Path, besides: Collection[str]) -> None:
        self._folder, self._besides = folder, besides
        self._seen: set[tuple[int, int]] = set()
        self.files: list[Path] = []
        self.left_out: list[Skipped] = []
        self.links: list[Path] = []
        """Links to folders, to follow when all real folders have been read."""

    def leave(self, path: Path, error: str, reason: str) -> None:
        name = path.relative_to(self._folder).as_posix()
        shown = name.encode("utf-8", "backslashreplace").decode()
        self.left_out.append(Skipped(shown, error, reason))

    def enter(self, top: Path) -> None:
        """Read a folder and the real folders below it, those that have not been read."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                found = folder.stat()
                if (found.st_dev, found.st_ino) in self._seen:
                    self.leave(folder, "it leads to a folder that is read already", LINK)
                    continue
                self._seen.add((found.st_dev, found.st_ino))
                paths = [folder / entry for entry in os.listdir(folder)]
            except OSError as error:
                self.leave(folder, error.strerror or str(error), UNREADABLE)
                continue
            waiting += [path for path in sorted(paths) if self._is_real_folder(path)]

    def _is_real_folder(self, path: Path) -> bool:
        """Whether to look into ``path``; anything else is put where it belongs."""
        if path.parent == self._folder and path.name in self._besides:
            return False
        if has_lone_surrogate(path.name):
            self.leave(path, "its name is not UTF-8; rename it", BAD_NAME)
            return False
        if path.name.startswith("."):
            self.leave(path, "its name begins with a dot", HIDDEN)
            return False
        try:
            mode = path.stat().st_mode
        except OSError as error:
            self.leave(
                path, error.strerror or str(error), LINK if path.is_symlink() else UNREADABLE
            )
            return False
        if stat.S_ISDIR(mode):
            if path.is_symlink():
                self.links.append(path)
            return not path.is_symlink()
        if path.suffix.lower() not in SUFFIXES:
            self.leave(path, "it is no .jpg, .jpeg, .png or .webp", OTHER)
        elif not stat.S_ISREG(mode):
            self.leave(path, "it is no file but a device, a pipe or a socket", OTHER)
        else:
            self.files.append(path)
        return False
