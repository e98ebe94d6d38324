"""Checkpoints of dictionary_learning (Marks, Karvonen and Mueller 2024)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vision_sae.dictionaries.interop.checkpoint import Tensors, directory_of, has_files, read_torch
from vision_sae.dictionaries.interop.folding import SaeWeights, subtracting
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import (
    Accepted,
    ForeignSettings,
    Ignored,
    Known,
    read_settings,
    words,
)
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKSae
from vision_sae.dictionaries.kinds.gated import GatedSae
from vision_sae.dictionaries.kinds.jumprelu import JumpReluSae
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import CorruptArtifactError

NAME = "dictionary_learning"
CONFIG = "config.json"
WEIGHTS = "ae.pt"
FILES: tuple[str, ...] = (CONFIG, WEIGHTS)
SETTINGS = Known(used=words("trainer buffer"), accepted={}, without_effect=frozenset())
TRAINER = Known(
    used=words("dict_class activation_dim dict_size k"),
    accepted={},
    without_effect=words("""
        anneal_end anneal_start auxk_alpha bandwidth decay_start device group_fractions group_sizes
        group_weights l1_penalty layer lm_name lr n_sparsity_updates p_end p_start resample_steps
        seed sparsity_function sparsity_penalty sparsity_queue_length sparsity_warmup_steps steps
        submodule_name target_l0 threshold_beta threshold_start_step top_k_aux trainer_class
        wandb_name warmup_steps
    """),
)
"""The object ``trainer`` of ``config.json``."""
BUFFER = Known(
    used=frozenset(),
    accepted={
        "io": Accepted(("in", "out"), "it reads one site and writes another; use an SAE of one")
    },
    without_effect=words("""
        add_special_tokens ctx_len d_submodule device layer max_activation_norm_multiple n_ctxs
        out_batch_size refresh_batch_size remove_bos
    """),
)
"""The object ``buffer`` of ``config.json``."""


def recognises(path: Path) -> bool:
    """Whether the files of this format are there."""
    return has_files(path, *FILES)


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its configuration."""
    settings = read_settings(directory_of(path) / CONFIG, ignored)
    settings.check(SETTINGS)
    trainer = settings.section("trainer")
    trainer.check(TRAINER)
    if settings.values.get("buffer"):
        settings.section("buffer").check(BUFFER)
    name = trainer.text("dict_class")
    trainer.accept("dict_class", Accepted(tuple(_CLASSES), "use one of these"))
    file = directory_of(path) / WEIGHTS
    dictionary = _CLASSES[name](trainer, Tensors(file, read_torch(file)))
    trainer.agrees("activation_dim", dictionary.dim)
    trainer.agrees("dict_size", dictionary.width)
    return dictionary, dict(settings.values)


def _linear(tensors: Tensors, b_enc: str, b_dec: str, *others: str) -> SaeWeights:
    """Weights that stand in two linear layers."""
    w_enc = tensors.take("encoder.weight", -1, -1)
    width, dim = w_enc.shape
    tensors.no_others("encoder.weight", "decoder.weight", b_enc, b_dec, *others)
    return SaeWeights(
        w_enc=w_enc,
        b_enc=tensors.take(b_enc, width),
        w_dec=tensors.take("decoder.weight", dim, width).T.contiguous(),
        b_dec=tensors.take(b_dec, dim),
    )


def _matrices(tensors: Tensors, *others: str) -> SaeWeights:
    """Weights that stand as W_enc (D, F) and W_dec (F, D)."""
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec", *others)
    return SaeWeights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )


def _k(trainer: ForeignSettings, tensors: Tensors, width: int) -> int:
    """The k of the configuration, which the weights repeat."""
    k = trainer.active("k", width)
    if "k" in tensors.stored and tensors.count("k") != k:
        raise CorruptArtifactError(
            f"{tensors.path}: k is {tensors.count('k')}, its configuration says {k}; "
            "the files do not belong together"
        )
    return k


def _thresholded(trainer: ForeignSettings, tensors: Tensors, weights: SaeWeights) -> Dictionary:
    """A threshold below 0 was never set; then a row alone is a batch, and its k largest fire."""
    k = _k(trainer, tensors, len(weights.w_dec))
    threshold = tensors.take("threshold")
    if threshold < 0:
        return TopKSae(k=k, **weights._asdict())
    return BatchTopKSae(k=k, threshold=threshold, **weights._asdict())


def _standard(_: ForeignSettings, tensors: Tensors) -> Dictionary:
    return ReluSae(**_linear(tensors, "encoder.bias", "bias")._asdict())


def _april_update(_: ForeignSettings, tensors: Tensors) -> Dictionary:
    weights = subtracting(_linear(tensors, "encoder.bias", "decoder.bias"))
    return ReluSae(**weights._asdict())


def _topk(trainer: ForeignSettings, tensors: Tensors) -> Dictionary:
    """It keeps a threshold too, and encodes with k unless it is told otherwise."""
    weights = _linear(tensors, "encoder.bias", "b_dec", "k", "threshold")
    return TopKSae(k=_k(trainer, tensors, len(weights.w_dec)), **weights._asdict())


def _batch_topk(trainer: ForeignSettings, tensors: Tensors) -> Dictionary:
    weights = _linear(tensors, "encoder.bias", "b_dec", "k", "threshold")
    return _thresholded(trainer, tensors, weights)


def _matryoshka(trainer: ForeignSettings, tensors: Tensors) -> Dictionary:
    return _thresholded(trainer, tensors, _matrices(tensors, "k", "threshold", "group_sizes"))


def _jumprelu(_: ForeignSettings, tensors: Tensors) -> Dictionary:
    """Its activations are multiplied by the decoder's norms and divided again: nothing to do."""
    weights = subtracting(_matrices(tensors, "threshold"))
    threshold = tensors.take("threshold", len(weights.w_dec)).clamp_min(0)
    return JumpReluSae(threshold=threshold, **weights._asdict())


def _gated(_: ForeignSettings, tensors: Tensors) -> Dictionary:
    weights = _linear(tensors, "gate_bias", "decoder_bias", "r_mag", "mag_bias")
    width = len(weights.w_dec)
    return GatedSae(
        r_mag=tensors.take("r_mag", width),
        b_mag=tensors.take("mag_bias", width),
        **weights._asdict(),
    )


_CLASSES: dict[str, Callable[[ForeignSettings, Tensors], Dictionary]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _april_update,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
    "GatedAutoEncoder": _gated,
}


FORMATS.register(
    Format(
        name=NAME,
        summary="dictionary_learning (Marks, Karvonen and Mueller 2024)",
        versions="2024 to 2026",
        sign=Sign.NAMES,
        recognises=recognises,
        load=load,
        files=FILES,
    )
)
