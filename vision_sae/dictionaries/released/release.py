"""Making a released dictionary: rounded weights, labels and a card in one published folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.architectures import read_weights
from vision_sae.dictionaries.artifact import FORMAT, load_dictionary
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.released.cards import CARD, Notes, card
from vision_sae.dictionaries.released.labels import kept_rows, labelled, write_labels
from vision_sae.dictionaries.released.names import check_name
from vision_sae.dictionaries.weights import DTYPE, HALF, round_to_half
from vision_sae.errors import MismatchError
from vision_sae.files import publishing
from vision_sae.places import check_output, check_replaceable

_EVALUATION_ROWS = 4096


def release(
    directory: Path,
    source: Path,
    name: str,
    notes: Notes,
    *,
    labels: Iterable[Mapping[str, Any]] = (),
    evaluation: Mapping[str, ActivationStore] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Publish the dictionary of ``source`` at ``directory`` as the released one called ``name``.

    ``labels`` are rows of a bundle's ``descriptions.jsonl``. Metrics are those of ``source``; on
    the stores of ``evaluation`` the rounded weights are measured again. Returns the manifest
    without its table of files. A dictionary that is there is replaced only with ``overwrite``.

    Raises `InvalidInputError` for a name that is none, and `MismatchError` for one of another site
    and for a store of another model.
    """
    check_name(name)
    check_replaceable(
        directory, check_output(directory, FORMAT, inputs=[source]), overwrite=overwrite
    )
    dictionary, trained = load_dictionary(source)
    _check_site(name, trained["site"])
    stores = dict(evaluation or {})
    for held in stores.values():
        _check_model(held, trained)
    rows = kept_rows(labels, dictionary.width)
    with publishing(directory) as (staging, manifest):
        described = dictionary.save(staging) | {DTYPE: HALF}
        round_to_half(staging)
        rounded = read_weights(staging, described)
        again = {
            data: evaluate(rounded, held.batches(trained["site"], _EVALUATION_ROWS))._asdict()
            for data, held in stores.items()
        }
        measured_on = {data: held.manifest["data_sha256"] for data, held in stores.items()}
        manifest |= {key: value for key, value in trained.items() if key != "files"}
        manifest |= {
            "dictionary": described,
            "metrics": trained["metrics"] | again,
            "measured_on": trained.get("measured_on", {}) | measured_on,
            "released": {
                "name": name,
                "labelled": labelled(rows),
                "abstained": len(rows) - labelled(rows),
                "measured_rounded": sorted(again),
            },
        }
        if rows:
            write_labels(staging, rows)
        (staging / CARD).write_text(card(manifest, rows, notes), encoding="utf-8")
    return manifest


def _check_site(name: str, site: str) -> None:
    if f"/{site}" not in name or site not in name.partition(":")[2].split("/"):
        raise MismatchError(
            f"the dictionary belongs to site {site}, which {name} does not name; call it "
            f"MAKER:MODEL/{site}",
            field="name",
        )


def _check_model(store: ActivationStore, trained: Mapping[str, Any]) -> None:
    ours, theirs = store.manifest["model"], trained["model"]
    if ours["weights_sha256"] != theirs["weights_sha256"]:
        raise MismatchError(
            f"{store.path} was harvested from {ours['name']} with weights "
            f"{ours['weights_sha256']}, the dictionary belongs to {theirs['name']} with "
            f"{theirs['weights_sha256']}",
            field="evaluation",
        )
