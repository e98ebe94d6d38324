"""Foreign checkpoint -> published dictionary and back: what import and export commands do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.artifact import (
    FORMAT,
    load_dictionary,
    provenance,
    read_dictionary_manifest,
    save_dictionary,
)
from vision_sae.dictionaries.interop.formats import check_export, detect, export_sae, import_sae
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.errors import MismatchError
from vision_sae.places import check_output, check_replaceable

_EVALUATION_ROWS = 4096


def import_dictionary(
    source: Path,
    directory: Path,
    store: ActivationStore,
    *,
    site: str | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish a foreign checkpoint at ``directory`` as a dictionary of ``store``'s model and site.

    Its metrics are measured on the whole store. Returns the manifest. A dictionary that is there is
    replaced only with ``overwrite``.
    """
    found = check_output(directory, FORMAT, inputs=[source, store.path], field="dictionary")
    check_replaceable(directory, found, overwrite=overwrite, field="dictionary")
    site = store.site(site)
    format = format or detect(source)
    dictionary, said = import_sae(source, format)
    if dictionary.dim != store.sites[site]:
        raise MismatchError(
            f"{source} is for vectors of {dictionary.dim} dimensions, site {site} has "
            f"{store.sites[site]}; harvest the site that it was trained on",
            field="site",
        )
    metrics = evaluate(dictionary, store.batches(site, _EVALUATION_ROWS))
    belongs_to = provenance(store, site, {"imported_from": format, "settings": said})
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
