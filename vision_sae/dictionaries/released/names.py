"""Names of released dictionaries: ``demo:dinov2-s/blocks.10.update`` and ``hf-hub:ORG/NAME``."""

from __future__ import annotations

import re

from vision_sae.errors import InvalidInputError

HUB = "hf-hub:"
_NAME = re.compile(r"[a-z][a-z0-9_-]*:[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", re.ASCII)


def is_name(text: str) -> bool:
    """Whether ``text`` is spelled like a name, not like a path."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str) -> None:
    """Raise `InvalidInputError` for what is not spelled like a name."""
    if not is_name(name):
        raise InvalidInputError(
            f"{name!r} is no name of a dictionary; names are spelled MAKER:MODEL/SITE, as in "
            "demo:dinov2-s/blocks.10.update, or hf-hub:ORG/NAME",
            field="name",
        )


def hub_place(name: str) -> tuple[str, str]:
    """The repository and the folder in it ("" for its root) of ``hf-hub:ORG/NAME[/FOLDER]``.

    Raises `InvalidInputError` when the repository is not complete.
    """
    check_name(name)
    organisation, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, folder = rest.partition("/")
    if not repository:
        raise InvalidInputError(
            f"{name} names no repository; write hf-hub:ORG/NAME or hf-hub:ORG/NAME/FOLDER",
            field="name",
        )
    return f"{organisation}/{repository}", folder


def folder_of(name: str) -> str:
    """The folder of a name in the cache; `name_of` is the inverse."""
    return name.replace(":", "@").replace("/", "@")


def name_of(folder: str) -> str:
    """The name whose folder this is: a name has one colon, which comes first."""
    return folder.replace("@", ":", 1).replace("@", "/")
