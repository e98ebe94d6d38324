"""The picture files below a folder, and the files that are skipped.

Links to folders are followed, and each folder is read once, so that links cannot lead in circles.
Hidden files and folders (their names begin with a dot), files of other kinds, files that cannot be
opened, and names that are not UTF-8 (no store or message can hold them) are skipped and reported.
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
    """(the pictures below ``folder`` in order, the skipped files). Files directly in ``folder``
    that ``besides`` names are in neither list."""
    walk = _Walk(folder, besides)
    walk.enter(folder)
    while walk.links:
        walk.enter(walk.links.pop(0))
    return sorted(walk.files), sorted(walk.skipped, key=lambda skipped: skipped.id)


class _Walk:
    def __init__(self, folder: Path, besides: Collection[str]) -> None:
        self._folder, self._besides = folder, besides
        self._seen: set[tuple[int, int]] = set()
        self.files: list[Path] = []
        self.skipped: list[Skipped] = []
        self.links: list[Path] = []
        """Links to folders, which are followed after all real folders have been read."""

    def skip(self, path: Path, error: str, reason: str) -> None:
        name = path.relative_to(self._folder).as_posix()
        shown = name.encode("utf-8", "backslashreplace").decode()
        self.skipped.append(Skipped(shown, error, reason))

    def enter(self, top: Path) -> None:
        """Read a folder and the real folders below it, except those that have been read."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in self._seen:
                    self.skip(folder, "it leads to a folder that is read already", LINK)
                    continue
                self._seen.add((status.st_dev, status.st_ino))
                paths = [folder / entry for entry in os.listdir(folder)]
            except OSError as error:
                self.skip(folder, error.strerror or str(error), UNREADABLE)
                continue
            waiting += [path for path in sorted(paths) if self._is_real_folder(path)]

    def _is_real_folder(self, path: Path) -> bool:
        """Whether ``path`` is a folder to read; files, links and skipped paths are recorded."""
        if path.parent == self._folder and path.name in self._besides:
            return False
        if has_lone_surrogate(path.name):
            self.skip(path, "its name is not UTF-8; rename it", BAD_NAME)
            return False
        if path.name.startswith("."):
            self.skip(path, "its name begins with a dot", HIDDEN)
            return False
        try:
            mode = path.stat().st_mode
        except OSError as error:
            reason = LINK if path.is_symlink() else UNREADABLE
            self.skip(path, error.strerror or str(error), reason)
            return False
        if stat.S_ISDIR(mode):
            if path.is_symlink():
                self.links.append(path)
            return not path.is_symlink()
        if path.suffix.lower() not in SUFFIXES:
            self.skip(path, "it is no .jpg, .jpeg, .png or .webp", OTHER)
        elif not stat.S_ISREG(mode):
            self.skip(path, "it is no file but a device, a pipe or a socket", OTHER)
        else:
            self.files.append(path)
        return False
