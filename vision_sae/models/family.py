"""The door for families of models: one file a family, which registers itself in `FAMILIES`.

A family is all models that one scheme names: what stands before the colon in ``timm:NAME``. Our
families are the modules of `vision_sae.models.families`; another distribution adds one by an entry
point of the group ``vision_sae.model_families`` whose name is the scheme. Neither this module nor a
family's own module imports torch: a name is checked before anything heavy is loaded.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from vision_sae.registry import Registry

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.generator import Generator
    from vision_sae.models.protocol import Model

Use = Literal["pictures", "contrastive", "text-to-image"]
"""What a model is for: it sees pictures, it sees pictures and texts, or it draws pictures."""
_WEIGHTS = (".safetensors", ".bin", ".pth")
"""How files of weights end."""


class Form(NamedTuple):
    """One form of the names of a family."""

    spelling: str
    """``open_clip:NAME/TAG``: small letters as they are, capitals for what the user fills in."""
    use: Use
    loads: str
    """What such a name loads, in a phrase."""


class Family(ABC):
    """The models of one scheme; a subclass overrides what differs from the defaults."""

    name: ClassVar[str]
    """The scheme."""
    version: ClassVar[int] = 1
    """Rises when the same name and weights give another model."""
    summary: ClassVar[str]
    """What the models are and where they come from, in a sentence."""
    forms: ClassVar[tuple[Form, ...]]
    """Every form of its names; the first one says what a name of no particular form is for."""

    def use(self, target: str) -> Use:
        """What the model ``target``, the name behind the scheme, is for. Loads nothing."""
        exact = (form for form in self.forms if form.spelling == f"{self.name}:{target}")
        return next(exact, self.forms[0]).use

    def check(self, target: str, *, field: str) -> None:  # noqa: B027 (nothing to check is usual)
        """Raise an error of the catalogue for a model that cannot be there. Loads nothing."""

    def weights_bytes(self, target: str) -> int:
        """The bytes of weights that loading ``target`` is sure to read; 0 where nobody knows
        without asking a hub."""
        return 0

    def shown(self, target: str) -> str:
        """``target`` as others may see it: of a path of this machine the last part alone."""
        return last_part(target) if is_path(target) else target

    @abstractmethod
    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> Model | Generator:
        """Load the model: a `Generator` where `use` is text-to-image, else a `Model`.

        ``name`` is the whole name, which the model keeps. ``dtype`` is the precision of its matrix
        products, ``device`` a device of torch. Raises `NotFoundError` when no model has this name.
        """


FAMILIES: Registry[Family] = Registry(
    "family of models",
    package="vision_sae.models.families",
    group="vision_sae.model_families",
    field="model",
)
"""Every family, by scheme."""


def described() -> list[dict[str, Any]]:
    """{name, version, summary, forms} of every family, for tables of documents. Imports every
    family, and no torch."""
    return [
        {
            "name": family.name,
            "version": family.version,
            "summary": family.summary,
            "forms": [form._asdict() for form in family.forms],
        }
        for family in FAMILIES
    ]


def is_path(target: str, parts: int = 2) -> bool:
    """Whether a target is a path of this machine, and no name in a hub of up to ``parts`` parts
    (``ORG/NAME``)."""
    if not target:
        return False
    return (
        target.startswith(("/", ".", "~"))
        or len(target.split("/")) > parts
        or Path(target).exists()
    )


def last_part(path: str) -> str:
    """The last part of a path, whatever slashes end it."""
    return os.path.basename(os.path.abspath(path))


def largest_weights(folders: Iterable[Path]) -> int:
    """The bytes of the largest file of weights in each folder, added up: further files of weights
    in a folder are the same weights in other formats."""
    return sum(_largest(folder) for folder in folders)


def _largest(folder: Path) -> int:
    files = (file for file in folder.glob("*") if file.suffix in _WEIGHTS and file.is_file())
    return max((file.stat().st_size for file in files), default=0)
