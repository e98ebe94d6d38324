"""Contrastive models of open_clip's own list, with pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_sae.models.family import FAMILIES, Family, Form, is_path, last_part

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.clip import ClipModel


class OpenClip(Family):
    """A configuration of open_clip; TAG names its weights, and may be a file of weights."""

    name = "open_clip"
    summary = "a contrastive model of open_clip with pretrained weights"
    forms = (
        Form("open_clip:NAME/TAG", "contrastive", "the weights that a tag names, or a file"),
        Form("open_clip:NAME", "contrastive", "the first weights of open_clip's list"),
    )

    def shown(self, target: str) -> str:
        """``NAME/TAG``, where a tag that is a file is its last part alone."""
        model, slash, tag = target.partition("/")
        return model + slash + (last_part(tag) if is_path(tag, parts=1) else tag)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> ClipModel:
        """See `Family.load`."""
        from vision_sae.models.from_open_clip import load_listed

        return load_listed(target, name, dtype=dtype, device=device)


FAMILIES.register(OpenClip())
