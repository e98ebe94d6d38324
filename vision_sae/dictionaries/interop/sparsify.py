"""Checkpoints of sparsify (EleutherAI): TopK sparse coders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import (
    directory_of,
    has_files,
    read_safetensors,
    read_settings,
)
from vision_sae.dictionaries.interop.folding import Weights, subtracting
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.topk import TopKSae

NAME = "sparsify"
CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, CONFIG, WEIGHTS)


def load(path: Path) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration. Transcoders encode x, SAEs x - b_dec."""
    settings = read_settings(directory_of(path) / CONFIG)
    tensors = read_safetensors(directory_of(path) / WEIGHTS)
    settings.only("activation", ("topk",), "topk", "features of a group compete; retrain with topk")
    settings.only(
        "skip_connection",
        (False,),
        False,
        "a dictionary has no linear path beside its features; retrain without",
    )
    w_enc = tensors.take("encoder.weight", -1, -1)
    width, dim = w_enc.shape
    settings.agrees("d_in", dim)
    if settings.values.get("num_latents"):
        settings.agrees("num_latents", width)
    else:  # absent or 0
        settings.agrees("expansion_factor", width / dim)
    weights = Weights(
        w_enc=w_enc,
        b_enc=tensors.take("encoder.bias", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    tensors.no_others("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    if settings.flag("transcode", False):
        weights = subtracting(weights)
    return TopKSae(k=settings.active("k", width), **weights._asdict()), dict(settings.values)
