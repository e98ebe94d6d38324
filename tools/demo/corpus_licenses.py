"""The text of the corpus's LICENSES.md: every package and photograph, its author and terms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from tools.demo.corpus_packages import ALL_PACKAGES
from tools.demo.corpus_photographs import Photograph

INTRODUCTION = """\
# Licences of the demo corpus

Written by `make_corpus.py`; edit its inputs, not this file. Every picture was made from one of the
packages below: resized, cropped or laid on a plain background, and recompressed. It stays under
the licence of its original, which `captions.jsonl` names for each file. The texts of the licences
are in `licenses/`, by SPDX identifier; `LGPL-3.0-only` adds to the terms in `GPL-3.0.txt`.
`LicenseRef-public-domain` marks works that their makers gave to the public domain or that are
under no known copyright. The captions of the photographs belong to this project.
"""


def text(photographs: Sequence[Photograph]) -> str:
    """The whole document, in Markdown."""
    return "\n".join([INTRODUCTION, *_packages(), "", *_photographs(photographs), ""])


def _packages() -> list[str]:
    rows = [
        f"| {p.registry} | `{p.name}` | {p.version} | {p.license} | {p.authors} | {p.contents} |"
        for p in ALL_PACKAGES
    ]
    return [
        "## Packages",
        "",
        "| registry | package | version | licence | authors | taken |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def _photographs(photographs: Sequence[Photograph]) -> list[str]:
    titles = defaultdict[tuple[str, str, str], list[str]](list)
    for photograph in photographs:
        key = (photograph.package, photograph.author, photograph.license)
        titles[key].append(_title(photograph.path))
    rows = [
        f"| `{package}` | {author} | {license_id} | {', '.join(names)} |"
        for (package, author, license_id), names in titles.items()
    ]
    return [
        "## Photographs",
        "",
        "| package | author | licence | photographs |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def _title(path: str) -> str:
    """The name of a picture's file, or of its theme where the file is named by its size."""
    parts = PurePosixPath(path).parts
    return parts[-4] if "contents" in parts else PurePosixPath(path).stem
