"""The figures of a dictionary or bundle on a held-out store, as in ``vision-sae evaluate``.

All figures of codes come from one pass over the store. The model runs only when the caller passes
pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from vision_sae import devices
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles import layout
from vision_sae.bundles.build import check_match
from vision_sae.bundles.publish import republish
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.downstream import Downstream, downstream
from vision_sae.dictionaries.matching import Matching, match
from vision_sae.dictionaries.metrics import Metrics, MetricsAccumulator
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.coherence import average_max_decoder_cosine_sim
from vision_sae.evaluation.density import DensityHistogram, density_histogram
from vision_sae.evaluation.monosemanticity import MonosemanticityAccumulator, max_pooled
from vision_sae.files import MANIFEST, published, read_json
from vision_sae.models.bound import load_bound_model
from vision_sae.models.protocol import Model
from vision_sae.pictures.folder import Picture
from vision_sae.pictures.reading import Reading
from vision_sae.places import check_output
from vision_sae.version import CODE_VERSION

_ROWS = 4096
"""Patches encoded at a time."""
_MODEL_BATCH = 16
"""Pictures per forward pass."""


@dataclass(frozen=True)
class Evaluation:
    """All figures of a dictionary on one data set."""

    metrics: Metrics
    average_max_decoder_cosine_sim: float
    density: DensityHistogram
    monosemanticity: Float64[Tensor, " F"]
    """MonoSemanticity of each feature; NaN where it is undefined."""
    monosemanticity_floor: float
    """The score of a feature that fires equally on all images."""
    downstream: Downstream | None
    """None without pictures to run the model on."""
    heldout: bool
    """Whether the data set differs from the training data of the dictionary."""
    computed: dict[str, str]
    """The device and the precision of the model; see `devices.recorded`."""

    def values(self) -> dict[str, float]:
        """The single numbers by name; undefined numbers are left out."""
        values = self.metrics._asdict() | {
            "average_max_decoder_cosine_sim": self.average_max_decoder_cosine_sim,
            "monosemanticity": float(self.monosemanticity.nanmean()),
            "monosemanticity_floor": self.monosemanticity_floor,
        }
        if self.downstream:
            values |= self.downstream.metrics()
        return {name: value for name, value in values.items() if math.isfinite(value)}


def open_dictionary(path: Path) -> tuple[Dictionary, dict[str, Any], Bundle | None]:
    """Open a published dictionary or bundle: (dictionary, manifest, the bundle or None).

    Raises `NotFoundError` when ``path`` holds neither.
    """
    manifest = published(path) / MANIFEST
    if manifest.is_file() and read_json(manifest).get("format") == layout.FORMAT:
        bundle = read_bundle(path)
        return bundle.dictionary, bundle.manifest, bundle
    return *load_dictionary(path), None


def _pixels(
    model: Model, pictures: Sequence[Picture], reading: Reading, *, progress: bool
) -> Iterator[Tensor]:
    """The pictures as batches of model input; files that cannot be read are left out."""
    ready: list[Tensor] = []
    shown = tqdm(pictures, desc="downstream", unit="img", disable=not progress)
    for _, pixels in reading.each(shown, model.preprocess):
        ready.append(pixels)
        if len(ready) == _MODEL_BATCH:
            yield torch.stack(ready)
            ready = []
    if ready:
        yield torch.stack(ready)


def _measure(
    dictionary: Dictionary, store: ActivationStore, site: str, *, progress: bool, device: str
) -> tuple[MetricsAccumulator, MonosemanticityAccumulator]:
    """One pass over the store, whole pictures at a time; ``dictionary`` is on ``device``."""
    patches, embeddings = store.grid.patches, torch.from_numpy(store.embeddings)
    metrics = MetricsAccumulator(dictionary.dim, dictionary.width, device)
    similar = MonosemanticityAccumulator(dictionary.width, embeddings.shape[1], device)
    first = 0
    with (
        torch.inference_mode(),
        tqdm(total=store.rows, desc="evaluate", unit="patch", disable=not progress) as bar,
    ):
        for array in store.arrays(site):
            for images in array.split(max(1, _ROWS // patches)):
                vectors = store.checked(site, images.flatten(0, 1)).to(device)
                codes = dictionary.encode(vectors)
                metrics.add(vectors, dictionary.decode(codes), codes)
                last = first + len(images)
                similar.add(max_pooled(codes, patches, dictionary.width), embeddings[first:last])
                first = last
                bar.update(len(vectors))
    return metrics, similar


def evaluate(
    path: Path,
    store: ActivationStore,
    pictures: Sequence[Picture] = (),
    *,
    name: str = "heldout",
    reading: Reading | None = None,
    progress: bool = True,
    device: str = "auto",
) -> Evaluation:
    """Measure the dictionary or bundle at ``path`` on ``store`` and, downstream, on ``pictures``.

    Files that cannot be read are left out and reported to ``reading``; without it they are refused.
    ``device`` is read by `devices.chosen`.

    A bundle is published again with the figures under ``metrics[name]`` and ``evaluations[name]``
    of its manifest. Raises `MismatchError` when the store, or the model of the manifest's name, is
    not of the dictionary's model, and `InvalidInputError` when the figures are undefined. After an
    error nothing is published.
    """
    if name == "build":
        raise InvalidInputError(
            "the name `build` is taken by what `vision-sae build` measured; choose another",
            field="name",
        )
    account = Reading(strict=True) if reading is None else reading
    dictionary, manifest, bundle = open_dictionary(path)
    if bundle:
        check_output(path, layout.FORMAT, field="dictionary")
    check_match(store, manifest)
    device = devices.chosen(device)
    model = load_bound_model(manifest["model"], device=device) if pictures else None
    dictionary = resident(dictionary, torch.device(device))
    metrics, similar = _measure(
        dictionary, store, manifest["site"], progress=progress, device=device
    )
    measured = metrics.result()
    evaluation = Evaluation(
        metrics=measured,
        average_max_decoder_cosine_sim=average_max_decoder_cosine_sim(dictionary.decoder),
        density=density_histogram(metrics.fired.numpy(), measured.rows),
        monosemanticity=similar.result(),
        monosemanticity_floor=similar.floor(),
        downstream=downstream(
            model,
            manifest["site"],
            dictionary,
            _pixels(model, pictures, account, progress=progress),
            mean=metrics.mean,
        )
        if model
        else None,
        heldout=store.manifest["data_sha256"] != manifest["data_sha256"],
        computed=devices.recorded(device, model.dtype if model else "float32"),
    )
    if bundle:
        republish(bundle, path, _entries(evaluation, store, bundle.manifest, name))
    return evaluation


def _entries(
    evaluation: Evaluation, store: ActivationStore, manifest: dict[str, Any], name: str
) -> dict[str, Any]:
    """The entries of a bundle's manifest that change."""
    density, run = evaluation.density, evaluation.downstream
    described = {
        "data_sha256": store.manifest["data_sha256"],
        "heldout": evaluation.heldout,
        "code_version": CODE_VERSION,
        "computed": evaluation.computed,
        "images": len(store.images),
        "density": {
            "dead": density.dead,
            "edges": density.edges.tolist(),
            "counts": density.counts.tolist(),
        },
        "monosemanticity_features": int(evaluation.monosemanticity.isfinite().sum()),
        "downstream_images": run.images if run else 0,
    }
    return {
        "metrics": manifest["metrics"] | {name: evaluation.values()},
        "evaluations": manifest.get("evaluations", {}) | {name: described},
    }


def match_published(path: Path, other: Path) -> Matching:
    """`match` of the decoders of two published dictionaries or bundles."""
    return match(open_dictionary(path)[0].decoder, open_dictionary(other)[0].decoder)


def lines(evaluation: Evaluation, matching: Matching | None = None) -> Iterator[str]:
    """The figures as a table for people."""
    values = evaluation.values()
    if matching:
        how = "one_to_one" if matching.one_to_one else "nearest"
        values |= {f"matching_{how}": matching.pairs.mean, "matching_floor": matching.floor}
    for name, value in values.items():
        yield f"{name:<36} {value:.6g}"
    density = evaluation.density
    yield f"features by log10 firing rate        ({density.dead} never fire)"
    most = max(1, int(density.counts.max()))
    for low, high, count in zip(density.edges, density.edges[1:], density.counts, strict=False):
        yield f"  {low:6.2f} to {high:5.2f} {count:>8} {'#' * round(40 * count / most)}"
    if not evaluation.heldout:
        yield "this is the data that the dictionary was made from: it is not held out"
