"""The catalogue of errors: all that this project raises on purpose.

Each error says what was wrong, where, and what to do. ``reason`` is the stable, machine-readable
name that gRPC answers carry as ``google.rpc.ErrorInfo.reason``; ``field`` names the input at fault.
"""

from __future__ import annotations

from typing import ClassVar

_LONGEST_VALUE = 120
"""The most characters of a value that a message quotes."""
_LONGEST_MESSAGE = 1200
"""The most characters of a message: half a screen."""


def shortened(text: str, most: int = _LONGEST_VALUE) -> str:
    """``text`` in at most ``most`` characters: the middle of a longer text is left out."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 5]} ... {text[-end:]}"


def quoted(value: object) -> str:
    """The shortened ``repr`` of a value, for messages."""
    return shortened(repr(value))


class VisionSaeError(Exception):
    """Base of every error that this project raises on purpose. A message that is longer than half a
    screen loses its middle."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "") -> None:
        # A file's name may hold half of a surrogate pair, which no terminal or message can carry.
        sound = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(shortened(sound, _LONGEST_MESSAGE))
        self.field = field


class InvalidInputError(VisionSaeError, ValueError):
    """A value given by the caller cannot be used."""

    reason = "INVALID_INPUT"


class InvalidImageError(InvalidInputError):
    """The bytes are not a picture of an accepted format."""

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
    """The request needs an optional package that is not installed."""

    reason = "MISSING_DEPENDENCY"


class NotConfiguredError(VisionSaeError):
    """The request needs a part that this server was started without."""

    reason = "NOT_CONFIGURED"


class NotServedError(VisionSaeError):
    """The request is part of the contract, but this version of the server does not implement it."""

    reason = "NOT_SERVED"


class OverloadedError(VisionSaeError):
    """The server has no place left for this request; try again later."""

    reason = "OVERLOADED"


class RecallTooLowError(VisionSaeError):
    """A patch index fell under its recall floor and is not published."""

    reason = "RECALL_TOO_LOW"


class RemoteServerError(VisionSaeError):
    """Another server, which this server asked for a part of the answer, failed."""

    reason = "REMOTE_SERVER_FAILED"


class RemoteServerAwayError(RemoteServerError):
    """The other server is unreachable or refuses this server: other requests would fail too."""


class StorageFullError(VisionSaeError):
    """The disk has no room for the output."""

    reason = "STORAGE_FULL"


class WorkersEndedError(VisionSaeError):
    """Worker processes ended before their work was done."""

    reason = "WORKERS_ENDED"
