"""What became of the files of a folder: pictures read, files skipped and why, captions unmatched.

One `Reading` goes with a command from the folder to its last picture. A file that is no picture
never ends a run: it is skipped, counted and told, unless the reading is ``strict``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from vision_sae.errors import ImageTooLargeError, InvalidInputError, shortened
from vision_sae.pictures.decode import guarded

if TYPE_CHECKING:
    from vision_sae.pictures.folder import Picture

BROKEN, TOO_LARGE, UNREADABLE = "broken", "too large", "unreadable"
_EXAMPLES = 3
_LEAVE = "mend or remove them, or do without --strict"

Made = TypeVar("Made")


@dataclass(frozen=True)
class Skipped:
    """A file that was not read, and why."""

    id: str
    """Path relative to the folder; bytes that are not UTF-8 are written ``\\xe9``."""
    error: str
    """What was wrong, in a sentence."""
    reason: str = UNREADABLE
    """The same in a word or two: files are counted by it."""

    def __str__(self) -> str:
        name = self.id if self.id.isprintable() else repr(self.id)
        return f"{name}: {self.error}"


def attempt(picture: Picture, work: Callable[[Image.Image], Made]) -> Made | Skipped:
    """What ``work`` makes of a picture, or why the picture cannot be read."""
    try:
        image = picture.decode()
        with guarded():
            return work(image)
    except OSError as error:
        return Skipped(picture.id, error.strerror or str(error), UNREADABLE)
    except ImageTooLargeError as error:
        return Skipped(picture.id, str(error), TOO_LARGE)
    except InvalidInputError as error:
        return Skipped(picture.id, str(error), BROKEN)


@dataclass
class Reading:
    """The account of one command's pictures."""

    strict: bool = False
    """Raise `InvalidInputError` for what would be skipped or left unmatched."""
    read: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What captions do not match, a sentence each."""
    _seen: set[Path] = field(default_factory=set)

    def leave_out(self, skipped: Sequence[Skipped]) -> None:
        """Count files that are not read; when strict, refuse them."""
        self.check(skipped)
        self.skipped += skipped

    def check(self, more: Sequence[Skipped]) -> None:
        """Refuse files that cannot be read, when strict: at once instead of when all is done."""
        if self.strict and more:
            shown = "; ".join(shortened(str(skipped), 200) for skipped in more[:_EXAMPLES])
            raise InvalidInputError(
                f"{_counted(more)} ({shown}{_further(more)}); {_LEAVE}", field="images"
            )

    def remark(self, remarks: Sequence[str]) -> None:
        """Note what captions do not match; when strict, refuse it."""
        if self.strict and remarks:
            raise InvalidInputError("; ".join(remarks) + f"; {_LEAVE}", field="images")
        self.remarks += remarks

    def each(
        self, pictures: Iterable[Picture], work: Callable[[Image.Image], Made]
    ) -> Iterator[tuple[Picture, Made]]:
        """The pictures that can be read, each with what ``work`` makes of it. One that is read
        several times counts once."""
        for picture in pictures:
            made = attempt(picture, work)
            is_new = picture.path not in self._seen
            self._seen.add(picture.path)
            if not isinstance(made, Skipped):
                self.read += is_new
                yield picture, made
            elif is_new:
                self.leave_out([made])

    def all(self, pictures: Sequence[Picture], work: Callable[[Image.Image], Made]) -> list[Made]:
        """What ``work`` makes of the pictures that can be read; `InvalidInputError` for none."""
        made = [each for _, each in self.each(pictures, work)]
        if pictures and not made:
            raise InvalidInputError(
                f"none of the {len(pictures)} pictures could be read; {self.skipped[-1]}",
                field="images",
            )
        return made

    def summary(self) -> str:
        """``12 pictures read, 3 skipped: 2 broken, 1 hidden``."""
        skipped = f", {_counted(self.skipped)}" if self.skipped else ""
        return f"{self.read} pictures read{skipped}"

    def details(self) -> list[str]:
        """Three files of each reason, and what captions do not match: a line each."""
        lines = []
        for reason in Counter(skipped.reason for skipped in self.skipped):
            same = [skipped for skipped in self.skipped if skipped.reason == reason]
            lines += [f"skipped {shortened(str(skipped), 300)}" for skipped in same[:_EXAMPLES]]
            if len(same) > _EXAMPLES:
                lines.append(f"skipped as {reason}{_further(same)}")
        return lines + self.remarks


def _counted(skipped: Sequence[Skipped]) -> str:
    reasons = Counter(skipped.reason for skipped in skipped)
    return f"{len(skipped)} skipped: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items())


def _further(skipped: Sequence[Skipped]) -> str:
    more = len(skipped) - _EXAMPLES
    return f", and {more} more" if more > 0 else ""
