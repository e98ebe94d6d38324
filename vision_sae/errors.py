"""The one catalogue of errors.

Each error says what was wrong, where, and what to do. ``reason`` is the stable, machine-readable
name that gRPC answers carry as ``google.rpc.ErrorInfo.reason``; ``field`` names the input at fault.
"""

from __future__ import annotations

from typing import ClassVar

_LONGEST_VALUE = 120
"""Characters of a value that a message quotes."""
_LONGEST_MESSAGE = 1200
"""Characters of a message: half a screen."""


def shortened(text: str, most: int = _LONGEST_VALUE) -> str:
    """A text of ``most`` characters or fewer: of a longer one the middle is left out."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 5]} ... {text[-end:]}"


def quoted(value: object) -> str:
    """A value as messages show it: ``repr``, shortened."""
    return shortened(repr(value))


class VisionSaeError(Exception):
    """Base of every error this project raises on purpose. A message is never longer than half a
    screen: of a longer one the middle is left out."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "") -> None:
        # A file's name may hold half of a surrogate pair, which no terminal or wire takes.
        sound = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(shortened(sound, _LONGEST_MESSAGE))
        self.field = field


class InvalidInputError(VisionSaeError, ValueError):
    """A value given by the caller cannot be used."""

    reason = "INVALID_INPUT"


class InvalidImageError(InvalidInputError):
    """The bytes are not a picture we accept."""

    reason = "INVALID_IMAGE"


class ImageTooLargeError(InvalidInputError):
    """The picture has more bytes or pixels than the limit."""

    reason = "IMAGE_TOO_LARGE"


class NotFoundError(VisionSaeError, LookupError):
    """A named thing does not exist."""

    reason = "NOT_FOUND"


class FeatureNotFoundError(NotFoundError):
    """The feature index is outside the dictionary."""

    reason = "FEATURE_NOT_FOUND"


class AlreadyExistsError(VisionSaeError):
    """The name for a new thing is taken."""

    reason = "ALREADY_EXISTS"


class ConflictError(VisionSaeError):
    """Somebody else changed the thing since the caller saw it."""

    reason = "CONFLICT"


class CorruptArtifactError(VisionSaeError):
    """A file does not have the content its manifest names."""

    reason = "CORRUPT_ARTIFACT"


class MismatchError(VisionSaeError):
    """Two artifacts do not belong together (model, site, preprocessing, dictionary)."""

    reason = "ARTIFACT_MISMATCH"


class MissingDependencyError(VisionSaeError, ImportError):
    """An optional package is needed for what was asked."""

    reason = "MISSING_DEPENDENCY"


class NotConfiguredError(VisionSaeError):
    """What was asked needs a part that this server was started without."""

    reason = "NOT_CONFIGURED"


class NotServedError(VisionSaeError):
    """The contract has this, this version of the server does not do it yet."""

    reason = "NOT_SERVED"


class OverloadedError(VisionSaeError):
    """The server has no place left for this request; try again later."""

    reason = "OVERLOADED"


class RecallTooLowError(VisionSaeError):
    """A patch index fell under its recall floor and is not published."""

    reason = "RECALL_TOO_LOW"


class RemoteServerError(VisionSaeError):
    """Another server that was asked for a part of the answer failed to give it."""

    reason = "REMOTE_SERVER_FAILED"


class RemoteServerAwayError(RemoteServerError):
    """That server answers nobody, or not us: asking it about something else is of no use now."""


class StorageFullError(VisionSaeError):
    """The disk has no room for what is to be written."""

    reason = "STORAGE_FULL"


class WorkersEndedError(VisionSaeError):
    """Processes that were started to work ended before the work was done."""

    reason = "WORKERS_ENDED"
