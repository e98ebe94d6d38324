"""The subject of a call: a dictionary in any form, its model, its site and its labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch

from vision_sae import devices
from vision_sae.artifacts import BUNDLE
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.descriptions.protocol import JUDGED_BY
from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.dictionaries.protocol import Dictionary, SiteDictionary, check_feature
from vision_sae.dictionaries.released.lookup import LoadedDictionary, load_dictionary, locate
from vision_sae.errors import InvalidInputError
from vision_sae.files import MANIFEST, published, read_json
from vision_sae.models.bound import bound
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import Model

AnyDictionary: TypeAlias = Bundle | LoadedDictionary | str | Path
"""An opened bundle or dictionary, the path of one, or the name of a released dictionary."""
AnyModel: TypeAlias = Model | str
"""A loaded model, or the name of one."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A dictionary with the model and the site that it belongs to."""

    name: str
    """Name of the dictionary in results."""
    model: Model
    site: str
    dictionary: Dictionary
    rows: Mapping[int, Mapping[str, Any]]
    """{feature: description as a bundle stores it}; empty without descriptions."""
    bundle: Bundle | None
    """None for a dictionary alone, which has no statistics and no exemplars."""

    @property
    def at_site(self) -> SiteDictionary:
        """The dictionary with its site."""
        return SiteDictionary(self.dictionary, self.site)

    def of_neurons(self) -> Subject:
        """The raw neurons of the site, without labels, in the place of the dictionary."""
        basis = NeuronBasis.fit([torch.empty(0, self.dictionary.dim)])
        return Subject(f"neurons of {self.site}", self.model, self.site, basis, {}, None)

    @property
    def confirmed(self) -> set[int]:
        """The features whose label a judge has confirmed."""
        return {i for i, row in self.rows.items() if row["text"] and row["details"].get(JUDGED_BY)}

    def label(self, feature: int) -> str | None:
        """The label of a feature, or None."""
        text: str | None = self.rows.get(feature, {}).get("text")
        return text

    def check_feature(self, feature: int) -> None:
        """Raise `FeatureNotFoundError` for a number that is not a feature of the dictionary."""
        check_feature(feature, self.dictionary.width, self.name)

    def needs_bundle(self, what: str, field: str) -> Bundle:
        """The bundle. Raises `InvalidInputError` without one; its message names ``what`` needs
        it."""
        if self.bundle is None:
            raise InvalidInputError(
                f"{what} needs the statistics of a data set, and {self.name} is a dictionary "
                "alone; build a bundle from it (vision_sae.build) and give that",
                field=field,
            )
        return self.bundle


def opened(dictionary: AnyDictionary) -> Bundle | LoadedDictionary:
    """Open the bundle or dictionary of a name or path; an opened one is returned unchanged."""
    if isinstance(dictionary, Bundle | LoadedDictionary):
        return dictionary
    place = locate(dictionary)
    manifest = published(place) / MANIFEST
    content = read_json(manifest) if manifest.is_file() else None
    if isinstance(content, dict) and content.get("format") == BUNDLE.format:
        return read_bundle(place)
    return load_dictionary(dictionary)


def opened_bundle(bundle: AnyDictionary) -> Bundle:
    """Like `opened`, for bundles only. Raises `InvalidInputError` for a dictionary alone."""
    source = opened(bundle)
    if not isinstance(source, Bundle):
        raise InvalidInputError(
            "this needs the data of a bundle, not a dictionary alone; build a bundle from it "
            "(vision_sae.build) and give that",
            field="bundle",
        )
    return source


def loaded(name: str) -> Model:
    """Load a model by name, by the process's setting of device and precision. The last two models
    are cached, so repeated calls do not load them."""
    return _cached(name, devices.chosen(), devices.requested_dtype())


def loaded_on_all(name: str) -> list[Model]:
    """As `loaded`, once for each device of the setting: a list names several."""
    named = map(devices.chosen, devices.several())
    return [_cached(name, device, devices.requested_dtype()) for device in named]


@lru_cache(maxsize=2)
def _cached(name: str, device: str, dtype: devices.Dtype) -> Model:
    return load_model(name, device=device, dtype=dtype)


def as_model(model: AnyModel) -> Model:
    """Load a model by name; a loaded model is returned unchanged."""
    return loaded(model) if isinstance(model, str) else model


def as_subject(dictionary: AnyDictionary, model: AnyModel | None = None) -> Subject:
    """A dictionary with its model. Without ``model``, the model that the manifest names is loaded.

    Raises `MismatchError` for a model with other weights, and `InvalidInputError` for an imported
    dictionary without a known model.
    """
    source = opened(dictionary)
    manifest = source.manifest
    if not manifest.get("model"):
        raise InvalidInputError(
            "the model and site of this dictionary from another library are unknown; "
            "load it with load_dictionary(path, model=..., site=...)",
            field="dictionary",
        )
    ready = bound(as_model(model or manifest["model"]["name"]), manifest["model"])
    if isinstance(source, Bundle):
        name, rows, bundle = source.name, source.descriptions, source
        return Subject(name, ready, source.site, source.dictionary, rows, bundle)
    name = (source.released or {}).get("name") or f"dictionary of {manifest['site']}"
    return Subject(name, ready, manifest["site"], source.dictionary, source.descriptions, None)
