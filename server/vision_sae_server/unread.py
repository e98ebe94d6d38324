"""What the text encoder of a model leaves unread of the texts of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vision_sae.v1.measure_pb2 import UnreadText


def unread_texts(
    unread: Callable[[str], str], texts: Iterable[tuple[str, str]]
) -> list[UnreadText]:
    """The ends of the ``texts``, (field of the request, text), that ``unread`` says are cut off."""
    found = ((field, unread(text)) for field, text in texts)
    return [UnreadText(field=field, unread=end) for field, end in found if end]
