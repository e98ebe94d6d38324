"""The loss at the model's output when reconstructions replace the site vectors.

At the patches of the site, but not at special tokens, the site vectors are replaced by their
reconstructions ("with SAE"), by zero ("with ablation") or by the mean site vector ("with mean
ablation"). The loss of a replacement is the distance between the changed and plain outputs:

- ``kl_div`` for a model with logits: KL(p || q) of the plain class distribution p and changed q;
- ``cosine_distance`` for other models: 1 - cos of the plain and the changed pooled embedding.

The share recovered is ``score = (loss_ablation - loss_sae) / loss_ablation``: 1 for an unchanged
output, 0 for an output as far away as with the ablation, negative for one farther away. SAEBench's
``ce_loss_score = (CE_ablation - CE_sae) / (CE_ablation - CE_model)`` is the same number if the
target is the model's own distribution p, because the cross entropy with p minus the entropy of p is
the KL divergence from p. The true classes of the pictures are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.errors import InvalidInputError
from vision_sae.models.hooks import at_patches
from vision_sae.models.protocol import Model, ModelOutput
from vision_sae.transfers import Placed, finest_float

Loss = Literal["kl_div", "cosine_distance"]
_KL: Loss = "kl_div"
_COSINE: Loss = "cosine_distance"


@dataclass(frozen=True)
class Downstream:
    """Mean losses over the pictures, and the shares of the ablations' losses that are recovered."""

    loss: Loss
    with_sae: float
    """Loss with the reconstruction in place of the site."""
    with_ablation: float
    """Loss with zero in place of the site."""
    with_mean_ablation: float
    """Loss with the mean site vector in place of the site."""
    images: int

    @property
    def score(self) -> float:
        """Share of the loss of zero ablation that the reconstruction recovers."""
        return 1 - self.with_sae / self.with_ablation

    @property
    def mean_ablation_score(self) -> float:
        """Share of the loss of mean ablation that the reconstruction recovers."""
        return 1 - self.with_sae / self.with_mean_ablation

    def metrics(self) -> dict[str, float]:
        """The figures under SAEBench's names, prefixed by the loss.

        SAEBench has no names for mean ablation.
        """
        named = {
            f"{self.loss}_score": self.score,
            f"{self.loss}_mean_ablation_score": self.mean_ablation_score,
            f"{self.loss}_with_sae": self.with_sae,
            f"{self.loss}_with_ablation": self.with_ablation,
            f"{self.loss}_with_mean_ablation": self.with_mean_ablation,
        }
        return named | ({"ce_loss_score": self.score} if self.loss == _KL else {})


def output_distance(plain: ModelOutput, changed: ModelOutput) -> Float64[Tensor, " B"]:
    """The loss of each picture, as the module's docstring defines it; 0 for equal outputs."""
    if plain.logits is not None and changed.logits is not None:
        wide = finest_float(plain.logits.device)
        p, q = plain.logits.to(wide).log_softmax(1), changed.logits.to(wide).log_softmax(1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    wide = finest_float(plain.embedding.device)
    a, b = (output.embedding.to(wide) for output in (plain, changed))
    # The difference of unit vectors is accurate where 1 - cos would lose small distances.
    return (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1) / 2


def downstream(
    model: Model,
    site: str,
    dictionary: Dictionary,
    batches: Iterable[Tensor],
    *,
    mean: Float[Tensor, " D"],
) -> Downstream:
    """Run ``model`` four times on batches of its input (B, 3, H, W), and compare the outputs.

    ``mean`` is the site's mean vector over the data. Raises `InvalidInputError` without pictures,
    and if the output does not depend on the site, so that nothing can be recovered.
    """

    def reconstruct(vectors: Tensor) -> Tensor:
        # The hook runs inside the model's autocast, and the dictionary computes in float32.
        with torch.autocast(vectors.device.type, enabled=False):
            beside = resident(dictionary, vectors.device)
            return beside.decode(beside.encode(vectors.float()))

    placed = Placed(mean)

    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "with_sae": reconstruct,
        "with_ablation": torch.zeros_like,
        "with_mean_ablation": lambda vectors: (
            placed.at(vectors.device).to(vectors).expand_as(vectors)
        ),
    }
    total: dict[str, Tensor | float] = dict.fromkeys(changes, 0.0)
    images, loss = 0, _COSINE
    with torch.inference_mode():
        for batch in batches:
            pixels = batch.to(model.device)
            plain = model.forward(pixels)
            loss = _COSINE if plain.logits is None else _KL
            for name, change in changes.items():
                with model.replace(site, at_patches(model.grid.special, change)):
                    total[name] += output_distance(plain, model.forward(pixels)).sum()
            images += len(pixels)
    if not images:
        raise InvalidInputError("there are no pictures to run the model on", field="images")
    means = {name: float(value) / images for name, value in total.items()}
    for name in ("with_ablation", "with_mean_ablation"):
        if not means[name] > 0:
            raise InvalidInputError(
                f"the output does not change {name.replace('_', ' ')} of {site}, so there is "
                "nothing to recover; choose a site that the output depends on",
                field="site",
            )
    return Downstream(loss, **means, images=images)
