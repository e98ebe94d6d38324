"""The ends of a request's texts that a model's text encoder does not read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vision_sae.v1.measure_pb2 import UnreadText


def unread_texts(
    unread: Callable[[str], str], texts: Iterable[tuple[str, str]]
) -> list[UnreadText]:
    """The unread ends of ``texts``, which are pairs (field of the request, text); ``unread`` maps a
    text to its unread end."""
    ends = ((field, unread(text)) for field, text in texts)
    return [UnreadText(field=field, unread=end) for field, end in ends if end]
