"""Vision transformers in a folder as timm's ``save_for_hf`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vision_sae.errors import NotFoundError
from vision_sae.models.family import FAMILIES, Family, Form, largest_weights, last_part

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.vit import VitModel

NAME = "local-dir"


class LocalDir(Family):
    """Paths of folders; it is also the family of paths without a scheme."""

    name = NAME
    summary = "a folder with timm's config.json and model.safetensors"
    forms = (
        Form("local-dir:PATH", "pictures", "the timm model in a folder"),
        Form("PATH", "pictures", "the same model"),
    )

    def check(self, target: str, *, field: str) -> None:
        """Refuse folders without a configuration."""
        if not (Path(target) / "config.json").is_file():
            raise NotFoundError(
                f"{target} holds no config.json; name a model, or a directory in timm's "
                "save_for_hf layout (config.json and model.safetensors)",
                field=field,
            )

    def weights_bytes(self, target: str) -> int:
        """Of the file of weights."""
        return largest_weights([Path(target)])

    def shown(self, target: str) -> str:
        """The last part of the path."""
        return last_part(target)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> VitModel:
        """See `Family.load`."""
        from vision_sae.models.from_timm import load_folder

        return load_folder(target, name, dtype=dtype, device=device)


FAMILIES.register(LocalDir())
