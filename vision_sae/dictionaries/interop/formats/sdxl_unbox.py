"""Checkpoints of sdxl-unbox (Surkov et al. 2024): TopK on the block updates of SDXL-Turbo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import Tensors, directory_of, has_files, read_torch
from vision_sae.dictionaries.interop.folding import SaeWeights
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import Ignored, Known, read_settings, words
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary

NAME = "sdxl-unbox"
CONFIG = "config.json"
WEIGHTS = "state_dict.pth"
FILES: tuple[str, ...] = (CONFIG, WEIGHTS)
SETTINGS = Known(
    used=words("n_dirs_local d_model k"),
    accepted={},
    without_effect=words("auxk dead_steps_threshold"),
)
"""``config.json``, the arguments of its ``SparseAutoencoder``."""


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, *FILES)


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration.

    ``mean.pt`` and ``std.pt`` are not read: a bundle measures these statistics on its own data.
    """
    settings = read_settings(directory_of(path) / CONFIG, ignored)
    settings.check(SETTINGS)
    file = directory_of(path) / WEIGHTS
    stored = Tensors(file, read_torch(file))
    tensors = stored.section("state_dict")
    stored.no_others("state_dict")
    w_enc = tensors.take("encoder.weight", -1, -1)
    width, dim = w_enc.shape
    settings.agrees("n_dirs_local", width)
    settings.agrees("d_model", dim)
    weights = SaeWeights(
        w_enc=w_enc,
        b_enc=tensors.take("latent_bias", width),
        w_dec=tensors.take("decoder.weight", dim, width).T.contiguous(),
        b_dec=tensors.take("pre_bias", dim),
    )
    tensors.no_others(
        "encoder.weight", "decoder.weight", "pre_bias", "latent_bias", "stats_last_nonzero"
    )
    sae = TopKSae(k=settings.active("k", width), **weights._asdict())
    return sae, dict(settings.values)


FORMATS.register(
    Format(
        name=NAME,
        summary="TopK on the block updates of SDXL-Turbo (Surkov et al. 2024)",
        versions="2024",
        sign=Sign.NAMES,
        recognises=recognises,
        load=load,
        files=FILES,
    )
)
