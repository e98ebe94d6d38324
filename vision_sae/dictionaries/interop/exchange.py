"""What ``import`` and ``export`` do: foreign checkpoint to published dictionary, and back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from vision_sae import devices
from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.artifact import (
    FORMAT,
    load_dictionary,
    provenance,
    read_dictionary_manifest,
    save_dictionary,
)
from vision_sae.dictionaries.interop.conversion import (
    check_export,
    detect,
    export_sae,
    import_sae,
)
from vision_sae.dictionaries.interop.format import FORMATS
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.resident import resident
from vision_sae.errors import MismatchError
from vision_sae.places import check_output, check_replaceable

_ROWS = 4096


def import_dictionary(
    source: Path,
    directory: Path,
    store: ActivationStore,
    *,
    site: str | None = None,
    format: str | None = None,
    ignored: Collection[str] = (),
    overwrite: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Publish a foreign checkpoint at ``directory`` as a dictionary of ``store``'s model and site.

    ``ignored`` is as in `import_sae`, and the manifest names it. Its metrics are measured on the
    whole store, beside what the format itself measures there (`Format.measure`). A dictionary
    that is there is replaced only with ``overwrite``. It is measured on ``device``
    (`devices.chosen`). Returns the manifest.
    """
    device = devices.chosen(device)
    finished = check_output(directory, FORMAT, inputs=[source, store.path], field="dictionary")
    check_replaceable(directory, finished, overwrite=overwrite, field="dictionary")
    site = store.site(site)
    store.check_varies(site)
    format = format or detect(source)
    dictionary, said = import_sae(source, format, ignored=ignored)
    if dictionary.dim != store.sites[site]:
        raise MismatchError(
            f"{source} is for vectors of {dictionary.dim} dimensions, site {site} has "
            f"{store.sites[site]}; harvest the site that it was trained on",
            field="site",
        )
    there = resident(dictionary, torch.device(device))
    metrics = evaluate(there, store.batches(site, _ROWS))
    origin: dict[str, Any] = {
        "imported_from": format,
        "settings": said,
        "ignored_settings": sorted(ignored),
    }
    if measure := FORMATS[format].measure:
        origin |= measure(dictionary, store.batches(site, _ROWS))
    belongs_to = provenance(store, site, origin) | {"computed": devices.recorded(device, "float32")}
    save_dictionary(directory, dictionary, belongs_to, {"store": metrics})
    return read_dictionary_manifest(directory)


def export_dictionary(directory: Path, out: Path, format: str, *, overwrite: bool = False) -> None:
    """Write a published dictionary in a foreign format, with the model and site it belongs to.

    An earlier export at ``out`` is replaced only with ``overwrite``.
    """
    check_export(out, format, inputs=[directory], overwrite=overwrite)
    dictionary, manifest = load_dictionary(directory)
    metadata = {
        "model_name": manifest["model"]["name"],
        "hook_name": manifest["site"],
        "vision_sae": {
            key: manifest[key] for key in ("code_version", "data_sha256", "training", "metrics")
        },
    }
    export_sae(dictionary, out, format, metadata=metadata, overwrite=overwrite)
