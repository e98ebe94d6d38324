"""How far attributions can be trusted, measured over many pictures.

- **Sums**: the completeness gap of integrated gradients and of act x grad, as a share of what was
  to be attributed.
- **Truth of single features**: rank correlation of act x grad with exact ablation, over the
  features that contribute most.
- **Deletion and insertion** of features and of patches, with random and activation-ordered controls
  (`vision_sae.attribution.faithfulness`).
- **Sensitivity**: an attribution should hardly change under a little noise on the picture, and much
  when the weights behind the site are shuffled (Adebayo et al. 2018, arXiv:1810.03292). Cosines of
  the features' contributions, 1 is unchanged.
- **Pointing game** and **energy in the mask** on composed scenes, at the residual stream of the
  dictionary's block and at its site (`vision_sae.evaluation.pointing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.harvest import choose
from vision_sae.attribution import targets
from vision_sae.attribution.faithfulness import Faithfulness, faithfulness
from vision_sae.attribution.ledger import (
    Ledger,
    Scene,
    exact_ablation,
    ledger,
)
from vision_sae.attribution.targets import Target
from vision_sae.bundles.bundle import Bundle
from vision_sae.descriptions.scores.bootstrap import Counts, interval
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.pointing import NODES, Pointing, pointing
from vision_sae.models.bound import bound
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.registry import load_model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Reading

_ABLATED = 12
_NOISE = 0.05
"""Standard deviation of the noise, in those of the model's input."""
_SEED = 11


class Estimate(NamedTuple):
    """A mean over pictures with its 95 % bootstrap interval."""

    mean: float
    lower: float
    upper: float


def estimate(values: Sequence[float] | NDArray[np.floating[Any]]) -> Estimate:
    """The mean of some values; the interval is the mean itself for a single one."""
    given = np.asarray(values, dtype=np.float64)

    def mean(counts: Counts) -> NDArray[np.float64]:
        return np.asarray(counts @ given / counts.sum(1))

    found = interval(mean, [len(given)], _SEED)
    middle = float(given.mean())
    return Estimate(middle, *(found or (middle, middle)))


@dataclass(frozen=True)
class AttributionReport:
    """What was measured over the pictures."""

    pictures: int
    gap_median: float
    gap_p95: float
    """Completeness gap of integrated gradients, as a share of the span."""
    gap_act_x_grad_median: float
    error_share: float
    """What the SAE error contributes, as a share of the absolute contributions of all."""
    rank_correlation: Estimate
    areas: dict[str, dict[str, Estimate]]
    """{"code deletion": {"attribution", "random", "activation"}}, and so on."""
    under_noise: Estimate
    under_shuffled_weights: Estimate
    pointing: dict[str, dict[str, Pointing]] = field(default_factory=dict)
    """{site: {attribute of composed scenes: figures}}, where it was asked for."""

    def to_json(self) -> dict[str, Any]:
        """All of it, in plain JSON."""
        made = asdict(self)
        for name in ("rank_correlation", "under_noise", "under_shuffled_weights"):
            made[name] = getattr(self, name)._asdict()
        made["areas"] = {
            test: {order: area._asdict() for order, area in areas.items()}
            for test, areas in self.areas.items()
        }
        made["pointing"] = {
            site: {attribute: figures._asdict() for attribute, figures in found.items()}
            for site, found in self.pointing.items()
        }
        return made

    def lines(self) -> list[str]:
        """The figures for people."""

        def shown(value: Estimate) -> str:
            return f"{value.mean:.3f} [{value.lower:.3f}, {value.upper:.3f}]"

        return [
            f"{self.pictures} pictures",
            f"completeness gap over span: median {self.gap_median:.1e}, 95 % below "
            f"{self.gap_p95:.1e} (act x grad: median {self.gap_act_x_grad_median:.2f})",
            f"share of the SAE error {self.error_share:.3f}",
            f"rank correlation of act x grad with exact ablation {shown(self.rank_correlation)}",
            *(
                f"{test}: " + ", ".join(f"{order} {shown(area)}" for order, area in areas.items())
                for test, areas in self.areas.items()
            ),
            f"same contributions under noise {shown(self.under_noise)}, with shuffled weights "
            f"{shown(self.under_shuffled_weights)}",
            *(
                f"{attribute}s of scenes at {site}: pointing game {figures.hits:.3f}, energy in "
                f"the object's mask {figures.energy:.3f}"
                for site, found in self.pointing.items()
                for attribute, figures in found.items()
            ),
        ]


def attribution_report(
    path: Path,
    pictures: Sequence[Picture],
    *,
    limit: int,
    tested: int,
    scenes: int = 0,
    reading: Reading | None = None,
    progress: bool = True,
) -> AttributionReport:
    """`evaluate_attribution` of a published bundle, in float32; with ``scenes`` also `pointing` on
    so many.

    Files that cannot be read are left out and told to ``reading``; without one they are refused.

    Raises `InvalidInputError` for a bundle whose model is no ViT or CLIP.
    """
    bundle = Bundle(path)
    identity = bundle.manifest["model"]
    model = bound(load_model(identity["name"], dtype="float32"), identity)
    if not isinstance(model, VitModel):
        raise InvalidInputError(
            f"{path} is of {identity['name']}, which is no ViT or CLIP", field="bundle"
        )
    account = Reading(strict=True) if reading is None else reading
    chosen = list(account.each(choose(pictures, limit), model.preprocess))
    if not chosen:
        raise InvalidInputError("none of the pictures could be read", field="images")
    images = [pixels for _, pixels in chosen]
    wanted = targets_of(model, [picture.caption for picture, _ in chosen])
    found = SiteDictionary(bundle.dictionary, bundle.site)
    report = evaluate_attribution(model, found, images, wanted, tested=tested, progress=progress)
    if not scenes:
        return report
    return replace(report, pointing=pointing(model, sites_of(found), scenes, progress=progress))


def sites_of(found: SiteDictionary) -> list[str]:
    """Where attributions at a dictionary's block are asked where they point: the residual stream
    behind it, and the dictionary's own site."""
    block = found.site.rpartition(".")[0]
    return list(dict.fromkeys((f"{block}.resid", found.site)))


def targets_of(model: Model, captions: Sequence[str]) -> list[Target]:
    """A target for each picture: its caption, for a model with texts; otherwise a random linear
    head on the embedding."""
    if isinstance(model, ContrastiveModel):
        return [targets.similarity(vector) for vector in model.embed_texts(captions)]
    random = torch.Generator().manual_seed(_SEED)
    with torch.inference_mode():
        size = model.preprocessing
        blank = torch.zeros(1, 3, size.height, size.width)
        dim = model.forward(blank).embedding.shape[1]
    return [targets.probe(torch.randn(dim, generator=random)) for _ in captions]


def evaluate_attribution(
    model: VitModel,
    found: SiteDictionary,
    images: Sequence[Tensor],
    wanted: Sequence[Target],
    *,
    tested: int | None = None,
    progress: bool = True,
) -> AttributionReport:
    """Measure attributions of ``images``, each (3, H, W), to a target each. Faithfulness, ablation
    and sensitivity take many passes: they are measured on the first ``tested`` only."""
    noise = torch.Generator().manual_seed(_SEED)
    gaps, gaps_fast, errors = [], [], []
    ranks, moved, shuffled = [], [], []
    tests: list[list[Faithfulness]] = []
    pairs = list(zip(images, wanted, strict=True))
    for number, (image, target) in enumerate(tqdm(pairs, desc="attribution", disable=not progress)):
        scene = Scene(model, image, target, [found.site])
        books = ledger(scene, found, nodes=NODES)
        fast = ledger(scene, found, nodes=1)
        span = abs(books.target_value - books.baseline_value)
        gaps.append(abs(books.completeness_gap) / max(span, 1e-12))
        gaps_fast.append(abs(fast.completeness_gap) / max(span, 1e-12))
        of_error, of_codes = (
            float(part.abs().sum()) for part in (books.error, books.contributions.values)
        )
        errors.append(of_error / max(of_error + of_codes, 1e-12))
        if tested is not None and number >= tested:
            continue
        ranks.append(_rank_correlation(scene, found, fast))
        features, patches = books.per_feature.float(), books.per_patch.float()
        tests.append(faithfulness(scene, found, features, patches, image, seed=number))
        noisy = image + _NOISE * image.std() * torch.randn(image.shape, generator=noise)
        other = ledger(Scene(model, noisy, target, [found.site]), found, nodes=NODES)
        moved.append(_cosine(books, other))
        with _shuffled_behind(model, found.site):
            other = ledger(Scene(model, image, target, [found.site]), found, nodes=NODES)
        shuffled.append(_cosine(books, other))
    return AttributionReport(
        len(images),
        float(np.median(gaps)),
        float(np.quantile(gaps, 0.95)),
        float(np.median(gaps_fast)),
        float(np.mean(errors)),
        estimate(ranks),
        _areas(tests),
        estimate(moved),
        estimate(shuffled),
    )


def _rank_correlation(scene: Scene, found: SiteDictionary, fast: Ledger) -> float:
    """Spearman's, over the features that contribute most by act x grad."""
    largest = torch.argsort(-fast.per_feature.abs())[:_ABLATED]
    exact = exact_ablation(scene, found, largest.tolist()).per_feature[largest]
    return float(spearmanr(fast.per_feature[largest].numpy(), exact.numpy()).statistic)


def _areas(tests: Sequence[Sequence[Faithfulness]]) -> dict[str, dict[str, Estimate]]:
    areas = {}
    for position, kind in enumerate(tests[0]):
        same = [each[position] for each in tests]
        found = {
            "attribution": estimate([test.area for test in same]),
            "random": estimate([test.area_random for test in same]),
            "activation": estimate([test.area_activation for test in same]),
        }
        areas[f"{kind.space} {kind.test}"] = found
    return areas


def _cosine(one: Ledger, other: Ledger) -> float:
    return float(torch.cosine_similarity(one.per_feature, other.per_feature, dim=0))


@contextmanager
def _shuffled_behind(model: VitModel, site: str) -> Iterator[None]:
    """The weights of the blocks behind a site's own, each in another order of its own."""
    random = torch.Generator().manual_seed(_SEED)
    blocks = model.backbone.blocks()[int(site.split(".")[1]) + 1 :]
    weights = [weight for block, *_ in blocks for weight in block.parameters()]
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            order = torch.randperm(weight.numel(), generator=random)
            weight.copy_(weight.flatten()[order].view_as(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(weights, kept, strict=True):
                weight.copy_(before)
