"""Vision transformers of torchvision with their default weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

from vision_sae.errors import NotFoundError
from vision_sae.models.family import FAMILIES, Family, Form

if TYPE_CHECKING:
    from vision_sae.devices import Dtype
    from vision_sae.models.grid import Preprocessing
    from vision_sae.models.vit import VitModel


class Torchvision(Family):
    """torchvision's ``vit_b_16`` and its relatives."""

    name = "torchvision"
    summary = "a vision transformer of torchvision with its default weights"
    forms = (Form("torchvision:NAME", "pictures", "vit_b_16 and its relatives"),)

    def load(self, target: str, name: str, *, dtype: Dtype, device: str) -> VitModel:
        """See `Family.load`."""
        from torchvision import models

        from vision_sae.models.parity import check_parity
        from vision_sae.models.sources import translated_errors
        from vision_sae.models.vit import TorchvisionBackbone, VitModel

        known = models.list_models(include="vit_*")
        if target not in known:
            raise NotFoundError(
                f"torchvision has no vision transformer {target!r}; choose one of "
                f"{', '.join(known)}",
                field="model",
            )
        weights = models.get_model_weights(target).DEFAULT
        transform = weights.transforms()
        with translated_errors(name):
            module = models.get_model(target, weights=weights)
        model = VitModel(
            name,
            TorchvisionBackbone(module),
            torchvision_preprocessing(transform),
            dtype=dtype,
            device=device,
            class_names=weights.meta["categories"],
        )
        check_parity(model, module, transform)
        return model


def torchvision_preprocessing(recipe: Any) -> Preprocessing:
    """Translate a torchvision classification recipe (``weights.transforms()``)."""
    from vision_sae.models.grid import Preprocessing

    crop, resize = recipe.crop_size[0], recipe.resize_size[0]
    return Preprocessing(
        height=crop,
        width=crop,
        crop_pct=crop / resize,
        interpolation=cast(Literal["bilinear", "bicubic"], recipe.interpolation.value),
        mean=tuple(recipe.mean),
        std=tuple(recipe.std),
    )


FAMILIES.register(Torchvision())
