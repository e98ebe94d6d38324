"""What commands check before they import or load anything that takes seconds.

None of this imports torch. What is found here is told at once; what only the model or the data can
tell, the library checks where it needs it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vision_sae.artifacts import BUNDLE, DICTIONARY, NEURONS, STORE, Kind, site_of
from vision_sae.config import DescribeConfig, TrainConfig
from vision_sae.descriptions.files.milan_layout import is_root
from vision_sae.errors import NotFoundError, StorageFullError
from vision_sae.files import MANIFEST, published, read_json
from vision_sae.memory import check_available
from vision_sae.models.names import check_contrastive, check_model, weights_bytes

_EXPANDING = ("topk", "batch_topk", "matryoshka", "archetypal", "relu", "jumprelu", "gated")
"""Architectures whose number of features is ``expansion`` times the dimension."""
_OWN_JUDGES = ("grounded", "effects", "scenes")
"""Describers whose labels no contrastive model scores."""
_FLOAT = 4
_TRAINED = 3
"""Numbers that training keeps of each weight: itself and two moments of its gradient."""


def check_exists(path: Path, what: str, *, field: str) -> None:
    """Raise `NotFoundError` for a path at which nothing is."""
    if not path.exists():
        raise NotFoundError(f"there is no {what} at {path}; check the path", field=field)


def check_folder(folder: Path, what: str, *, field: str) -> None:
    """Raise `NotFoundError` for what is no folder."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a directory; give {what}", field=field)


def is_published(path: Path) -> bool:
    """Whether there is a manifest, or exemplars in MILAN's layout."""
    return (published(path) / MANIFEST).is_file() or is_root(path)


def check_units(path: Path) -> None:
    """Refuse what is neither a bundle, nor evidence of neurons, nor exemplars in MILAN's layout."""
    if (published(path) / MANIFEST).is_file():
        _one_of(path, NEURONS, BUNDLE)
    elif not is_root(path):
        raise NotFoundError(
            f"{path} is neither a bundle, nor evidence of neurons, nor a folder of exemplars in "
            "MILAN's layout; run `vision-sae build` or `vision-sae label`",
            field="units",
        )


def check_labels(where: str) -> None:
    """Refuse a label store that cannot be opened, or, where it is a file to read, is not there."""
    from vision_sae.descriptions.database import Database

    if "://" not in where:
        check_exists(Path(where), "label store", field="labels")
    Database(where).close()


def check_dictionary(name: str | Path) -> dict[str, Any]:
    """The manifest of a trained dictionary, or of a released one by its name."""
    from vision_sae.dictionaries.released.registry import locate

    return DICTIONARY.manifest(locate(name))


def check_measured(path: Path) -> None:
    """Refuse what is neither a dictionary nor a bundle."""
    _one_of(path, BUNDLE, DICTIONARY)


def _one_of(path: Path, kind: Kind, other: Kind) -> None:
    """Refuse what is of neither kind, as if the other one had been asked for."""
    manifest = published(path) / MANIFEST
    found = read_json(manifest) if manifest.is_file() else None
    is_kind = isinstance(found, dict) and found.get("format") == kind.format
    (kind if is_kind else other).manifest(path)


def check_models(*names: str, field: str = "model") -> None:
    """Refuse names of models that cannot be there, and models that do not fit into memory."""
    for name in names:
        check_model(name, field=field)
    needed = sum(weights_bytes(name) for name in dict.fromkeys(names))
    check_available(needed, f"loading {' and '.join(dict.fromkeys(names))}", field=field)


def check_bundles(paths: Iterable[Path]) -> None:
    """Refuse what is no bundle, and bundles of models that cannot be there."""
    manifests = [BUNDLE.manifest(path) for path in paths]
    check_models(*(manifest["model"]["name"] for manifest in manifests))


def check_describing(settings: DescribeConfig) -> None:
    """Refuse a describer that lacks what it is asked to work with."""
    judged = bool(settings.metrics) and settings.describer not in _OWN_JUDGES
    named = settings.clip != DescribeConfig().clip
    if judged or named or settings.describer == "contrastive":
        check_contrastive(settings.clip, field="describe.clip")
    if vocabulary := settings.contrastive.vocabulary:
        check_exists(vocabulary, "vocabulary", field="describe.contrastive.vocabulary")


def check_training(store: Path, out: Path, runs: Iterable[TrainConfig]) -> None:
    """Refuse a store or site that is not there, and dictionaries that fit into neither memory nor
    disk. ``runs`` are trained together, and are kept at ``out``."""
    sites = STORE.manifest(store)["sites"]
    weights = 0
    for config in runs:
        dim = int(sites[site_of(sites, config.site)]["dim"])
        if config.architecture in _EXPANDING:
            weights += 2 * config.expansion * dim * dim * config.members
    check_available(weights * _FLOAT * _TRAINED, "training", field="expansion")
    check_room(out, weights * _FLOAT, field="dictionary")


def check_room(out: Path, needed: int, *, field: str) -> None:
    """Refuse to write to a disk that has no room for what is sure to come, in bytes."""
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StorageFullError(
            f"{out} will take at least {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB "
            "left; name a place on another disk, or make room",
            field=field,
        )
