"""Exemplars, the patches of the data set that fire a unit, as messages of ``exemplar.proto``."""

from __future__ import annotations

import numpy as np

from vision_sae.bundles.read import Exemplar
from vision_sae.evidence.protocol import Evidence
from vision_sae.tensors import to_proto
from vision_sae.v1 import (
    exemplar_pb2,
)
from vision_sae_server.answers.images import box_message, thumbnail_message
from vision_sae_server.served import Units

_DEFAULT_EXEMPLARS = 9
_DEFAULT_THUMBNAIL = 128


def indexed_patch(
    evidence: Evidence, patch: int, *, thumbnail: int | None, activation: float = 0.0
) -> exemplar_pb2.Exemplar:
    """A patch of the data set; ``thumbnail`` is the longer side in pixels, or None for none."""
    grid = evidence.grid
    image, position = divmod(patch, grid.patches)
    record = evidence.images[image]
    return exemplar_pb2.Exemplar(
        image=record.id,
        row=position // grid.cols,
        col=position % grid.cols,
        box=box_message(grid.boxes(evidence.geometry(image))[position]),
        activation=activation,
        thumbnail=thumbnail_message(evidence.thumbnail(image), thumbnail) if thumbnail else None,
        caption=record.caption,
        data_set=record.data_set,
        image_width=record.width,
        image_height=record.height,
    )


def thumbnail_side(options: exemplar_pb2.ExemplarOptions) -> int | None:
    """The longer side of thumbnails, in pixels; None without thumbnails."""
    return None if options.omit_thumbnails else options.thumbnail_pixels or _DEFAULT_THUMBNAIL


def exemplar_count(options: exemplar_pb2.ExemplarOptions) -> int:
    """The most exemplars to send."""
    return options.max_count if options.HasField("max_count") else _DEFAULT_EXEMPLARS


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
    """The exemplars of a feature, chosen by ``options``."""
    count = exemplar_count(options)
    top, across = units.exemplars(index)
    if options.across_quantiles:
        everything = top + across
        picks = np.linspace(len(everything) - 1, 0, min(count, len(everything))).round()
        chosen = [everything[int(i)] for i in picks]  # from low to high
    else:
        chosen = top[:count]
    return [_exemplar(units, index, exemplar, options) for exemplar in chosen]
