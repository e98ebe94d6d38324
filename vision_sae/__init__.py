"""Find, explain and steer what the insides of a vision model mean.

    import vision_sae as vs

    store = vs.harvest("photographs", "runs/store")
    vs.train(store, "runs/dictionary", k=16, expansion=4)
    bundle = vs.build(store, "runs/dictionary", "runs/bundle")
    labels = vs.describe(bundle)
    vs.encode("cat.jpg", labels.bundle)

The names in `__all__` are the supported API, which docs/reference/api.md describes. Importing this
package is light: torch and other heavy libraries are imported on the first use of a name.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vision_sae.version import CODE_VERSION as __version__

if TYPE_CHECKING:
    from vision_sae.activations.store import ActivationStore
    from vision_sae.api.attributing import (
        Attribution,
        AttributionComponent,
        Contribution,
        attribute,
    )
    from vision_sae.api.edits import Edit
    from vision_sae.api.encoding import ActiveFeature, Encoding, PlacedPicture, encode
    from vision_sae.api.feature_search import FeatureHits, FoundFeature, search_features
    from vision_sae.api.intervening import Intervention, TargetChange, intervene
    from vision_sae.api.labels import Labels, Scores, describe, score
    from vision_sae.api.loading import load_bundle, load_dictionary, load_model, load_store
    from vision_sae.api.making import build, harvest, train
    from vision_sae.api.searching import FoundPatch, Hits, search
    from vision_sae.api.steering import Generation, steer
    from vision_sae.api.targets import (
        ClassTarget,
        ContrastTarget,
        FeatureTarget,
        MeanTarget,
        PictureTarget,
        ProbeTarget,
        TextTarget,
    )
    from vision_sae.bundles.read import Bundle
    from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, TrainConfig
    from vision_sae.devices import using
    from vision_sae.dictionaries.released.lookup import LoadedDictionary
    from vision_sae.errors import VisionSaeError
    from vision_sae.steering.edits import When

_NAMES = {
    "activations.store": ("ActivationStore",),
    "api.attributing": ("Attribution", "AttributionComponent", "Contribution", "attribute"),
    "api.edits": ("Edit",),
    "api.encoding": ("ActiveFeature", "Encoding", "PlacedPicture", "encode"),
    "api.feature_search": ("FeatureHits", "FoundFeature", "search_features"),
    "api.intervening": ("Intervention", "TargetChange", "intervene"),
    "api.labels": ("Labels", "Scores", "describe", "score"),
    "api.loading": ("load_bundle", "load_dictionary", "load_model", "load_store"),
    "api.making": ("build", "harvest", "train"),
    "api.searching": ("FoundPatch", "Hits", "search"),
    "api.steering": ("Generation", "steer"),
    "api.targets": (
        *("ClassTarget", "ContrastTarget", "FeatureTarget", "MeanTarget", "PictureTarget"),
        *("ProbeTarget", "TextTarget"),
    ),
    "bundles.read": ("Bundle",),
    "config": ("BuildConfig", "DescribeConfig", "HarvestConfig", "TrainConfig"),
    "devices": ("using",),
    "dictionaries.released.lookup": ("LoadedDictionary",),
    "errors": ("VisionSaeError",),
    "steering.edits": ("When",),
}
"""{module of this package: the public names that it defines}"""
_HOMES = {name: f"{__name__}.{home}" for home, names in _NAMES.items() for name in names}
"""{public name: the module that defines it}"""

__all__ = [  # type checkers read the names here, so they are written out
    "ActivationStore",
    "ActiveFeature",
    "Attribution",
    "AttributionComponent",
    "BuildConfig",
    "Bundle",
    "ClassTarget",
    "ContrastTarget",
    "Contribution",
    "DescribeConfig",
    "Edit",
    "Encoding",
    "FeatureHits",
    "FeatureTarget",
    "FoundFeature",
    "FoundPatch",
    "Generation",
    "HarvestConfig",
    "Hits",
    "Intervention",
    "Labels",
    "LoadedDictionary",
    "MeanTarget",
    "PictureTarget",
    "PlacedPicture",
    "ProbeTarget",
    "Scores",
    "TargetChange",
    "TextTarget",
    "TrainConfig",
    "VisionSaeError",
    "When",
    "__version__",
    "attribute",
    "build",
    "describe",
    "encode",
    "harvest",
    "intervene",
    "load_bundle",
    "load_dictionary",
    "load_model",
    "load_store",
    "score",
    "search",
    "search_features",
    "steer",
    "train",
    "using",
]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
