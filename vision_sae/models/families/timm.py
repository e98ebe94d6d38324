"""Vision transformers of timm with pretrained weights, by timm's own names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_sae.errors import NotFoundError
from vision_sae.models.family import FAMILIES, Family, Form
from vision_sae.models.names import shown_name, spellings

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.vit import VitModel


class Timm(Family):
    """Names that timm knows; it is also the family of names without a scheme."""

    name = "timm"
    summary = "a vision transformer of timm with pretrained weights from its hub"
    forms = (
        Form("timm:NAME", "pictures", "a model of timm's list, or timm's hf-hub:ORG/NAME"),
        Form("NAME", "pictures", "the same model"),
    )

    def shown(self, target: str) -> str:
        """See `Family.shown`; a name of timm may have a scheme of its own."""
        return shown_name(target)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> VitModel:
        """See `Family.load`."""
        import timm

        from vision_sae.models.from_timm import check_name, load_timm

        if name == target and not timm.is_model(name):
            raise NotFoundError(
                f"no model answers to {name!r}; use {spellings('pictures', 'contrastive')}; PATH "
                "is a directory with config.json and model.safetensors",
                field="model",
            )
        check_name(target)
        return load_timm(target, name, dtype=dtype, device=device)


FAMILIES.register(Timm())
