"""The account of a folder's files: pictures read, files skipped and why, captions unmatched.

A command keeps one `Reading` from the folder to the last picture. A file that is no picture does
not end a run: it is skipped, counted and reported, unless the reading is ``strict``.
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

Result = TypeVar("Result")


@dataclass(frozen=True)
class Skipped:
    """A file that was not read, and why."""

    id: str
    """Path relative to the folder; bytes that are not UTF-8 are written ``\\xe9``."""
    error: str
    """The fault, in a sentence."""
    reason: str = UNREADABLE
    """The kind of fault in a word or two, by which files are counted."""

    def __str__(self) -> str:
        name = self.id if self.id.isprintable() else repr(self.id)
        return f"{name}: {self.error}"


def attempt(picture: Picture, work: Callable[[Image.Image], Result]) -> Result | Skipped:
    """The result of ``work`` on a picture, or the reason why the picture cannot be read."""
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
    """Raise `InvalidInputError` instead of skipping files or ignoring captions."""
    read: int = 0
    """Number of pictures that were read."""
    skipped: list[Skipped] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Sentences about captions that match no picture."""
    _seen: set[Path] = field(default_factory=set)

    def leave_out(self, skipped: Sequence[Skipped]) -> None:
        """Enter skipped files; raises `InvalidInputError` when strict."""
        self.check(skipped)
        self.skipped += skipped

    def check(self, skipped: Sequence[Skipped]) -> None:
        """Raise `InvalidInputError` for skipped files when strict, before the run goes on."""
        if self.strict and skipped:
            shown = "; ".join(shortened(str(file), 200) for file in skipped[:_EXAMPLES])
            raise InvalidInputError(
                f"{_counted(skipped)} ({shown}{_further(skipped)}); {_LEAVE}", field="images"
            )

    def remark(self, remarks: Sequence[str]) -> None:
        """Enter remarks about captions; raises `InvalidInputError` when strict."""
        if self.strict and remarks:
            raise InvalidInputError("; ".join(remarks) + f"; {_LEAVE}", field="images")
        self.remarks += remarks

    def each(
        self, pictures: Iterable[Picture], work: Callable[[Image.Image], Result]
    ) -> Iterator[tuple[Picture, Result]]:
        """(picture, result of ``work``) of each picture that can be read; others are entered as
        skipped. A file that is read several times counts once."""
        for picture in pictures:
            result = attempt(picture, work)
            is_new = picture.path not in self._seen
            self._seen.add(picture.path)
            if not isinstance(result, Skipped):
                self.read += is_new
                yield picture, result
            elif is_new:
                self.leave_out([result])

    def all(
        self, pictures: Sequence[Picture], work: Callable[[Image.Image], Result]
    ) -> list[Result]:
        """The results of ``work`` on the pictures that can be read; raises `InvalidInputError` when
        none can."""
        results = [result for _, result in self.each(pictures, work)]
        if pictures and not results:
            raise InvalidInputError(
                f"none of the {len(pictures)} pictures could be read; {self.skipped[-1]}",
                field="images",
            )
        return results

    def summary(self) -> str:
        """``12 pictures read, 3 skipped: 2 broken, 1 hidden``."""
        skipped = f", {_counted(self.skipped)}" if self.skipped else ""
        return f"{self.read} pictures read{skipped}"

    def details(self) -> list[str]:
        """Lines on up to three skipped files of each reason, then the remarks about captions."""
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
