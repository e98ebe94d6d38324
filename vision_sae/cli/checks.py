"""Early checks of commands, before imports and loads that take seconds.

These checks do not import torch, so their errors appear at once. The library makes the checks that
need the model or the data.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vision_sae.artifacts import BUNDLE, DICTIONARY, NEURONS, STORE, ArtifactKind, site_of
from vision_sae.config import DescribeConfig, TrainConfig
from vision_sae.errors import InvalidInputError, NotFoundError, StorageFullError
from vision_sae.files import MANIFEST, published, read_json
from vision_sae.labels.files.milan_layout import is_root
from vision_sae.memory import check_available
from vision_sae.models.names import check_contrastive, check_model, weights_bytes

_FLOAT = 4
_TRAINED = 3
"""Numbers that training keeps per weight: the weight and two moments of its gradient."""


def check_exists(path: Path, what: str, *, field: str) -> None:
    """Raise `NotFoundError` for a path that does not exist."""
    if not path.exists():
        raise NotFoundError(f"there is no {what} at {path}; check the path", field=field)


def check_folder(folder: Path, what: str, *, field: str) -> None:
    """Raise `NotFoundError` for a path that is not a folder."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a directory; give {what}", field=field)


def is_published(path: Path) -> bool:
    """Whether the path holds a manifest, or exemplars in MILAN's layout."""
    return (published(path) / MANIFEST).is_file() or is_root(path)


def check_units(path: Path) -> None:
    """Refuse a path without a bundle, evidence of neurons, or exemplars in MILAN's layout."""
    if (published(path) / MANIFEST).is_file():
        _one_of(path, NEURONS, BUNDLE)
    elif not is_root(path):
        raise NotFoundError(
            f"{path} is neither a bundle, nor evidence of neurons, nor a folder of exemplars in "
            "MILAN's layout; run `vision-sae build` or `vision-sae label`",
            field="units",
        )


def check_labels(location: str) -> None:
    """Refuse a label store that cannot be opened, and a missing file."""
    from vision_sae.labels.database import Database

    if "://" not in location:
        check_exists(Path(location), "label store", field="labels")
    Database(location).close()


def check_dictionary(name: str | Path) -> dict[str, Any]:
    """The manifest of a trained dictionary, or of a released one by its name."""
    from vision_sae.dictionaries.released.lookup import locate

    return DICTIONARY.manifest(locate(name))


def check_measured(path: Path) -> None:
    """Refuse a path without a dictionary or a bundle."""
    _one_of(path, BUNDLE, DICTIONARY)


def _one_of(path: Path, kind: ArtifactKind, fallback: ArtifactKind) -> None:
    """Refuse an artifact of neither kind, with the message for ``fallback``."""
    manifest = published(path) / MANIFEST
    content = read_json(manifest) if manifest.is_file() else None
    is_kind = isinstance(content, dict) and content.get("format") == kind.format
    (kind if is_kind else fallback).manifest(path)


def check_models(*names: str, field: str = "model") -> None:
    """Refuse names of models that cannot exist, and models that do not fit into memory."""
    for name in names:
        check_model(name, field=field)
    needed = sum(weights_bytes(name) for name in dict.fromkeys(names))
    check_available(needed, f"loading {' and '.join(dict.fromkeys(names))}", field=field)


def check_bundles(paths: Iterable[Path]) -> None:
    """Refuse paths without a bundle, and bundles whose models cannot exist."""
    manifests = [BUNDLE.manifest(path) for path in paths]
    check_models(*(manifest["model"]["name"] for manifest in manifests))


def check_describing(settings: DescribeConfig) -> None:
    """Refuse a describer whose needs are not installed, and settings that it does not take."""
    named = settings.clip != DescribeConfig().clip
    if named:  # needs no import of the describer, which takes seconds
        check_contrastive(settings.clip, field="describe.clip")
    from vision_sae.descriptions.kinds import describer_kind

    kind = describer_kind(settings.describer)
    if not named and ((settings.metrics and kind.scored) or "contrastive model" in kind.needs):
        check_contrastive(settings.clip, field="describe.clip")
    for name in {settings.describer, *settings.kinds_with_section}:
        describer_kind(name).check(settings.of(name))


def check_training(store: Path, out: Path, runs: Iterable[TrainConfig]) -> None:
    """Refuse a missing store or site, and dictionaries too large for the memory or the disk.

    ``runs`` are trained together and stored at ``out``.
    """
    sites = STORE.manifest(store)["sites"]
    weights: dict[str, int] = {}
    """{architecture: number of weights of its runs}"""
    for config in runs:
        dim = int(sites[site_of(sites, config.site)]["dim"])
        count = 2 * config.expansion * dim * dim * config.members
        weights[config.architecture] = weights.get(config.architecture, 0) + count
    try:
        _check_fits(out, sum(weights.values()))
    except (InvalidInputError, StorageFullError):
        # Only the architecture knows whether it has ``expansion`` features per dimension, and
        # importing an architecture imports torch. So the architecture is asked second.
        from vision_sae.dictionaries.architectures import ARCHITECTURES

        _check_fits(out, sum(n for name, n in weights.items() if ARCHITECTURES[name].learner))


def _check_fits(out: Path, weights: int) -> None:
    """Refuse to train more weights than memory and disk can hold."""
    check_available(weights * _FLOAT * _TRAINED, "training", field="expansion")
    check_room(out, weights * _FLOAT, field="dictionary")


def check_room(out: Path, needed: int, *, field: str) -> None:
    """Refuse to write to a disk with less free space than ``needed`` bytes."""
    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise StorageFullError(
            f"{out} will take at least {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB "
            "left; name a place on another disk, or make room",
            field=field,
        )
