"""The registries whose names appear in the configuration and on the command line.

This is a ground module, because `vision_sae.config` checks names against the registries. The types
of the registered objects are defined in the rooms above: `vision_sae.dictionaries.architectures`
defines architectures, `vision_sae.descriptions.kinds` defines describers and scores.
"""

from __future__ import annotations

from typing import Any

from vision_sae.registry import Registry

ARCHITECTURES: Registry[Any] = Registry(
    "architecture",
    package="vision_sae.dictionaries.kinds",
    group="vision_sae.architectures",
    field="train.architecture",
)
"""The architectures of dictionaries; `vision_sae.dictionaries.architectures` has the typed view."""
DESCRIBERS: Registry[Any] = Registry(
    "describer",
    package="vision_sae.descriptions.describers",
    group="vision_sae.describers",
    field="describe.describer",
    separator="-",
)
"""The describers, which make labels; `vision_sae.descriptions.kinds.describer_kind` has the typed
view."""
SCORES: Registry[Any] = Registry(
    "score",
    package="vision_sae.descriptions.scores",
    group="vision_sae.scores",
    field="describe.metrics",
)
"""The scores, which measure how well labels fit; `vision_sae.descriptions.kinds.score_kinds` has
the typed view."""
