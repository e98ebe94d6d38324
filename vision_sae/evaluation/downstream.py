"""What a reconstruction costs the model: its output with the dictionary spliced in.

At the patches of the site, special tokens untouched, the site vectors are replaced by their
reconstruction ("with SAE"), by zero ("with ablation") or by the mean site vector ("with mean
ablation"). The loss of each is how far it moves the output of the same picture:

- ``kl_div`` for a model with logits: KL(p || q) of its class distribution p with the new one q;
- ``cosine_distance`` for one without: 1 - cos of its pooled embedding and the new one.

The share recovered is ``score = (loss_ablation - loss_sae) / loss_ablation``: 1 when the output
does not move, 0 when it moves as far as without the site, negative when farther. SAEBench's
``ce_loss_score = (CE_ablation - CE_sae) / (CE_ablation - CE_model)`` is the same number when the
model's own distribution p is the target, because a cross entropy with p less p's entropy is the
KL divergence from p; true classes of the pictures are not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.hooks import at_patches
from vision_sae.models.protocol import Model, ModelOutput

Loss = Literal["kl_div", "cosine_distance"]
_KL: Loss = "kl_div"
_COSINE: Loss = "cosine_distance"


@dataclass(frozen=True)
class Downstream:
    """Mean losses over the pictures, and what of the ablations' loss the dictionary recovers."""

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
        """Share recovered against zero ablation."""
        return 1 - self.with_sae / self.with_ablation

    @property
    def mean_ablation_score(self) -> float:
        """Share recovered against mean ablation."""
        return 1 - self.with_sae / self.with_mean_ablation

    def metrics(self) -> dict[str, float]:
        """The figures under SAEBench's names, prefixed by the loss; it has none for the mean."""
        named = {
            f"{self.loss}_score": self.score,
            f"{self.loss}_mean_ablation_score": self.mean_ablation_score,
            f"{self.loss}_with_sae": self.with_sae,
            f"{self.loss}_with_ablation": self.with_ablation,
            f"{self.loss}_with_mean_ablation": self.with_mean_ablation,
        }
        return named | ({"ce_loss_score": self.score} if self.loss == _KL else {})


def output_distance(plain: ModelOutput, changed: ModelOutput) -> Tensor:
    """The loss of each picture (B), float64: see this module. 0 for equal outputs."""
    if plain.logits is not None and changed.logits is not None:
        p, q = plain.logits.double().log_softmax(1), changed.logits.double().log_softmax(1)
        return F.kl_div(q, p, reduction="none", log_target=True).sum(1)
    a, b = (output.embedding.double() for output in (plain, changed))
    # Through the difference of unit vectors: 1 - cos would lose small distances to rounding.
    return (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1) / 2


def downstream(
    model: Model,
    site: str,
    dictionary: Dictionary,
    batches: Iterable[Tensor],
    *,
    mean: Tensor,
) -> Downstream:
    """Run ``model`` on batches of its input (B, 3, H, W) four times, and compare its outputs.

    ``mean`` (D) is the site's mean vector over the data. Raises `InvalidInputError` when there are
    no pictures, or when the output does not depend on the site at all: nothing can be recovered.
    """

    def reconstruct(vectors: Tensor) -> Tensor:
        # The hook runs inside the model's autocast; a dictionary is measured in its own precision.
        with torch.autocast(vectors.device.type, enabled=False):
            return dictionary.decode(dictionary.encode(vectors.float()))

    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "with_sae": reconstruct,
        "with_ablation": torch.zeros_like,
        "with_mean_ablation": lambda vectors: mean.to(vectors).expand_as(vectors),
    }
    total = dict.fromkeys(changes, 0.0)
    images, loss = 0, _COSINE
    with torch.inference_mode():
        for pixels in batches:
            plain = model.forward(pixels)
            loss = _COSINE if plain.logits is None else _KL
            for name, change in changes.items():
                with model.replace(site, at_patches(model.grid.special, change)):
                    total[name] += float(output_distance(plain, model.forward(pixels)).sum())
            images += len(pixels)
    if not images:
        raise InvalidInputError("there are no pictures to run the model on", field="images")
    means = {name: value / images for name, value in total.items()}
    for name in ("with_ablation", "with_mean_ablation"):
        if not means[name] > 0:
            raise InvalidInputError(
                f"the output does not change {name.replace('_', ' ')} of {site}, so there is "
                "nothing to recover; choose a site that the output depends on",
                field="site",
            )
    return Downstream(loss, **means, images=images)
