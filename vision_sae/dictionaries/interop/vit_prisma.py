"""Checkpoints of ViT-Prisma (Joseph et al. 2025): a state dict with a sibling configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.dictionaries.gated import GatedSae
from vision_sae.dictionaries.interop.checkpoint import (
    Tensors,
    directory_of,
    one_file,
    only_file,
    read_settings,
    read_torch,
)
from vision_sae.dictionaries.interop.folding import Weights
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.relu import ReluSae
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.errors import InvalidInputError

NAME = "vit-prisma"
CONFIG = "config.json"
SUFFIX = ".pt"


def recognises(path: Path) -> bool:
    """Whether there is one file of this kind, beside a configuration."""
    return only_file(path, SUFFIX) is not None and (directory_of(path) / CONFIG).is_file()


def load(path: Path) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration. It encodes x - b_dec."""
    file = one_file(path, SUFFIX)
    settings = read_settings(directory_of(path) / CONFIG)
    settings.only(
        "normalize_activations",
        (None, False, "none"),
        None,
        "it normalises each input by its own statistics, which weights cannot express; use a "
        "checkpoint that was trained with normalize_activations none",
    )
    stored = read_torch(file)
    tensors = Tensors(file, stored)
    if "state_dict" in stored:
        tensors = tensors.section("state_dict")
    architecture = settings.text("architecture", "standard")
    if architecture not in ("standard", "gated"):
        raise InvalidInputError(
            f"{settings.path} has architecture {architecture!r}; standard and gated can be "
            "imported",
            field="architecture",
        )
    gated = architecture == "gated"
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    settings.agrees("d_in", dim)
    settings.agrees("d_sae", width)
    weights = Weights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_gate" if gated else "b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    if gated:
        tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec", "b_gate", "r_mag", "b_mag")
        magnitude = {name: tensors.take(name, width) for name in ("r_mag", "b_mag")}
        return GatedSae(**magnitude, **weights._asdict()), dict(settings.values)
    tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec")
    activation = settings.text("activation_fn_str", "relu")
    if activation == "relu":
        return ReluSae(**weights._asdict()), dict(settings.values)
    if activation == "topk":
        k = settings.section("activation_fn_kwargs").active("k", width)
        return TopKSae(k=k, **weights._asdict()), dict(settings.values)
    raise InvalidInputError(
        f"{settings.path} has activation {activation!r}; relu and topk can be imported",
        field="activation_fn_str",
    )
