"""Contrastive models in a folder as open_clip's ``save_for_hf`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vision_sae.errors import NotFoundError
from vision_sae.models.family import FAMILIES, Family, Form, largest_weights, last_part

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.clip import ClipModel

NAME = "open_clip-dir"


class OpenClipDir(Family):
    """Paths of folders with ``open_clip_config.json`` and weights."""

    name = NAME
    summary = "a folder with open_clip_config.json and the weights of a contrastive model"
    forms = (Form("open_clip-dir:PATH", "contrastive", "the open_clip model in a folder"),)

    def check(self, target: str, *, field: str) -> None:
        """Refuse folders without a configuration."""
        if not (Path(target) / "open_clip_config.json").is_file():
            raise NotFoundError(
                f"{target} holds no open_clip_config.json with weights beside it; save the model "
                "with open_clip.push_to_hf_hub.save_for_hf",
                field=field,
            )

    def weights_bytes(self, target: str) -> int:
        """Of the file of weights."""
        return largest_weights([Path(target)])

    def shown(self, target: str) -> str:
        """The last part of the path."""
        return last_part(target)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
        """See `Family.load`."""
        from vision_sae.models.from_open_clip import load_folder

        return load_folder(target, name, dtype=dtype, device=device)


FAMILIES.register(OpenClipDir())
