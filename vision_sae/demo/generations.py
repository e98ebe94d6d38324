"""The demo's text-to-image part: its prompts, and its blocks.

Prompts are captions of composed scenes with every attribute at random, of seeds that the
generator's training never saw.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vision_sae.evaluation.planted_scenes import Attributes, random_attributes
from vision_sae.models.sdxl import TURBO_BLOCKS

TRAIN_SEED, HELDOUT_SEED = 2001, 2002
SITES = tuple(f"{block}.update" for block in TURBO_BLOCKS)
SHORT = {site: site.removesuffix(".update").replace("_blocks", "") for site in SITES}
"""Short names of the sites' bundles: ``down.2.attentions.1``."""


def scenes(count: int, seed: int) -> list[Attributes]:
    """What ``count`` prompts ask for; without painted words."""
    return [
        replace(random_attributes(np.random.default_rng([seed, i])), word=None)
        for i in range(count)
    ]


def prompts(count: int, seed: int) -> list[str]:
    """Prompts of scenes that differ in every attribute."""
    return [attributes.caption for attributes in scenes(count, seed)]
