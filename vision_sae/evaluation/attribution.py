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
- **Pointing game** on composed scenes: whether the patch with the largest contribution lies on the
  object that the target is about, or 15 pixels beside it (Zhang et al. 2018, arXiv:1608.00507). To
  ask where the model looks, play it at the residual stream: all evidence passes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from vision_sae.activations.harvest import choose
from vision_sae.attribution import targets
from vision_sae.attribution.faithfulness import Faithfulness, faithfulness
from vision_sae.attribution.ledger import (
    Ledger,
    Reference,
    Scene,
    exact_ablation,
    ledger,
    mean_code,
)
from vision_sae.attribution.targets import Target
from vision_sae.bundles.bundle import Bundle
from vision_sae.descriptions.scores.bootstrap import Counts, interval
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.planted_scenes import VALUES
from vision_sae.evaluation.planted_scenes import Scene as Drawn
from vision_sae.models.bound import bound
from vision_sae.models.protocol import ContrastiveModel, Model
from vision_sae.models.registry import load_model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture

NODES = 8
_TOLERANCE = 15
"""Pixels of the model's input that the pointing game allows, as in its source."""
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

    def to_json(self) -> dict[str, Any]:
        """All of it, in plain JSON."""
        made = asdict(self)
        for name in ("rank_correlation", "under_noise", "under_shuffled_weights"):
            made[name] = getattr(self, name)._asdict()
        made["areas"] = {
            test: {order: area._asdict() for order, area in areas.items()}
            for test, areas in self.areas.items()
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
        ]


def attribution_report(
    path: Path, pictures: Sequence[Picture], *, limit: int, tested: int, progress: bool = True
) -> AttributionReport:
    """`evaluate_attribution` of a published bundle, in float32.

    Raises `InvalidInputError` for a bundle whose model is no ViT or CLIP.
    """
    bundle = Bundle(path)
    identity = bundle.manifest["model"]
    model = bound(load_model(identity["name"], dtype="float32"), identity)
    if not isinstance(model, VitModel):
        raise InvalidInputError(
            f"{path} is of {identity['name']}, which is no ViT or CLIP", field="bundle"
        )
    chosen = choose(pictures, limit)
    images = [model.preprocess(picture.load()) for picture in chosen]
    wanted = targets_of(model, [picture.caption for picture in chosen])
    found = SiteDictionary(bundle.dictionary, bundle.site)
    return evaluate_attribution(model, found, images, wanted, tested=tested, progress=progress)


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


class Heads(NamedTuple):
    """Linear heads that tell an attribute of composed scenes from the model's embedding."""

    weights: Tensor
    """One row a value (C, E)."""
    biases: Tensor
    accuracy: float
    """On the scenes they were fitted on."""

    def target(self, value: int) -> Target:
        """Why this value rather than the mean of all."""
        return targets.probe(
            self.weights[value] - self.weights.mean(0),
            float(self.biases[value] - self.biases.mean()),
        )


def heads(embedded: NDArray[np.float32], scenes: Sequence[Drawn], attribute: str) -> Heads:
    """Fit heads for one attribute of `VALUES` on the embeddings (N, E) of scenes."""
    position = list(VALUES).index(attribute)
    classes = np.array([scene.attributes.numbers[position] for scene in scenes])
    scale = float(np.abs(embedded).mean())
    regression = LogisticRegression(max_iter=3000).fit(embedded / scale, classes)
    return Heads(
        torch.from_numpy(regression.coef_ / scale).float(),
        torch.from_numpy(regression.intercept_).float(),
        float(regression.score(embedded / scale, classes)),
    )


def inputs(model: Model, pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures made ready for a model (N, 3, H, W)."""
    return torch.stack([model.preprocess(picture) for picture in pictures])


def mean_of(model: Model, found: SiteDictionary, images: Tensor) -> Reference:
    """The mean code, and the mean error, of pictures (N, 3, H, W)."""
    total, codes, count = torch.zeros(1), torch.zeros(found.dictionary.width), 0
    with torch.inference_mode():
        for image in images:
            with model.capture([found.site], stop=True) as captured:
                model.forward(image[None])
            vectors = captured[found.site][0, model.grid.special :].float().cpu()
            encoded = found.dictionary.encode(vectors)
            codes.index_add_(0, encoded.indices.reshape(-1), encoded.values.reshape(-1))
            total, count = total + vectors.sum(0), count + len(vectors)
    return mean_code(total / count, codes / count)


def pointing_game(
    model: Model,
    found: SiteDictionary,
    scenes: Sequence[Drawn],
    asked: Heads,
    attribute: str,
    reference: Reference | None = None,
) -> list[bool]:
    """For each scene, whether the patch that contributes most to the attribute's true value,
    measured from ``reference``, lies on the object, or at most `_TOLERANCE` pixels beside it."""
    grid, position = model.grid, list(VALUES).index(attribute)
    hits = []
    for scene in scenes:
        target = asked.target(scene.attributes.numbers[position])
        image = model.preprocess(scene.image)
        seen = Scene(model, image, target, [found.site])
        books = ledger(seen, found, nodes=NODES, reference=reference)
        geometry = model.preprocessing.geometry(*scene.image.size)
        box = grid.boxes(geometry)[int(books.per_patch.argmax())]
        beside = _TOLERANCE / geometry.scale_x
        x0, y0 = np.round(box[:2] - beside).astype(int).clip(0)
        x1, y1 = np.round(box[2:] + beside).astype(int)
        hits.append(bool(scene.parts["object"][y0:y1, x0:x1].any()))
    return hits
