"""Names of models and sites, checked as far as a check needs neither torch nor a library of models.

A name is ``SCHEME:TARGET``, where the scheme is that of a family (`vision_sae.models.family`). A
name without a scheme is a path, of the family ``local-dir``, or else a name of timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vision_sae.errors import InvalidInputError, NotFoundError, VisionSaeError
from vision_sae.models.family import FAMILIES, Family, Use, is_path, last_part

SITE_KINDS = ("update", "resid", "mlp", "attn")
"""``update``: block output minus block input; ``resid``: block output; ``mlp``: MLP neurons after
the non-linearity; ``attn``: attention output."""
_LONGEST_NAME, _LONGEST_PATH = 255, 1000


class ModelName(NamedTuple):
    """A name of a model, in parts."""

    scheme: str
    target: str
    """The name behind the scheme, or the whole name where it has no scheme."""

    @property
    def family(self) -> Family:
        """The family of the scheme; its module is imported now."""
        return FAMILIES[self.scheme]


def parsed(name: str) -> ModelName:
    """The parts of a name; imports no family."""
    scheme, separator, target = name.partition(":")
    if separator and scheme in FAMILIES:
        return ModelName(scheme, target)
    path = Path(name)
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith("/")
    return ModelName("local-dir" if looks_like_path or path.is_dir() else "timm", name)


def spellings(*uses: Use) -> str:
    """The forms of all names of models for these uses, as a message lists them."""
    names: list[str] = []
    for scheme in FAMILIES.names:
        try:
            forms = FAMILIES[scheme].forms
        except VisionSaeError:  # another distribution's family that is broken: list the others
            continue
        names += [form.spelling for form in forms if form.use in uses]
    return " or ".join([", ".join(names[:-1]), names[-1]])


def check_model(name: str, *, field: str = "model") -> None:
    """Raise `NotFoundError` for the name of a model that cannot be there, and
    `MissingDependencyError` for a model whose weights or family are not installed."""
    parts = parsed(name)
    if not parts.target:
        raise NotFoundError(f"{name!r} names no model", field=field)
    parts.family.check(parts.target, field=field)


def check_contrastive(name: str, *, field: str = "clip") -> None:
    """As `check_model`, for models of pictures and texts alone."""
    parts = parsed(name)
    if parts.family.use(parts.target) != "contrastive":
        raise NotFoundError(
            f"{name!r} is no contrastive model; use {spellings('contrastive')}", field=field
        )
    check_model(name, field=field)


def check_generator(name: str, *, field: str = "model") -> None:
    """As `check_model`, for text-to-image models alone."""
    parts = parsed(name)
    if parts.family.use(parts.target) != "text-to-image" or not parts.target:
        raise NotFoundError(
            f"no text-to-image model answers to {name!r}; use {spellings('text-to-image')}, as in "
            "sdxl:stabilityai/sdxl-turbo; PATH is the folder of a saved pipeline",
            field=field,
        )
    check_model(name, field=field)


def check_length(name: str) -> None:
    """Raise `NotFoundError` for a name that is longer than the name of a file can be."""
    longest = max(len(part.encode("utf-8", "surrogatepass")) for part in name.split("/"))
    if longest > _LONGEST_NAME or len(name) > _LONGEST_PATH:
        raise NotFoundError(
            f"no model answers to a name of {len(name)} letters, {name[:40]!r} ...", field="model"
        )


def check_sites(sites: Sequence[str], *, field: str = "site") -> None:
    """Refuse what names no site, nor any pattern of sites (``blocks.*.mlp``)."""
    for site in sites:
        last = site.rpartition(".")[2]
        if not any(fnmatchcase(kind, last) for kind in SITE_KINDS):
            raise InvalidInputError(
                f"{site!r} is no site; sites are spelled like blocks.10.update and end in "
                f"{', '.join(f'.{kind}' for kind in SITE_KINDS)}",
                field=field,
            )


def weights_bytes(name: str) -> int:
    """The bytes of weights that loading a model is sure to read; 0 where a hub's cache would have
    to be asked."""
    parts = parsed(name)
    return parts.family.weights_bytes(parts.target)


@lru_cache(maxsize=1024)
def shown_name(name: str) -> str:
    """A model's name as others may see it: a path of this machine is its last part alone, so that
    ``sdxl:/data/ours`` is ``sdxl:ours``."""
    scheme, separator, target = name.partition(":")
    if separator and scheme in FAMILIES:
        return f"{scheme}:{FAMILIES[scheme].shown(target)}"
    return last_part(name) if is_path(name) else name
