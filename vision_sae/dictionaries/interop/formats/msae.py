"""Checkpoints of MSAE (Zaigrajew et al. 2025, "Interpreting CLIP with hierarchical SAEs").

The activation and the options stand in the file's name alone, for example
``6144_768_TopKReLU_64_RW_False_False_0.0_cc3m.pth``: features, dimensions, activation (then its k,
or ReLU's penalty), weighting of the nested losses where there is one, whether the weights are tied,
whether each input is standardised, and the soft cap of the activations (0 for none).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vision_sae.dictionaries.interop.checkpoint import Tensors, one_file, only_file, read_torch
from vision_sae.dictionaries.interop.folding import SaeWeights, on_site_vectors
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import ForeignSettings, Ignored, Known, words
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import CorruptArtifactError, InvalidInputError

NAME = "msae"
SUFFIX = ".pth"
SETTINGS = Known(
    used=words("model mean_center scaling_factor"),
    accepted={},
    without_effect=words("target_norm config epoch best_val_fvu"),
)
"""What lies beside the tensors; ``scaling_factor`` was made of ``target_norm``."""
_WEIGHTINGS = ("UW", "RW")


class Options(NamedTuple):
    """What a file's name says."""

    width: int
    dim: int
    activation: str
    k: int | None
    tied: bool
    normalize: bool
    soft_cap: float


def recognises(path: Path) -> bool:
    """Whether there is one file of this kind."""
    return only_file(path, SUFFIX) is not None


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its options. It encodes ``(x - mean_center) * scaling_factor``."""
    file = one_file(path, SUFFIX)
    options = _options(file)
    _refuse_what_weights_cannot_express(file, options)
    stored = Tensors(file, read_torch(file))
    ForeignSettings(file, stored.stored, ignored=ignored).check(SETTINGS)
    tensors = stored.section("model")
    width, dim = options.width, options.dim
    w_enc = tensors.take("encoder", dim, width).T.contiguous()
    weights = SaeWeights(
        w_enc=w_enc,
        b_enc=tensors.take("latent_bias", width),
        w_dec=w_enc if options.tied else tensors.take("decoder", width, dim),
        b_dec=tensors.take("pre_bias", dim),
    )
    decoder = [] if options.tied else ["decoder"]
    tensors.no_others(
        "encoder", *decoder, "pre_bias", "latent_bias", "latents_activation_frequency"
    )
    scale = _number(stored, "scaling_factor")
    if scale <= 0:
        raise CorruptArtifactError(f"{file}: scaling_factor is {scale}, not above 0")
    weights = on_site_vectors(weights, center=_center(stored, dim), scale=scale)
    said = options._asdict() | {"scaling_factor": scale}
    if options.k is not None:
        return TopKSae(k=options.k, **weights._asdict()), said
    return ReluSae(**weights._asdict()), said


def _options(file: Path) -> Options:
    words = iter(file.stem.split("_"))
    flags = {"True": True, "False": False}
    try:
        width, dim, activation = int(next(words)), int(next(words)), next(words)
        k = int(next(words)) if "TopK" in activation else None
        if activation == "ReLU":
            next(words)
        word = next(words)
        tied = flags[next(words) if word in _WEIGHTINGS else word]
        return Options(width, dim, activation, k, tied, flags[next(words)], float(next(words)))
    except (StopIteration, KeyError, ValueError) as error:
        raise InvalidInputError(
            f"{file} must keep the name that MSAE gave it, for it alone says how features fire; "
            "rename it as in 6144_768_TopKReLU_64_RW_False_False_0.0_cc3m.pth: features, "
            "dimensions, activation, tied, normalised, soft cap",
            field="source",
        ) from error


def _refuse_what_weights_cannot_express(file: Path, options: Options) -> None:
    if options.activation not in ("ReLU", "TopKReLU"):
        raise InvalidInputError(
            f"{file} has activation {options.activation!r}; ReLU and TopKReLU can be imported",
            field="activation",
        )
    if options.k is not None and not 1 <= options.k <= options.width:
        raise CorruptArtifactError(f"{file}: k is {options.k}, of {options.width} features")
    for what, given in {
        "standardises each input": options.normalize,
        "caps its activations softly": options.soft_cap != 0,
    }.items():
        if given:
            raise InvalidInputError(
                f"{file} {what}, which weights cannot express; use a checkpoint without",
                field="source",
            )


def _number(stored: Tensors, key: str) -> float:
    number = stored.stored.get(key)
    if isinstance(number, int | float) and not isinstance(number, bool):
        number = torch.tensor(float(number))
    return float(Tensors(stored.path, {key: number}).take(key))


def _center(stored: Tensors, dim: int) -> Tensor | float:
    """The mean that is taken from inputs: (D), or one number."""
    center = stored.stored.get("mean_center")
    if isinstance(center, Tensor) and center.numel() == dim:
        return Tensors(stored.path, {"mean_center": center.flatten()}).take("mean_center", dim)
    return _number(stored, "mean_center")


FORMATS.register(
    Format(
        name=NAME,
        summary="MSAE (Zaigrajew et al. 2025)",
        versions="2025",
        sign=Sign.SUFFIX,
        recognises=recognises,
        load=load,
    )
)
