"""The counterparts of a bundle's features in another bundle (dictionary, layer or model).

Two bundles with the same pictures and the same patches are compared by the correlation of their
features' activations over all patches. Two bundles of one site of one model with different
pictures are compared by the cosine of decoder directions. Each feature gets its nearest
counterpart, and also, in dictionaries that are not too wide, a one-to-one partner (the assignment
of largest total; Kuhn 1955). The mean similarities are reported with their chance level, measured
with the pictures of one bundle permuted, or with random directions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from vision_sae.bundles.co_activation import Activations
from vision_sae.bundles.layout import MATCHES
from vision_sae.bundles.publish import republish
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.bundles.relations import Matches
from vision_sae.dictionaries import matching
from vision_sae.dictionaries.matching import Similarities, cosines
from vision_sae.errors import InvalidInputError, MismatchError

_SEED = 7


def match_bundles(path: Path, against: Path) -> Bundle:
    """Publish the bundle at ``path`` again with its features' counterparts in ``against``.

    Raises `MismatchError` for bundles that share neither pictures nor a site, and
    `InvalidInputError` for bundles of the same name.
    """
    bundle, other = read_bundle(path), read_bundle(against)
    if bundle.name == other.name:
        raise InvalidInputError(
            f"both bundles are called {bundle.name}; rename one of them", field="against"
        )
    measure, similarities, by_chance = _compared(bundle, other)
    one_to_one = max(bundle.dictionary.width, other.dictionary.width) <= matching.HUNGARIAN_WIDTH
    matches = _matches(similarities, one_to_one=one_to_one)
    chance = _matches(by_chance, one_to_one=one_to_one)
    entry = {
        "dictionary_sha256": other.dictionary_sha256,
        "measure": measure,
        **_means(matches),
        **{f"{name}_floor": value for name, value in _means(chance).items()},
    }

    def write(staging: Path) -> None:
        (staging / MATCHES).mkdir(exist_ok=True)
        save_file(matches._asdict(), staging / MATCHES / f"{other.name}.safetensors")

    known = bundle.manifest.get("matches", {})
    return republish(bundle, path, {"matches": known | {other.name: entry}}, write=write)


def _means(matches: Matches) -> dict[str, float]:
    pairs = {
        "nearest": matches.similarities[matches.nearest >= 0],
        "partner": matches.partner_similarities[matches.partner >= 0],
    }
    return {name: float(values.mean()) for name, values in pairs.items() if len(values)}


def _compared(bundle: Bundle, other: Bundle) -> tuple[str, Similarities, Similarities]:
    """(name of the measure, similarities, similarities by chance) of two bundles' features."""
    same_pictures = bundle.manifest["data_sha256"] == other.manifest["data_sha256"]
    if same_pictures and _same_places(bundle, other):
        ours = Activations(bundle.codes, bundle.dictionary.width)
        theirs = Activations(other.codes, other.dictionary.width)
        pictures = np.random.default_rng(_SEED).permutation(len(bundle.images))
        patches = bundle.grid.patches
        rows = (pictures[:, None] * patches + np.arange(patches)).ravel()
        mixed = theirs.permuted(rows)
        return (
            "activations",
            _correlations(ours, theirs),
            _correlations(ours, mixed),
        )
    same_model = all(
        bundle.manifest["model"][key] == other.manifest["model"][key]
        for key in ("weights_sha256", "preprocessing")
    )
    if same_model and bundle.site == other.site:
        random = torch.Generator().manual_seed(_SEED)
        decoders = [each.dictionary.decoder for each in (bundle, other)]
        chance = [torch.randn(decoder.shape, generator=random) for decoder in decoders]
        return "directions", cosines(*decoders), cosines(*chance)
    raise MismatchError(
        f"{bundle.name} and {other.name} have neither the same pictures on the same grid, so that "
        "their activations could be compared, nor the same site, so that their directions could; "
        "build one of them on the other's pictures",
        field="against",
    )


def _same_places(bundle: Bundle, other: Bundle) -> bool:
    """Whether patches of the same number cover the same part of a picture, up to a pixel."""
    if (bundle.grid.rows, bundle.grid.cols) != (other.grid.rows, other.grid.cols):
        return False
    sizes = {(record.width, record.height): row for row, record in enumerate(bundle.images)}
    return all(
        np.allclose(
            bundle.grid.boxes(bundle.geometry(row)), other.grid.boxes(other.geometry(row)), atol=1
        )
        for row in sizes.values()
    )


def _correlations(ours: Activations, theirs: Activations) -> Similarities:
    return Similarities(
        ours.width,
        lambda features: torch.from_numpy(ours.correlations(features.numpy(), theirs)),
    )


def _matches(similarities: Similarities, *, one_to_one: bool) -> Matches:
    width = similarities.width
    matches = Matches(
        np.full(width, -1, np.int32),
        np.zeros(width, np.float32),
        np.full(width, -1, np.int32),
        np.zeros(width, np.float32),
    )
    if one_to_one:  # the similarities are used twice
        similarities = similarities.computed()
    pairs = matching.nearest(similarities)
    matches.nearest[pairs.left], matches.similarities[pairs.left] = pairs.right, pairs.similarities
    if one_to_one:
        pairs = matching.assign(similarities)
        matches.partner[pairs.left] = pairs.right
        matches.partner_similarities[pairs.left] = pairs.similarities
    return matches
