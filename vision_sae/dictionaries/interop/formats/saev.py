"""Checkpoints of saev (Stevens et al. 2025): a line of JSON, then a torch archive."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_sae.dictionaries.interop.checkpoint import Tensors, read_torch
from vision_sae.dictionaries.interop.folding import SaeWeights, subtracting
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign
from vision_sae.dictionaries.interop.settings import (
    Accepted,
    ForeignSettings,
    Ignored,
    Known,
    opened,
    parse_settings,
    words,
)
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKSae
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import CorruptArtifactError

NAME = "saev"
WEIGHTS = "sae.pt"
SUFFIX = ".pt"
THRESHOLD = "activation.threshold"
_LONGEST_HEADER = 2**20
_WITHOUT_THRESHOLD = 3
"""The last schema in which BatchTopK may have no threshold: it chose the largest of each row then,
as TopK does."""
HEADER = Known(
    used=words("cfg cls"),
    accepted={
        "schema": Accepted(
            (1, 2, 3, 4, 5), "save it again with a saev that writes one of these schemas"
        )
    },
    without_effect=words("commit lib"),
)
"""The header of files with a schema."""
WITHOUT_SCHEMA = Known(
    used=words("d_vit exp_factor"),
    accepted={},
    without_effect=words("""
        ghost_grads l1_coeff n_reinit_samples normalize_w_dec remove_parallel_grads seed
        sparsity_coeff use_ghost_grads
    """),
)
"""The header of files without a schema, which is a configuration: ReLU alone."""
FIRST_CONFIG = replace(WITHOUT_SCHEMA, used=WITHOUT_SCHEMA.used | {"top_k"})
"""The object ``cfg`` of the first files of schema 1, which name the activation outside."""
CONFIG = Known(
    used=words("d_vit d_model d_sae exp_factor activation"),
    accepted={},
    without_effect=WITHOUT_SCHEMA.without_effect | words("reinit_blend reinit_enc_dec_tranpose"),
)
"""The object ``cfg`` of later files."""
ACTIVATION = Known(used=words("cls params"), accepted={}, without_effect=frozenset())
PARAMETERS = Known(used=words("top_k"), accepted={}, without_effect=words("kind momentum sparsity"))
_CLASS = Accepted(("SparseAutoencoderConfig",), "use one of this class")
_OF_SCHEMA_1 = Accepted(
    ("Relu", "TopK"), "it chose the largest of a whole batch, so a vector has no code by itself"
)
_OF_LATER_SCHEMAS = Accepted(("Relu", "TopK", "BatchTopK"), "use one of these")


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def recognises(path: Path) -> bool:
    """Whether there is a file of this format: a torch archive never starts with a brace."""
    file = _file(path)
    return file.is_file() and file.suffix == SUFFIX and _starts_with_json(file)


def _starts_with_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"{"


def load(path: Path, ignored: Ignored) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its header.

    SAEs of schemas 2 and later encode x. The classes that wrote schema 1, and files without a
    schema, encoded x - b_dec.
    """
    file = _file(path)
    with opened(file) as stream:
        line, archive = stream.readline(_LONGEST_HEADER), io.BytesIO(stream.read())
    if not line.startswith(b"{"):
        raise CorruptArtifactError(
            f"{file} does not start with the JSON header of a saev checkpoint; download it again"
        )
    header = ForeignSettings(file, parse_settings(file, line), ignored=ignored)
    config = _config(header)
    name, parameters = _activation(header, config)
    tensors = Tensors(file, read_torch(file, archive))
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    for key, size in {"d_vit": dim, "d_model": dim, "d_sae": width}.items():
        config.agrees(key, size)
    config.expands("exp_factor", dim, width)
    weights = SaeWeights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    thresholds = [THRESHOLD] if name == "BatchTopK" else []
    tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec", *thresholds)
    schema = header.values.get("schema", 0)
    if schema > 1:
        weights = subtracting(weights)
    return _dictionary(name, parameters, weights, tensors, schema), dict(header.values)


def _config(header: ForeignSettings) -> ForeignSettings:
    """The configuration of the class, after a look at all that the header says."""
    if "schema" not in header.values:
        header.check(WITHOUT_SCHEMA)
        return header
    header.check(HEADER)
    config = header.section("cfg")
    config.check(CONFIG if "activation" in config.values else FIRST_CONFIG)
    return config


def _activation(header: ForeignSettings, config: ForeignSettings) -> tuple[str, ForeignSettings]:
    """The activation's class and its parameters, wherever the header's version keeps them."""
    schema = header.values.get("schema")
    if schema is None:
        return "Relu", config
    if schema != 1 or "activation" in config.values:
        header.accept("cls", _CLASS)
        holder = config.section("activation")
        holder.check(ACTIVATION)
        parameters = holder.section("params")
        parameters.check(PARAMETERS)
    else:  # the first files of schema 1
        holder, parameters = header, config
    holder.accept("cls", _OF_SCHEMA_1 if schema == 1 else _OF_LATER_SCHEMAS)
    return holder.text("cls"), parameters


def _dictionary(
    name: str, parameters: ForeignSettings, weights: SaeWeights, tensors: Tensors, schema: int
) -> Dictionary:
    keywords = weights._asdict()
    if name == "Relu":
        return ReluSae(**keywords)
    k = parameters.active("top_k", len(weights.w_dec))
    if name == "TopK" or (schema <= _WITHOUT_THRESHOLD and THRESHOLD not in tensors.stored):
        return TopKSae(k=k, **keywords)
    return BatchTopKSae(k=k, threshold=tensors.take(THRESHOLD).clamp_min(0), **keywords)


def measure(dictionary: Dictionary, batches: Iterable[Tensor]) -> dict[str, Any]:
    """How many vectors have fewer than k positive pre-activations, of a TopK.

    saev lets negative ones fire there, which no code can hold: saev reconstructs these vectors
    otherwise.
    """
    if not isinstance(dictionary, TopKSae):
        return {}
    numbers = ((dictionary.encode(rows).values > 0).sum(1) for rows in batches)
    return {"vectors_short_of_k": sum(int((n < dictionary.k).sum()) for n in numbers)}


FORMATS.register(
    Format(
        name=NAME,
        summary="saev (Stevens et al. 2025)",
        versions="schemas 1 to 5, and files without a schema",
        sign=Sign.CONTENT,
        recognises=recognises,
        load=load,
        measure=measure,
    )
)
