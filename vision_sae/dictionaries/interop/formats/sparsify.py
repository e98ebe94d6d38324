"""Checkpoints of sparsify (EleutherAI): TopK sparse coders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import directory_of, has_files, read_safetensors
from vision_sae.dictionaries.interop.folding import SaeWeights, subtracting
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import Accepted, Ignored, Known, read_settings, words
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary

NAME = "sparsify"
CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
FILES: tuple[str, ...] = (CONFIG, WEIGHTS)
_LINEAR = "a dictionary has no linear path beside its features; retrain without"
SETTINGS = Known(
    used=words("d_in num_latents d_sae expansion_factor k transcode"),
    accepted={
        "activation": Accepted(
            ("topk",), "features of a group compete with each other alone; retrain with topk"
        ),
        "signed": Accepted(
            (False,),
            "it also fires with negative values, the k largest by magnitude, and activations are "
            "never negative here; retrain with signed false",
        ),
        "skip_connection": Accepted((False,), _LINEAR),
        "embed_skip": Accepted((False,), _LINEAR),
        "gram_lookup": Accepted(
            (False,), "it takes from its input what the tokens before predict; retrain without"
        ),
    },
    without_effect=words(
        "normalize_decoder multi_topk naive_decoder dtype lookup_max_order gram_table_hash"
    ),
)
"""``cfg.json``, of 2024 to 2026."""


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, *FILES)


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration. Transcoders encode x, SAEs x - b_dec."""
    settings = read_settings(directory_of(path) / CONFIG, ignored)
    settings.check(SETTINGS)
    tensors = read_safetensors(directory_of(path) / WEIGHTS)
    w_enc = tensors.take("encoder.weight", -1, -1)
    width, dim = w_enc.shape
    settings.agrees("d_in", dim)
    settings.agrees("d_sae", width)
    latents = settings.values.get("num_latents", 0)
    if latents == 0 and latents is not False:
        settings.expands("expansion_factor", dim, width)
    else:
        settings.agrees("num_latents", width)
    weights = SaeWeights(
        w_enc=w_enc,
        b_enc=tensors.take("encoder.bias", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    tensors.no_others("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    if settings.flag("transcode", False):
        weights = subtracting(weights)
    return TopKSae(k=settings.active("k", width), **weights._asdict()), dict(settings.values)


FORMATS.register(
    Format(
        name=NAME,
        summary="TopK coders of sparsify (EleutherAI)",
        versions="2024 to 2026",
        sign=Sign.RARE_NAMES,
        recognises=recognises,
        load=load,
        files=FILES,
    )
)
