"""The reference of errors, read from `vision_sae.errors` and from the server's table of codes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vision_sae.errors import VisionSaeError

_INTRODUCTION = """\
# Errors

Every error of the catalogue. A command prints an error as one line and ends with exit status 2.
A server answers with the gRPC code; `google.rpc.ErrorInfo` carries the reason, which never
changes, and the field at fault. In Python every class derives from
`vision_sae.errors.VisionSaeError` and has the attributes `reason` and `field`.

| error | reason | gRPC code | what it means |
|---|---|---|---|
"""


def kinds(base: type[VisionSaeError]) -> Iterator[type[VisionSaeError]]:
    """A class of errors and all its subclasses, in the order of their definition."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__ == base.__module__:
            yield from kinds(kind)


def page() -> str:
    """The page in Markdown."""
    from google.rpc import code_pb2
    from vision_sae_server.runtime.errors import code_of

    from vision_sae.errors import VisionSaeError

    rows = []
    for kind in kinds(VisionSaeError):
        meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
        code = code_pb2.Code.Name(code_of(kind))
        rows.append(f"| `{kind.__name__}` | `{kind.reason}` | `{code}` | {meaning} |")
    return _INTRODUCTION + "\n".join(rows) + "\n"
