"""Where attributions point, on composed scenes, whose every pixel belongs to a known part.

Linear heads tell the colours and shapes of scenes from a model's embedding, and each scene's true
value is attributed to the patches of a site, measured from the mean site vector. Two figures:

- **pointing game**: whether the patch that contributes most lies on the object, or 15 pixels beside
  it (Zhang et al. 2018, arXiv:1608.00507);
- **energy in the mask**: the share of all that speaks for the value that lies on the object (Wang
  et al. 2020, arXiv:1910.01279, there of boxes).

To ask where the model looks, choose a site of the residual stream: everything that it goes by
passes there. What one block adds (a site of kind ``update``) may well speak against a value that
the blocks before have settled. What a patch contributes in all does not depend on a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from tqdm import tqdm

from vision_sae.attribution import targets
from vision_sae.attribution.ledger import Scene
from vision_sae.attribution.targets import Target
from vision_sae.evaluation.planted_scenes import VALUES, Mask, scenes
from vision_sae.evaluation.planted_scenes import Scene as Drawn
from vision_sae.evaluation.tasks import embeddings
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.models.protocol import Model

ATTRIBUTES = ("colour", "shape")
NODES = 8
_FITTED = 600
"""Scenes that the heads are fitted on."""
_AVERAGED = 60
"""Of them, those whose site vectors are the mean that is measured from."""
_TOLERANCE = 15
"""Pixels of the model's input beside the object that are a hit, as in the source."""
_SEED = 21


class Pointing(NamedTuple):
    """Of one attribute, over some scenes."""

    hits: float
    """Share of scenes that the pointing game was won in."""
    energy: float
    """Mean energy in the mask of the object."""


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


def pointing(
    model: Model, sites: Sequence[str], count: int = 100, *, progress: bool = True
) -> dict[str, dict[str, Pointing]]:
    """{site: {attribute: figures}} over ``count`` scenes that no head was fitted on."""
    drawn = list(scenes(_FITTED + count, _SEED))
    fitted, held = drawn[:_FITTED], drawn[_FITTED:]
    images = torch.stack([model.preprocess(scene.image) for scene in fitted])
    embedded = embeddings(model, images).numpy()
    found: dict[str, dict[str, Pointing]] = {site: {} for site in sites}
    asked = {name: heads(embedded, fitted, name) for name in ATTRIBUTES}
    rounds = [(site, name) for site in sites for name in ATTRIBUTES]
    means = {site: mean_vector(model, site, images[:_AVERAGED]) for site in sites}
    for site, name in tqdm(rounds, desc="pointing", disable=not progress):
        figures = [pointed(model, site, means[site], scene, asked[name], name) for scene in held]
        hits, energy = np.mean(np.array(figures), axis=0).tolist()
        found[site][name] = Pointing(hits, energy)
    return found


def mean_vector(model: Model, site: str, images: Tensor) -> Tensor:
    """The mean of a site over all patches of pictures (N, 3, H, W) -> (D)."""
    means = []
    with torch.inference_mode():
        for image in images:
            with model.capture([site], stop=True) as captured:
                model.forward(image[None])
            means.append(captured[site][0, model.grid.special :].float().cpu().mean(0))
    return torch.stack(means).mean(0)


def pointed(
    model: Model, site: str, start: Tensor, scene: Drawn, asked: Heads, attribute: str
) -> tuple[bool, float]:
    """(whether the strongest patch hits the object, the energy in its mask) for one scene, whose
    attribution at a site is measured from the vector ``start`` (D) at every patch."""
    target = asked.target(scene.attributes.numbers[list(VALUES).index(attribute)])
    seen = Scene(model, model.preprocess(scene.image), target, [site])
    update = seen.updates[site]
    begin = start.expand_as(update)
    contributed = ((update - begin) * seen.gradient(site, begin, NODES)).sum(1).numpy()
    geometry = model.preprocessing.geometry(*scene.image.size)
    shown = scene.parts["object"]
    strongest = int(contributed.argmax())
    speaking = np.maximum(contributed, 0)
    share = float(speaking @ covered(shown, model.grid, geometry) / max(speaking.sum(), 1e-12))
    return hits(shown, model.grid, geometry, strongest), share


def hits(shown: Mask, grid: PatchGrid, geometry: Geometry, patch: int) -> bool:
    """Whether a patch lies on what is ``shown`` (H, W), or at most `_TOLERANCE` pixels from it."""
    beside, box = _TOLERANCE / geometry.scale_x, grid.boxes(geometry)[patch]
    x0, y0 = np.round(box[:2] - beside).astype(int).clip(0)
    x1, y1 = np.round(box[2:] + beside).astype(int)
    return bool(shown[y0:y1, x0:x1].any())


def covered(shown: Mask, grid: PatchGrid, geometry: Geometry) -> NDArray[np.float64]:
    """Share of each patch (P) that what is ``shown`` (H, W) covers."""
    corners = np.round(grid.boxes(geometry)).astype(int)
    return np.array([shown[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in corners])
