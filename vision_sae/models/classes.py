"""The names of a classifier's classes, and the class that a name means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from vision_sae.errors import InvalidInputError

_MOST_NEAR = 5
"""The most names that an error message offers."""


def timm_class_names(module: Any, *, released: bool) -> tuple[str, ...]:
    """The names of a timm model's classes by index; empty where they are unknown.

    The model's own configuration may list them. Weights that timm itself ``released`` were trained
    on the ImageNet that has as many classes; for other weights the number of classes says nothing.
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    count = int(getattr(module, "num_classes", 0) or 0)
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    if labels := config.get("label_names"):
        by_index = {int(i): n for i, n in labels.items()} if isinstance(labels, Mapping) else labels
        descriptions = config.get("label_descriptions") or {}
        indices = range(count) if len(by_index) == count else ()
        return tuple(str(descriptions.get(by_index[i], by_index[i])) for i in indices)
    subset = infer_imagenet_subset(module) if released else None
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else ()


def class_index(names: Sequence[str], wanted: str, *, model: str, field: str) -> int:
    """The index of the class of this name, exactly.

    Raises `InvalidInputError` for a ``model`` without names, for a name that it has not, which is
    told those that are near, and for one that several classes have, which is told their indices.
    """
    if not names:
        raise InvalidInputError(
            f"{model} does not name its classes; give the index of one", field=field
        )
    indices = [index for index, name in enumerate(names) if name == wanted]
    if len(indices) == 1:
        return indices[0]
    if indices:
        raise InvalidInputError(
            f"{len(indices)} classes of {model} are named {wanted!r}; give the index, one of "
            f"{', '.join(map(str, indices))}",
            field=field,
        )
    near = _near(names, wanted)
    advice = f"the nearest are {', '.join(map(repr, near))}" if near else "GetModel lists them"
    raise InvalidInputError(f"{model} has no class named {wanted!r}; {advice}", field=field)


def _near(names: Sequence[str], wanted: str) -> list[str]:
    """Names that hold what is wanted, or else those that are spelled most like it."""
    spelled = {name.casefold(): name for name in reversed(names)}
    sought = wanted.casefold().strip()
    holding = [name for key, name in spelled.items() if sought and sought in key]
    if holding:
        return sorted(holding, key=len)[:_MOST_NEAR]
    return [spelled[key] for key in difflib.get_close_matches(sought, spelled, _MOST_NEAR)]
