"""Checkpoints of saev (Stevens et al. 2025): a line of JSON, then a torch archive."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from vision_sae.dictionaries.batch_topk import BatchTopKSae
from vision_sae.dictionaries.interop.checkpoint import (
    Settings,
    Tensors,
    must_exist,
    parse_settings,
    read_torch,
)
from vision_sae.dictionaries.interop.folding import Weights, subtracting
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.relu import ReluSae
from vision_sae.dictionaries.topk import TopKSae
from vision_sae.errors import CorruptArtifactError, InvalidInputError

NAME = "saev"
WEIGHTS = "sae.pt"
SUFFIX = ".pt"
THRESHOLD = "activation.threshold"
_NEWEST_SCHEMA = 5
_LONGEST_HEADER = 2**20


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def recognises(path: Path) -> bool:
    """Whether there is a file of this format: a torch archive never starts with a brace."""
    file = _file(path)
    return file.is_file() and file.suffix == SUFFIX and _starts_with_json(file)


def _starts_with_json(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == b"{"


def _activation(header: Settings) -> tuple[str, Settings]:
    """The activation's class and its parameters, wherever the header's version keeps them."""
    if "schema" not in header.values:
        return "Relu", header
    config = header.section("cfg")
    if "activation" in config.values:
        activation = config.section("activation")
        return activation.text("cls"), activation.section("params")
    return header.text("cls"), config  # the first files of schema 1


def load(path: Path) -> tuple[Dictionary, dict[str, Any]]:
    """The dictionary, and its header.

    With a schema, SAEs encode x; the class before there was one encoded x - b_dec.
    """
    file = _file(path)
    must_exist(file)
    if not _starts_with_json(file):
        raise CorruptArtifactError(
            f"{file} does not start with the JSON header of a saev checkpoint; download it again"
        )
    with file.open("rb") as stream:
        header = Settings(file, parse_settings(file, stream.readline(_LONGEST_HEADER)))
        tensors = Tensors(file, read_torch(file, io.BytesIO(stream.read())))
    schema = header.values.get("schema")
    if schema is not None and schema not in range(1, _NEWEST_SCHEMA + 1):
        raise InvalidInputError(
            f"{file} has schema {schema!r}; schemas 1 to {_NEWEST_SCHEMA} can be imported, save it "
            "again with a saev that writes one of them",
            field="source",
        )
    w_enc = tensors.take("W_enc", -1, -1)
    dim, width = w_enc.shape
    config = header if schema is None else header.section("cfg")
    for key, size in {"d_vit": dim, "d_model": dim, "d_sae": width}.items():
        config.agrees(key, size)
    weights = Weights(
        w_enc=w_enc.T.contiguous(),
        b_enc=tensors.take("b_enc", width),
        w_dec=tensors.take("W_dec", width, dim),
        b_dec=tensors.take("b_dec", dim),
    )
    tensors.no_others("W_enc", "b_enc", "W_dec", "b_dec", THRESHOLD)
    if schema is not None:
        weights = subtracting(weights)
    return _dictionary(header, weights, tensors), dict(header.values)


def _dictionary(header: Settings, weights: Weights, tensors: Tensors) -> Dictionary:
    name, parameters = _activation(header)
    keywords = weights._asdict()
    if name == "Relu":
        return ReluSae(**keywords)
    if name not in ("TopK", "BatchTopK"):
        raise InvalidInputError(
            f"{header.path} has activation {name!r}; Relu, TopK and BatchTopK can be imported",
            field="activation",
        )
    k = parameters.active("top_k", len(weights.w_dec))
    if name == "TopK" or THRESHOLD not in tensors.stored:
        # Until schema 3, BatchTopK chose the largest of each row, as TopK does.
        return TopKSae(k=k, **keywords)
    return BatchTopKSae(k=k, threshold=tensors.take(THRESHOLD).clamp_min(0), **keywords)
