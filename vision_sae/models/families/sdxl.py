"""Text-to-image pipelines of SDXL and of Stable Diffusion 1 and 2, as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vision_sae.errors import NotFoundError
from vision_sae.models.family import FAMILIES, Family, Form, largest_weights

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.sdxl import SdxlModel


class Sdxl(Family):
    """Pipelines of the hub, and folders that ``save_pretrained`` wrote."""

    name = "sdxl"
    summary = "a text-to-image pipeline of SDXL or Stable Diffusion 1 or 2"
    forms = (
        Form("sdxl:NAME", "text-to-image", "a pipeline of Hugging Face's hub, ORG/NAME"),
        Form("sdxl:PATH", "text-to-image", "the pipeline in a folder"),
    )

    def check(self, target: str, *, field: str) -> None:
        """Refuse folders without a pipeline's index."""
        folder = Path(target)
        if folder.is_dir() and not (folder / "model_index.json").is_file():
            raise NotFoundError(
                f"{target} holds no model_index.json; save the pipeline with save_pretrained",
                field=field,
            )

    def weights_bytes(self, target: str) -> int:
        """Of every part of a pipeline in a folder."""
        return largest_weights(Path(target).glob("*/"))

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> SdxlModel:
        """See `Family.load`."""
        from vision_sae.models.from_diffusers import load_pipeline

        return load_pipeline(target, name, dtype=dtype, device=device)


FAMILIES.register(Sdxl())
