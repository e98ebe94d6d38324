"""Models and their sites, as messages of ``model.proto``."""

from __future__ import annotations

from vision_sae.models.grid import PatchGrid
from vision_sae.models.names import shown_name
from vision_sae.models.noised import NoisedPictures
from vision_sae.models.protocol import ContrastiveModel, Model, Site
from vision_sae.resources import site_resource
from vision_sae.v1 import (
    model_pb2,
)
from vision_sae_server.answers.enums import dtype, enum_value
from vision_sae_server.served import ServedModel


def _kind(model: Model) -> model_pb2.ModelKind.ValueType:
    """The kind of a model; UNSPECIFIED for a kind that the contract does not name."""
    if isinstance(model, NoisedPictures):
        return model_pb2.MODEL_KIND_TEXT_TO_IMAGE
    if isinstance(model, ContrastiveModel):
        return model_pb2.MODEL_KIND_CLIP
    kind: model_pb2.ModelKind.ValueType = enum_value(model_pb2.ModelKind, "MODEL_KIND", model.kind)
    return kind


def _sites(model: Model) -> list[tuple[Site, PatchGrid]]:
    """Every site with its grid; each site of a generator has its own grid."""
    if not isinstance(model, NoisedPictures):
        return [(site, model.grid) for site in model.sites.values()]
    generator, side = model.generator, model.generator.usual_side
    return [(site, generator.grid(site.name, side, side)) for site in generator.sites.values()]


def model_message(served: ServedModel, *, class_names: bool = False) -> model_pb2.Model:
    """A model with its sites and, with ``class_names``, the names of its classes."""
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
        device=", ".join(served.devices),
    )
