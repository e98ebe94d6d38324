"""What a bundle holds, as messages of the contract.

What a busy server says most often is written into the answer in place, or made once: each message
by itself costs memory of its own, and protobuf has the process give back all that is free (glibc's
``malloc_trim``) whenever it has freed ten thousand pieces, which the models then ask for again.
"""

from __future__ import annotations

import io
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache, cached
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from numpy.typing import NDArray
from PIL import Image

from vision_sae.bundles.bundle import Exemplar
from vision_sae.bundles.statistics import QUANTILE_LEVELS
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.protocol import Negatives, Score
from vision_sae.descriptions.store import Entry, Unit
from vision_sae.dictionaries.neurons import NeuronBasis
from vision_sae.models.grid import Geometry, PatchGrid
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel, Model, Site
from vision_sae.models.registry import shown_name
from vision_sae.resources import dictionary_of, dictionary_resource, site_resource
from vision_sae.tensors import to_proto, write
from vision_sae.v1 import (
    description_pb2,
    dictionary_pb2,
    exemplar_pb2,
    feature_pb2,
    image_pb2,
    measure_pb2,
    model_pb2,
    tensor_pb2,
)
from vision_sae_server.served import Served, ServedModel, Units

_DEFAULT_EXEMPLARS = 9
_DEFAULT_THUMBNAIL = 128
_MOST_CANDIDATES = 10
_MOST_CHILDREN = 10
_BASIC_FEATURES = 16_384
"""How many features in the basic view are remembered, about 2 KB each."""
_OF_OUTPUTS = ("kl_div", "cosine_distance", "ce_loss")
"""How the names of figures begin that compare the model's outputs: `Downstream.metrics`."""
NEGATIVES: dict[int, Negatives] = {
    description_pb2.SCORE_NEGATIVES_RANDOM: "random",
    description_pb2.SCORE_NEGATIVES_HARD: "hard",
}
"""The counter-examples of scores, as the library calls them."""


def enum_value(enum: Any, prefix: str, word: str) -> Any:
    """The value of an enum for a word of the library: ``hard`` is ``SCORE_NEGATIVES_HARD``. 0,
    UNSPECIFIED, for a word that this version of the contract does not have."""
    found = enum.DESCRIPTOR.values_by_name.get(f"{prefix}_{word.upper()}")
    return found.number if found else 0


def dtype(kind: torch.dtype) -> tensor_pb2.DType.ValueType:
    """A precision of torch; UNSPECIFIED for one that the contract does not have."""
    found: tensor_pb2.DType.ValueType = enum_value(
        tensor_pb2.DType, "D_TYPE", str(kind).removeprefix("torch.")
    )
    return found


def box(corners: Any) -> image_pb2.Box:
    """(x0, y0, x1, y1) -> Box."""
    x0, y0, x1, y1 = (float(value) for value in corners)
    return image_pb2.Box(x0=x0, y0=y0, x1=x1, y1=y1)


def patch_grid(
    grid: PatchGrid,
    geometry: Geometry,
    special_tokens: Sequence[str],
    artifacts: NDArray[np.bool_] | None = None,
) -> image_pb2.PatchGrid:
    """The grid of one picture; its extent may leave the picture where the model pads."""
    left, top = geometry.left / geometry.scale_x, geometry.top / geometry.scale_y
    return image_pb2.PatchGrid(
        rows=grid.rows,
        cols=grid.cols,
        image_width=geometry.width,
        image_height=geometry.height,
        extent=image_pb2.Box(
            x0=left,
            y0=top,
            x1=left + grid.cols * grid.patch_width / geometry.scale_x,
            y1=top + grid.rows * grid.patch_height / geometry.scale_y,
        ),
        special_tokens=special_tokens,
        artifacts=None if artifacts is None else to_proto(artifacts.reshape(grid.rows, grid.cols)),
    )


def add_patches(
    added: RepeatedCompositeFieldContainer[image_pb2.PatchActivation],
    grid: PatchGrid,
    geometry: Geometry,
    positions: NDArray[Any],
    activations: NDArray[Any],
) -> None:
    """Add grid positions (n) and what fires there (n)."""
    boxes = grid.boxes(geometry)[positions].tolist()
    for p, (x0, y0, x1, y1), a in zip(positions.tolist(), boxes, activations.tolist(), strict=True):
        message = added.add(row=p // grid.cols, col=p % grid.cols, activation=a)
        message.box.x0, message.box.y0, message.box.x1, message.box.y1 = x0, y0, x1, y1


def write_heatmap(tensor: tensor_pb2.Tensor, values: NDArray[Any], format_: int) -> None:
    """Write a map (rows, cols) in the element type asked for; nothing when none was."""
    if format_ == image_pb2.HEATMAP_FORMAT_NONE:
        return
    if format_ == image_pb2.HEATMAP_FORMAT_FLOAT32:
        write(tensor, values.astype(np.float32))
    elif format_ == image_pb2.HEATMAP_FORMAT_UINT8:
        low, high = float(values.min()), float(values.max())
        scale = (high - low) / 255 or 1.0
        tensor.scale, tensor.offset = scale, low
        write(tensor, np.round((values - low) / scale).astype(np.uint8))
    else:
        write(tensor, values.astype(np.float16))


def _thumbnail(data: bytes, side: int) -> image_pb2.EncodedImage:
    image = Image.open(io.BytesIO(data))
    if max(image.size) > side:
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        data = buffer.getvalue()
    return image_pb2.EncodedImage(
        data=data, format=image_pb2.IMAGE_FORMAT_JPEG, width=image.width, height=image.height
    )


def indexed_patch(
    evidence: Evidence, patch: int, *, thumbnail: int | None, activation: float = 0.0
) -> exemplar_pb2.Exemplar:
    """A patch of the data set in its picture; ``thumbnail`` is a side in pixels, or None."""
    grid = evidence.grid
    image, position = divmod(patch, grid.patches)
    record = evidence.images[image]
    return exemplar_pb2.Exemplar(
        image=record.id,
        row=position // grid.cols,
        col=position % grid.cols,
        box=box(grid.boxes(evidence.geometry(image))[position]),
        activation=activation,
        thumbnail=_thumbnail(evidence.thumbnail(image), thumbnail) if thumbnail else None,
        caption=record.caption,
        data_set=record.data_set,
        image_width=record.width,
        image_height=record.height,
    )


def thumbnail_side(options: exemplar_pb2.ExemplarOptions) -> int | None:
    """The side of thumbnails that ``options`` asks for; None for none."""
    return None if options.omit_thumbnails else options.thumbnail_pixels or _DEFAULT_THUMBNAIL


def _exemplar(
    units: Units, feature: int, exemplar: Exemplar, options: exemplar_pb2.ExemplarOptions
) -> exemplar_pb2.Exemplar:
    message = indexed_patch(
        units.evidence,
        exemplar.patch,
        thumbnail=thumbnail_side(options),
        activation=exemplar.activation,
    )
    message.quantile = units.quantile(feature, exemplar.activation)
    if options.masks:
        message.mask.CopyFrom(to_proto(exemplar.mask))
    return message


def exemplars(
    units: Units, index: int, options: exemplar_pb2.ExemplarOptions
) -> list[exemplar_pb2.Exemplar]:
    """The exemplars of a feature that ``options`` asks for."""
    count = options.max_count if options.HasField("max_count") else _DEFAULT_EXEMPLARS
    top, across = units.exemplars(index)
    if options.across_quantiles:
        everything = top + across
        picks = np.linspace(len(everything) - 1, 0, min(count, len(everything))).round()
        chosen = [everything[int(i)] for i in picks]  # from low to high
    else:
        chosen = top[:count]
    return [_exemplar(units, index, exemplar, options) for exemplar in chosen]


def score(measured: Score) -> description_pb2.Score:
    """One score of one text."""
    return description_pb2.Score(
        metric=enum_value(description_pb2.ScoreMetric, "SCORE_METRIC", measured.metric),
        value=measured.value,
        lower=measured.lower,
        upper=measured.upper,
        count=measured.n,
        control=measured.control,
        negatives=enum_value(description_pb2.ScoreNegatives, "SCORE_NEGATIVES", measured.negatives),
        judge=shown_name(measured.judge),
    )


def feature_name(unit: Unit) -> str:
    """A unit as a feature of the dictionary that holds it."""
    return f"{dictionary_of(unit.parent)}/features/{unit.index}"


def description(
    served: Units | None,
    entry: Entry,
    options: exemplar_pb2.ExemplarOptions | None = None,
    history: Sequence[Entry] = (),
) -> description_pb2.Description:
    """A version of a description; of a feature that is served, with ``options``, in full."""
    made = entry.description
    message = description_pb2.Description(
        name=f"{feature_name(entry.unit)}/description",
        text=made.text,
        abstained=made.text is None,
        abstention_reason=made.abstained,
        origin=enum_value(description_pb2.DescriptionOrigin, "DESCRIPTION_ORIGIN", entry.origin),
        describer=made.describer,
        describer_version=str(made.describer_version) if made.describer else "",
        scores=map(score, made.scores),
        author=entry.author,
        etag=entry.etag,
        judged_by="" if made.text is None else shown_name(made.judged_by),
    )
    message.create_time.FromDatetime(entry.created)
    if served is not None and options is not None:
        count = options.max_count if options.HasField("max_count") else _DEFAULT_EXEMPLARS
        side = thumbnail_side(options)
        # Patches of other evidence, of a bundle that stood here before, are not those of this one.
        known = entry.identity == served.evidence.identity
        patches = made.evidence[:count] if known else ()
        fires = _activations(served, entry.unit.index, patches)
        for patch, activation in zip(patches, fires, strict=True):
            shown = indexed_patch(served.evidence, patch, thumbnail=side, activation=activation)
            shown.quantile = served.quantile(entry.unit.index, activation)
            message.evidence.append(shown)
        message.candidates.extend(
            description_pb2.Candidate(text=text, value=value)
            for text, value in made.candidates[:_MOST_CANDIDATES]
        )
        message.history.extend(description(served, earlier) for earlier in history)
    return message


def _activations(units: Units, index: int, patches: Sequence[int]) -> list[float]:
    """How strongly a unit fires on each of some patches; 0 where that is not known."""
    if not patches:
        return []
    places = units.evidence.places(index)
    at = np.isin(places.rows, patches)
    found = dict(zip(places.rows[at].tolist(), places.values[at].tolist(), strict=True))
    return [float(found.get(patch, 0.0)) for patch in patches]


def _statistics(units: Units, index: int, *, full: bool) -> feature_pb2.FeatureStatistics:
    figures: dict[str, Any] = units.figures(index)
    message = feature_pb2.FeatureStatistics(**figures)
    if full and isinstance(units, Served):
        bundle, stats = units.bundle, units.bundle.statistics
        message.quantiles.extend(
            feature_pb2.Quantile(level=level, value=float(value))
            for level, value in zip(QUANTILE_LEVELS, stats.quantiles[index], strict=True)
        )
        _, values = bundle.postings.row(index)
        counts, edges = np.histogram(np.asarray(values, dtype=np.float32), bins=20)
        message.histogram.edges.CopyFrom(to_proto(edges.astype(np.float32)))
        message.histogram.counts.CopyFrom(to_proto(counts.astype(np.int64)))
    return message


def features(
    served: Units,
    indices: Sequence[int],
    view: feature_pb2.FeatureView.ValueType,
    options: exemplar_pb2.ExemplarOptions,
) -> list[feature_pb2.Feature]:
    """Features with their current descriptions, in the view asked for."""
    entries = served.labels.currents(served.evidence.name, indices)
    if view != feature_pb2.FEATURE_VIEW_FULL:
        return [_basic_feature(served, index, entries.get(index)) for index in indices]
    found = []
    for index in indices:
        message = _feature(served, index, full=True)
        entry = entries.get(index)
        if entry is not None:
            earlier = served.labels.history(entry.unit)
            message.description.CopyFrom(description(served, entry, options, earlier))
        message.exemplars.extend(exemplars(served, index, options))
        if isinstance(served, Served):
            message.related.extend(_related(served, index))
            message.metrics.extend(_feature_metrics(served, index))
        found.append(message)
    return found


def _feature(served: Units, index: int, *, full: bool) -> feature_pb2.Feature:
    return feature_pb2.Feature(
        name=f"{served.resource}/features/{index}",
        index=index,
        statistics=_statistics(served, index, full=full),
    )


@cached(
    LRUCache(_BASIC_FEATURES),
    key=lambda served, index, entry: (
        served.resource,
        served.evidence.identity,
        index,
        entry and entry.etag,
    ),
    lock=threading.Lock(),
)
def _basic_feature(served: Units, index: int, entry: Entry | None) -> feature_pb2.Feature:
    """A feature in the basic view. It is made once and put into many answers: never change it."""
    message = _feature(served, index, full=False)
    if entry is not None:
        message.description.CopyFrom(description(served, entry))
    return message


def _feature_metrics(served: Served, index: int) -> list[measure_pb2.Metric]:
    """What else is measured of a feature, beside what chance gives."""
    measured = served.monosemanticity(index)
    if measured is None:
        return []
    floor = served.monosemanticity_floor
    return [
        measure_pb2.Metric(
            name="monosemanticity",
            value=measured.value,
            lower=measured.lower,
            upper=measured.upper,
            control=None if math.isnan(floor) else floor,
            count=measured.images,
        )
    ]


def _related(served: Served, index: int) -> list[feature_pb2.RelatedFeature]:
    """Features related to one, by relation, strongest first."""
    relations = served.bundle.relations
    found: list[tuple[int, int, float]] = []
    for kind, others, strengths in (
        (feature_pb2.FEATURE_RELATION_NEAREST, relations.nearest, relations.cosines),
        (feature_pb2.FEATURE_RELATION_CO_ACTIVATION, relations.together, relations.correlations),
    ):
        pairs = zip(others[index].tolist(), strengths[index].tolist(), strict=True)
        found += [(kind, other, strength) for other, strength in pairs if other >= 0]
    if relations.parent[index] >= 0:
        parent, covered = int(relations.parent[index]), float(relations.covered[index])
        found.append((feature_pb2.FEATURE_RELATION_PARENT, parent, covered))
    children = relations.children(index)[:_MOST_CHILDREN].tolist()
    found += [
        (feature_pb2.FEATURE_RELATION_CHILD, child, float(relations.covered[child]))
        for child in children
    ]
    entries = served.labels.currents(served.resource, [other for _, other, _ in found])
    floor = served.bundle.manifest["nearest_floor"]
    within = [
        feature_pb2.RelatedFeature(
            feature=f"{served.resource}/features/{other}",
            relation=feature_pb2.FeatureRelation.ValueType(kind),
            similarity=strength,
            random_floor=floor if kind == feature_pb2.FEATURE_RELATION_NEAREST else None,
            **_said(entries.get(other)),
        )
        for kind, other, strength in found
    ]
    return within + _matched(served, index)


def _said(entry: Entry | None) -> dict[str, str]:
    """The label of a related feature, and who confirmed it."""
    if entry is None or entry.description.text is None:
        return {}
    made = entry.description
    return {"label": made.text or "", "judged_by": shown_name(made.judged_by)}


def _matched(served: Served, index: int) -> list[feature_pb2.RelatedFeature]:
    """The counterparts of a feature in other dictionaries, those most alike first: the nearest of
    each, and its partner when all are paired one to one, where that is another."""
    found: list[feature_pb2.RelatedFeature] = []
    for name, matches in served.bundle.matches.items():
        entry = served.bundle.manifest["matches"][name]
        partner, nearest = int(matches.partner[index]), int(matches.nearest[index])
        resource = dictionary_resource(name)
        counterparts = {}
        if nearest >= 0:
            counterparts[nearest] = matches.similarities[index], entry["nearest_floor"]
        if partner >= 0:
            counterparts[partner] = matches.partner_similarities[index], entry["partner_floor"]
        labelled = served.labels.currents(resource, list(counterparts))
        found += [
            feature_pb2.RelatedFeature(
                feature=f"{resource}/features/{other}",
                relation=feature_pb2.FEATURE_RELATION_MATCH,
                similarity=float(strength),
                random_floor=floor,
                **_said(labelled.get(other)),
            )
            for other, (strength, floor) in counterparts.items()
        ]
    return sorted(found, key=lambda related: -related.similarity)


def dictionary(units: Units) -> dictionary_pb2.Dictionary:
    """A dictionary with a summary of its descriptions; of a bundle, with metrics and index."""
    message = _of_bundle(units) if isinstance(units, Served) else _of_neurons(units)
    message.name = units.resource
    message.display_name = units.resource.removeprefix("dictionaries/")
    message.model = units.model.resource
    message.site = site_resource(units.model.model.name, units.evidence.site)
    labelled = units.labels.summary(units.evidence.name)
    if labelled.described or labelled.abstained:
        message.descriptions.CopyFrom(
            dictionary_pb2.DescriptionSummary(
                described=labelled.described,
                confirmed=labelled.confirmed,
                abstained=labelled.abstained,
                by_people=labelled.by_people,
                describers=labelled.describers,
            )
        )
    return message


def _of_neurons(units: Units) -> dictionary_pb2.Dictionary:
    """What is known of a dictionary that has no bundle: the raw neurons of a site."""
    width = units.evidence.width
    return dictionary_pb2.Dictionary(
        architecture=NeuronBasis.architecture, width=width, input_width=width
    )


def _of_bundle(served: Served) -> dictionary_pb2.Dictionary:
    """What a bundle says of its dictionary."""
    manifest = served.bundle.manifest
    index = manifest["patch_index"]
    size = sum(
        entry["bytes"] for path, entry in manifest["files"].items() if path.startswith("patches/")
    )
    message = dictionary_pb2.Dictionary(
        architecture=manifest["dictionary"]["architecture"],
        width=manifest["dictionary"]["width"],
        input_width=manifest["dictionary"]["dim"],
        k=manifest["dictionary"].get("k"),
        metrics=_metrics(manifest),
        patch_index=dictionary_pb2.PatchIndex(
            type=index["type"],
            size=index["rows"],
            recall_at_10=index["recall_at_10"],
            bytes_per_vector=size / max(index["rows"], 1),
            data_sets=sorted(set(served.bundle.data_sets.tolist()) - {""}),
        ),
        manifest_sha256=served.bundle.manifest_sha256,
    )
    message.create_time.FromDatetime(served.bundle.published_at)
    return message


def _metrics(manifest: Mapping[str, Any]) -> list[measure_pb2.Metric]:
    """The figures of a dictionary on each data set, beside what chance gives."""
    return [
        measure_pb2.Metric(
            name=f"{data}.{name}",
            value=value,
            control=_by_chance(name, values, manifest),
            count=_count(name, data, manifest),
        )
        for data, values in manifest["metrics"].items()
        for name, value in values.items()
        if name != "rows"
    ]


def _by_chance(name: str, values: Mapping[str, float], manifest: Mapping[str, Any]) -> float | None:
    """What a figure comes to by chance; None where that is not known."""
    if name == "monosemanticity":
        return values.get("monosemanticity_floor")
    return manifest["nearest_floor"] if name == "average_max_decoder_cosine_sim" else None


def _count(name: str, data: str, manifest: Mapping[str, Any]) -> int:
    """What a figure rests on: patches, unless it is of features or pictures."""
    evaluated = manifest.get("evaluations", {}).get(data, {})
    if name == "average_max_decoder_cosine_sim":
        return int(manifest["dictionary"]["width"])
    if name == "monosemanticity":
        return int(evaluated.get("monosemanticity_features", 0))
    if name == "monosemanticity_floor":
        return int(evaluated.get("images", 0))
    if name.startswith(_OF_OUTPUTS):
        return int(evaluated.get("downstream_images", 0))
    return int(manifest["metrics"][data]["rows"])


def _kind(model: Model) -> model_pb2.ModelKind.ValueType:
    """By what a model can do; UNSPECIFIED for one that can do none of what the contract names."""
    if isinstance(model, NoisedPictures):
        return model_pb2.MODEL_KIND_TEXT_TO_IMAGE
    if isinstance(model, ContrastiveModel):
        return model_pb2.MODEL_KIND_CLIP
    kind: model_pb2.ModelKind.ValueType = enum_value(model_pb2.ModelKind, "MODEL_KIND", model.kind)
    return kind


def _sites(model: Model) -> list[tuple[Site, PatchGrid]]:
    """Every site with its grid; those of a generator have grids of their own."""
    if not isinstance(model, NoisedPictures):
        return [(site, model.grid) for site in model.sites.values()]
    generator, side = model.generator, model.generator.usual_side
    return [(site, generator.grid(site.name, side, side)) for site in generator.sites.values()]


def model(served: ServedModel, *, class_names: bool = False) -> model_pb2.Model:
    """A model with its sites, and the names of its classes where they are asked for."""
    ours = served.model
    identity, preparation = ours.identity(), ours.preprocessing
    name = shown_name(ours.name)
    return model_pb2.Model(
        name=served.resource,
        display_name=name,
        kind=_kind(ours),
        source=name,
        weights_sha256=identity["weights_sha256"],
        sites=[
            model_pb2.Site(
                name=site_resource(ours.name, site.name),
                kind=enum_value(model_pb2.SiteKind, "SITE_KIND", site.kind),
                width=site.dim,
                rows=grid.rows,
                cols=grid.cols,
                special_tokens=ours.special_tokens,
                order=order,
            )
            for order, (site, grid) in enumerate(_sites(ours))
        ],
        preprocessing=model_pb2.Preprocessing(
            width=preparation.width,
            height=preparation.height,
            resize=preparation.in_words(),
            interpolation=preparation.interpolation,
            mean=preparation.mean,
            std=preparation.std,
        ),
        dtype=dtype(ours.dtype),
        parameters=ours.parameters,
        embedding_width=ours.embedding_width(),
        class_names=ours.class_names if class_names else (),
        has_text=isinstance(ours, ContrastiveModel),
    )
