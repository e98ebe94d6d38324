"""Where attributions point, on composed scenes in which the part of every pixel is known.

Linear heads predict the colours and shapes of scenes from a model's embedding. Each scene's true
value is attributed to the patches of a site, with the mean site vector as reference. Two figures:

- **pointing game**: whether the patch that contributes most lies on the object, or at most 15
  pixels away (Zhang et al. 2018, arXiv:1608.00507);
- **energy in the mask**: the share of all positive contributions that lies on the object (Wang et
  al. 2020, arXiv:1910.01279, who use boxes).

To learn where the model looks, choose a site of the residual stream, through which all evidence
passes. The update of one block (a site of kind ``update``) may contribute against a value that
earlier blocks have settled. The total contribution of a patch does not depend on a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from vision_sae.attribution import targets
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target
from vision_sae.evaluation.tasks import embeddings
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.models.protocol import Model
from vision_sae.pictures.scenes import VALUES, Mask, Scene, scenes

ATTRIBUTES = ("colour", "shape")
NODES = 8
_FITTED = 600
"""Scenes that the heads are fitted on."""
_AVERAGED = 60
"""The first scenes of these, whose mean site vector is the reference."""
_TOLERANCE = 15
"""A hit may lie this many pixels of the model's input beside the object, as in the paper."""
_SEED = 21


class Pointing(NamedTuple):
    """The figures of one attribute over some scenes."""

    hits: float
    """Share of scenes in which the strongest patch hits the object."""
    energy: float
    """Mean energy in the mask of the object."""


class Heads(NamedTuple):
    """Linear heads that predict an attribute of composed scenes from the model's embedding."""

    weights: Float[Tensor, "C E"]
    """One row for each value of the attribute."""
    biases: Float[Tensor, " C"]
    accuracy: float
    """The accuracy on the scenes that the heads were fitted on."""

    def target(self, value: int) -> Target:
        """The target of this value against the mean of all values."""
        return targets.probe(
            self.weights[value] - self.weights.mean(0),
            float(self.biases[value] - self.biases.mean()),
        )


def heads(embedded: Float[np.ndarray, "N E"], scenes: Sequence[Scene], attribute: str) -> Heads:
    """Fit heads for one attribute of `VALUES` on the embeddings of scenes."""
    position = list(VALUES).index(attribute)
    classes = np.array([scene.attributes.numbers[position] for scene in scenes])
    scale = float(np.abs(embedded).mean())
    regression = LogisticRegression(max_iter=3000).fit(embedded / scale, classes)
    return Heads(
        torch.from_numpy(regression.coef_ / scale).float(),
        torch.from_numpy(regression.intercept_).float(),
        float(regression.score(embedded / scale, classes)),
    )


def pointing(
    model: Model, sites: Sequence[str], count: int = 100, *, progress: bool = True
) -> dict[str, dict[str, Pointing]]:
    """{site: {attribute: figures}} over ``count`` scenes that no head was fitted on."""
    drawn = list(scenes(_FITTED + count, _SEED))
    fitted, held = drawn[:_FITTED], drawn[_FITTED:]
    images = torch.stack([model.preprocess(scene.image) for scene in fitted])
    embedded = embeddings(model, images).numpy()
    figures_of: dict[str, dict[str, Pointing]] = {site: {} for site in sites}
    heads_of = {name: heads(embedded, fitted, name) for name in ATTRIBUTES}
    rounds = [(site, name) for site in sites for name in ATTRIBUTES]
    means = {site: mean_vector(model, site, images[:_AVERAGED]) for site in sites}
    for site, name in tqdm(rounds, desc="pointing", disable=not progress):
        figures = [pointed(model, site, means[site], scene, heads_of[name], name) for scene in held]
        hits, energy = np.mean(np.array(figures), axis=0).tolist()
        figures_of[site][name] = Pointing(hits, energy)
    return figures_of


def mean_vector(model: Model, site: str, images: Float[Tensor, "N C H W"]) -> Float[Tensor, " D"]:
    """The mean site vector over all patches of pictures."""
    means = []
    with torch.inference_mode():
        for image in images:
            with model.capture([site], stop=True) as captured:
                model.forward(image[None])
            means.append(captured[site][0, model.grid.special :].float().mean(0))
    return torch.stack(means).mean(0).cpu()


def pointed(
    model: Model,
    site: str,
    start: Float[Tensor, " D"],
    scene: Scene,
    head: Heads,
    attribute: str,
) -> tuple[bool, float]:
    """(whether the strongest patch hits the object, the energy in the object's mask) for one scene.

    The reference of the attribution is the vector ``start`` at every patch.
    """
    target = head.target(scene.attributes.numbers[list(VALUES).index(attribute)])
    seen = Observation(model, model.preprocess(scene.image), target, [site])
    update = seen.updates[site]
    begin = start.to(update.device).expand_as(update)
    contributed = ((update - begin) * seen.gradient(site, begin, NODES)).sum(1).cpu().numpy()
    geometry = model.preprocessing.geometry(*scene.image.size)
    shown = scene.parts["object"]
    strongest = int(contributed.argmax())
    speaking = np.maximum(contributed, 0)
    share = float(speaking @ covered(shown, model.grid, geometry) / max(speaking.sum(), 1e-12))
    return hits(shown, model.grid, geometry, strongest), share


def hits(shown: Mask, grid: PatchGrid, geometry: Geometry, patch: int) -> bool:
    """Whether a patch lies on the mask ``shown`` (H, W), or at most `_TOLERANCE` pixels away."""
    beside, box = _TOLERANCE / geometry.scale_x, grid.boxes(geometry)[patch]
    x0, y0 = np.round(box[:2] - beside).astype(int).clip(0)
    x1, y1 = np.round(box[2:] + beside).astype(int)
    return bool(shown[y0:y1, x0:x1].any())


def covered(shown: Mask, grid: PatchGrid, geometry: Geometry) -> Float64[np.ndarray, " P"]:
    """The share of each patch that the mask ``shown`` (H, W) covers."""
    corners = np.round(grid.boxes(geometry)).astype(int)
    return np.array([shown[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in corners])
