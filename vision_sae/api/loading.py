"""Opening of models, dictionaries, bundles and activation stores."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vision_sae.activations.store import ActivationStore
from vision_sae.api.subjects import AnyModel, as_model
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.devices import Dtype
from vision_sae.dictionaries.interop.conversion import import_sae
from vision_sae.dictionaries.released import lookup
from vision_sae.dictionaries.released.lookup import LoadedDictionary
from vision_sae.dictionaries.released.names import is_name
from vision_sae.errors import InvalidInputError, MismatchError, NotFoundError
from vision_sae.files import MANIFEST, published
from vision_sae.models import loading
from vision_sae.models.protocol import Model


def load_model(name: str, *, dtype: Dtype = "auto", device: str = "auto") -> Model:
    """Load a model by name or path: ``demo:dinov2-s``, ``demo:clip``, ``demo:generator``, a timm
    name, ``torchvision:NAME``, ``open_clip:NAME[/TAG]``, ``sdxl:NAME``, a directory.

    ``device`` is ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or "auto": the environment's
    VISION_SAE_DEVICE, or else the first GPU with room, or else the CPU. ``dtype`` is the precision
    of matrix products: ``float32``, ``bfloat16``, on GPUs ``float16``, or "auto": the environment's
    VISION_SAE_DTYPE, or else the device's fastest of the first two.
    ``forward`` of the model takes pictures (B, 3, H, W), and ``sites`` lists its sites.

    Raises `NotFoundError` for an unknown name, `InvalidInputError` for an absent device, and
    `MissingDependencyError` for a model of the demo whose weights are not installed.
    """
    return loading.load_model(name, dtype=dtype, device=device)


def load_bundle(path: str | Path) -> Bundle:
    """Open a published bundle of F features; every file's hash is checked, arrays are mapped.

    Raises `NotFoundError` if there is no bundle and `CorruptArtifactError` for a damaged one.
    """
    return read_bundle(Path(path))


def load_store(path: str | Path) -> ActivationStore:
    """Open a finished ActivationStore: memory-mapped site vectors (pictures, patches, D).

    Raises `NotFoundError` if there is no store and `CorruptArtifactError` for a damaged one.
    """
    return ActivationStore(Path(path))


def load_dictionary(
    source: str | Path,
    *,
    model: AnyModel | None = None,
    site: str | None = None,
    format: str | None = None,
    ignore_settings: Collection[str] = (),
    allow_downloads: bool = False,
) -> LoadedDictionary:
    """Load a released dictionary by name, or a trained or foreign dictionary by path.

    A name is like ``demo:dinov2-s/blocks.10.update``. A checkpoint of another library does not name
    its model and site in our terms, so ``model`` and ``site`` name them; `encode` and the other
    functions need both. ``format`` names the library if the files do not identify it;
    ``ignore_settings`` names unknown settings that do not change the arithmetic. A missing
    dictionary is downloaded only with ``allow_downloads``. The result holds ``dictionary``, with
    directions ``decoder`` (F, D), and its ``manifest``, labels and card.

    Raises `NotFoundError`, `CorruptArtifactError`, `MismatchError` for a site of another width, and
    `InvalidInputError` for a checkpoint that cannot be expressed here.
    """
    path = Path(source)
    name = isinstance(source, str) and is_name(source)
    foreign = path.exists() and not (published(path) / MANIFEST).is_file()
    if format is None and not ignore_settings and (name or not foreign):
        return lookup.load_dictionary(source, allow_downloads=allow_downloads)
    dictionary, said = import_sae(path, format, ignored=ignore_settings)
    manifest: dict[str, Any] = {"training": {"settings": said}, "metrics": {}}
    if (model is None) != (site is None):
        raise InvalidInputError(
            "a dictionary belongs to a model and a site of it; give both, or neither",
            field="site" if site is None else "model",
        )
    if model is not None and site is not None:
        ready = as_model(model)
        _check_width(ready, site, dictionary.dim)
        manifest |= {"model": json.loads(json.dumps(ready.identity())), "site": site}
    return LoadedDictionary(dictionary, manifest, {}, "", None)


def _check_width(model: Model, site: str, dim: int) -> None:
    if site not in model.sites:
        raise NotFoundError(
            f"{model.name} has no site {site!r}; its sites are {', '.join(model.sites)}",
            field="site",
        )
    if model.sites[site].dim != dim:
        raise MismatchError(
            f"the dictionary is for vectors of {dim} dimensions, {site} of {model.name} has "
            f"{model.sites[site].dim}; name the site that it was trained on",
            field="site",
        )
