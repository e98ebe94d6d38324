"""The quality of attributions, measured over many pictures.

- **Sums**: the completeness gap of integrated gradients and of act x grad, as a share of the span
  from the reference's target to the picture's.
- **Single features**: rank correlation of act x grad with exact ablation, over the
  features that contribute most.
- **Deletion and insertion** of features and of patches, with random and activation-ordered controls
  (`vision_sae.attribution.faithfulness`).
- **Sensitivity**: an attribution should change little under weak noise on the picture, and much
  when the weights behind the site are shuffled (Adebayo et al. 2018, arXiv:1810.03292). Measured as
  cosines of the features' contributions; 1 means unchanged.
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
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.harvest import choose
from vision_sae.attribution import targets
from vision_sae.attribution.faithfulness import Faithfulness, faithfulness
from vision_sae.attribution.ledger import Ledger, ledger
from vision_sae.attribution.methods.exact_ablation import exact_ablation
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target
from vision_sae.bundles.read import read_bundle
from vision_sae.devices import recorded
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.pointing import NODES, Pointing, pointing
from vision_sae.models.bound import bound
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Reading
from vision_sae.statistics.bootstrap import Counts, interval

_ABLATED = 12
_NOISE = 0.05
"""Standard deviation of the noise over that of the model's input."""
_SEED = 11


class MeanWithInterval(NamedTuple):
    """A mean over pictures with its 95 % bootstrap interval."""

    mean: float
    lower: float
    upper: float


def mean_with_interval(values: Sequence[float] | NDArray[np.floating[Any]]) -> MeanWithInterval:
    """The mean of some values; for a single value, the interval is the value itself."""
    numbers = np.asarray(values, dtype=np.float64)

    def mean(counts: Counts) -> NDArray[np.float64]:
        return np.asarray(counts @ numbers / counts.sum(1))

    bounds = interval(mean, [len(numbers)], _SEED)
    middle = float(numbers.mean())
    return MeanWithInterval(middle, *(bounds or (middle, middle)))


@dataclass(frozen=True)
class AttributionReport:
    """The figures over all pictures."""

    pictures: int
    gap_median: float
    gap_p95: float
    """Completeness gap of integrated gradients, as a share of the span."""
    gap_act_x_grad_median: float
    error_share: float
    """Absolute contributions of the SAE error, as a share of all absolute contributions."""
    rank_correlation: MeanWithInterval
    areas: dict[str, dict[str, MeanWithInterval]]
    """{"code deletion": {"attribution", "random", "activation"}}, and so on."""
    under_noise: MeanWithInterval
    under_shuffled_weights: MeanWithInterval
    pointing: dict[str, dict[str, Pointing]] = field(default_factory=dict)
    """{site: {attribute of composed scenes: figures}}; empty unless scenes were requested."""
    computed: dict[str, str] = field(default_factory=dict)
    """The device and the precision; see `devices.recorded`."""

    def to_json(self) -> dict[str, Any]:
        """All figures as plain JSON."""
        report = asdict(self)
        for name in ("rank_correlation", "under_noise", "under_shuffled_weights"):
            report[name] = getattr(self, name)._asdict()
        report["areas"] = {
            test: {order: area._asdict() for order, area in areas.items()}
            for test, areas in self.areas.items()
        }
        report["pointing"] = {
            site: {attribute: figures._asdict() for attribute, figures in by_attribute.items()}
            for site, by_attribute in self.pointing.items()
        }
        return report

    def lines(self) -> list[str]:
        """The figures for people."""

        def shown(value: MeanWithInterval) -> str:
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
                for site, by_attribute in self.pointing.items()
                for attribute, figures in by_attribute.items()
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
    """`evaluate_attribution` of a published bundle, in float32, and `pointing` on ``scenes``
    scenes.

    Files that cannot be read are left out and reported to ``reading``; without it they are refused.

    Raises `InvalidInputError` for a bundle whose model is no ViT or CLIP.
    """
    bundle = read_bundle(path)
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
    site_dictionary = SiteDictionary(bundle.dictionary, bundle.site)
    report = evaluate_attribution(
        model, site_dictionary, images, wanted, tested=tested, progress=progress
    )
    report = replace(report, computed=recorded(model.device, model.dtype))
    if not scenes:
        return report
    return replace(
        report, pointing=pointing(model, sites_of(site_dictionary), scenes, progress=progress)
    )


def sites_of(site_dictionary: SiteDictionary) -> list[str]:
    """The sites of the pointing game: the residual stream behind a dictionary's block, and the
    dictionary's own site."""
    block = site_dictionary.site.rpartition(".")[0]
    return list(dict.fromkeys((f"{block}.resid", site_dictionary.site)))


def targets_of(model: Model, captions: Sequence[str]) -> list[Target]:
    """A target for each picture: similarity to its caption, for a model with texts; otherwise a
    random linear head on the embedding."""
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
    site_dictionary: SiteDictionary,
    images: Sequence[Float[Tensor, "C H W"]],
    wanted: Sequence[Target],
    *,
    tested: int | None = None,
    progress: bool = True,
) -> AttributionReport:
    """Measure attributions of ``images`` to one target each.

    Faithfulness, ablation and sensitivity take many passes, so they are measured only on the first
    ``tested`` pictures.
    """
    noise = torch.Generator().manual_seed(_SEED)
    gaps, gaps_fast, errors = [], [], []
    ranks, moved, shuffled = [], [], []
    tests: list[list[Faithfulness]] = []
    pairs = list(zip(images, wanted, strict=True))
    for number, (image, target) in enumerate(tqdm(pairs, desc="attribution", disable=not progress)):
        observation = Observation(model, image, target, [site_dictionary.site])
        integrated = ledger(observation, site_dictionary, nodes=NODES)
        fast = ledger(observation, site_dictionary, nodes=1)
        span = abs(integrated.target_value - integrated.baseline_value)
        gaps.append(abs(integrated.completeness_gap) / max(span, 1e-12))
        gaps_fast.append(abs(fast.completeness_gap) / max(span, 1e-12))
        of_error, of_codes = (
            float(part.abs().sum()) for part in (integrated.error, integrated.contributions.values)
        )
        errors.append(of_error / max(of_error + of_codes, 1e-12))
        if tested is not None and number >= tested:
            continue
        ranks.append(_rank_correlation(observation, site_dictionary, fast))
        features, patches = integrated.per_feature.float(), integrated.per_patch.float()
        tests.append(
            faithfulness(observation, site_dictionary, features, patches, image, seed=number)
        )
        noisy = image + _NOISE * image.std() * torch.randn(image.shape, generator=noise)
        other = ledger(
            Observation(model, noisy, target, [site_dictionary.site]), site_dictionary, nodes=NODES
        )
        moved.append(_cosine(integrated, other))
        with _shuffled_behind(model, site_dictionary.site):
            other = ledger(
                Observation(model, image, target, [site_dictionary.site]),
                site_dictionary,
                nodes=NODES,
            )
        shuffled.append(_cosine(integrated, other))
    return AttributionReport(
        len(images),
        float(np.median(gaps)),
        float(np.quantile(gaps, 0.95)),
        float(np.median(gaps_fast)),
        float(np.mean(errors)),
        mean_with_interval(ranks),
        _areas(tests),
        mean_with_interval(moved),
        mean_with_interval(shuffled),
    )


def _rank_correlation(
    observation: Observation, site_dictionary: SiteDictionary, fast: Ledger
) -> float:
    """Spearman's correlation of act x grad with exact ablation, over the features that contribute
    most by act x grad."""
    largest = torch.argsort(-fast.per_feature.abs())[:_ABLATED]
    exact = exact_ablation(observation, site_dictionary, largest.tolist()).per_feature[largest]
    return float(spearmanr(fast.per_feature[largest].numpy(), exact.numpy()).statistic)


def _areas(tests: Sequence[Sequence[Faithfulness]]) -> dict[str, dict[str, MeanWithInterval]]:
    areas = {}
    for position, kind in enumerate(tests[0]):
        same = [each[position] for each in tests]
        means = {
            "attribution": mean_with_interval([test.area for test in same]),
            "random": mean_with_interval([test.area_random for test in same]),
            "activation": mean_with_interval([test.area_activation for test in same]),
        }
        areas[f"{kind.space} {kind.test}"] = means
    return areas


def _cosine(one: Ledger, other: Ledger) -> float:
    return float(torch.cosine_similarity(one.per_feature, other.per_feature, dim=0))


@contextmanager
def _shuffled_behind(model: VitModel, site: str) -> Iterator[None]:
    """Shuffle the weights of all blocks behind a site's block during the body."""
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
