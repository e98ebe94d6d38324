"""Contrastive models of Hugging Face's hub that have an open_clip configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_sae.models.family import FAMILIES, Family, Form

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.clip import ClipModel

NAME = "hf-hub"


class HfHub(Family):
    """Repositories of the hub; they need the network or a filled cache."""

    name = NAME
    summary = "a contrastive model of Hugging Face's hub with an open_clip configuration"
    forms = (Form("hf-hub:ORG/NAME", "contrastive", "the open_clip model in a repository"),)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
        """See `Family.load`."""
        from vision_sae.models.from_open_clip import load_open_clip

        return load_open_clip(f"hf-hub:{target}", name, dtype=dtype, device=device)


FAMILIES.register(HfHub())
