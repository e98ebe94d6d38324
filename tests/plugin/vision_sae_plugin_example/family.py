"""Vision transformers of 32 pixels whose weights are made from a seed: ``example:7`` is seed 7."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_sae.errors import NotFoundError
from vision_sae.models.family import FAMILIES, Family, Form

if TYPE_CHECKING:
    from vision_sae.models.protocol import Model
    from vision_sae.models.vit import Dtype


class Example(Family):
    """A family of another distribution: its one file says all that the library has to know."""

    name = "example"
    summary = "a vision transformer of 3 blocks, its weights made from a seed"
    forms = (Form("example:SEED", "pictures", "the weights of a seed"),)

    def check(self, target: str, *, field: str) -> None:
        """Refuse what is no seed."""
        if not target.isdecimal():
            raise NotFoundError(f"example:{target} names no seed; use example:7", field=field)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> Model:
        """See `Family.load`."""
        import torch
        from timm.models.vision_transformer import VisionTransformer

        from vision_sae.models.grid import Preprocessing
        from vision_sae.models.vit import TimmBackbone, VitModel

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(target))
            module = VisionTransformer(
                img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0
            )
        preprocessing = Preprocessing(height=32, width=32)
        model = VitModel(name, TimmBackbone(module), preprocessing, dtype=dtype, device=device)
        model.kind = "example"  # a kind of model that no contract has heard of
        return model


FAMILIES.register(Example())
