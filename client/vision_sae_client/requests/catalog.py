"""Requests for the models, dictionaries and features of a server."""

from __future__ import annotations

from vision_sae.v1 import catalog_service_pb2 as pb
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae_client.requests.names import dictionary_name, model_name, view
from vision_sae_client.values import sendable


@sendable
def get_model(name: str) -> pb.GetModelRequest:
    """One model, with the names of its classes."""
    return pb.GetModelRequest(name=model_name(name))


@sendable
def list_dictionaries(*, filter: str = "") -> pb.ListDictionariesRequest:
    """The first page of dictionaries."""
    return pb.ListDictionariesRequest(filter=filter)


@sendable
def get_dictionary(name: str) -> pb.GetDictionaryRequest:
    """One dictionary."""
    return pb.GetDictionaryRequest(name=dictionary_name(name))


@sendable
def list_features(
    dictionary: str,
    *,
    filter: str = "",
    order_by: str = "",
    full: bool = False,
    exemplars: ExemplarOptions | None = None,
    page_size: int = 100,
) -> pb.ListFeaturesRequest:
    """The first page of features."""
    return pb.ListFeaturesRequest(
        parent=dictionary_name(dictionary),
        filter=filter,
        order_by=order_by,
        view=view(full),
        exemplars=exemplars,
        page_size=page_size,
    )


@sendable
def get_feature(
    name: str, *, full: bool = True, exemplars: ExemplarOptions | None = None
) -> pb.GetFeatureRequest:
    """One feature, with its exemplars when ``full``."""
    return pb.GetFeatureRequest(name=name, view=view(full), exemplars=exemplars)
