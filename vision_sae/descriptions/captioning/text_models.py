"""Loading the captioners and language models of transformers, by local path or hub name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from vision_sae import devices
from vision_sae.errors import NotFoundError
from vision_sae.files import file_table, sha256_json

Loaded = TypeVar("Loaded")


def contents(name: str) -> str:
    """SHA-256 of the files of a local or demo model; empty for a model on a hub, which is known by
    its name alone before it is loaded."""
    from vision_sae.models.embedded import captioner as demo

    path = demo.PACKAGED.get(name, Path(name))
    return sha256_json(file_table(path)) if path.is_dir() else ""


def load_pretrained(load: Callable[..., Loaded], name: str, *, field: str) -> Loaded:
    """``load(name)`` by a ``from_pretrained`` of transformers.

    Raises `NotFoundError` (``field``) when there is no such directory or model. Code in the model's
    repository is never run.
    """
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise NotFoundError(f"{field}: there is no directory {name}", field=field)
    try:
        return load(name)
    except (OSError, ValueError, KeyError) as error:
        raise NotFoundError(
            f"{field}: {name} is no model that transformers can load ({error}); give a directory "
            "written by save_pretrained, with the tokenizer, or a name on its hub",
            field=field,
        ) from error


def load_weights(auto_class: Any, name: str, *, field: str) -> Any:
    """A model of ``auto_class`` in float32 on the device of the process's setting
    (`devices.chosen`), ready for inference; safetensors only.

    Raises `NotFoundError` when there is no such model, and for a checkpoint with missing weights.
    The weights of poolers may be missing, because no text depends on poolers.
    """

    def load(name: str) -> Any:
        return auto_class.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )

    model, report = load_pretrained(load, name, field=field)
    missing = sorted(key for key in report["missing_keys"] if ".pooler." not in key)
    if missing:
        raise NotFoundError(
            f"{field}: {name} has no weights for {missing[0]} (and {len(missing) - 1} more)",
            field=field,
        )
    return model.eval().to(devices.chosen())
