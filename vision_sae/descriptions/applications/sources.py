"""Where labelled units come from: a bundle's own labels, or those of a label store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vision_sae.bundles.bundle import Bundle
from vision_sae.descriptions.applications.units import LabelledUnit, UnitSet
from vision_sae.descriptions.batch import EvidenceFolder
from vision_sae.descriptions.evidence.neurons import Neurons
from vision_sae.descriptions.evidence.protocol import Evidence
from vision_sae.descriptions.store import LabelStore
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.models.bound import load_bound_model
from vision_sae.models.protocol import Model


@dataclass(frozen=True)
class LabelledModel:
    """A model, the evidence of its units, and their labels."""

    model: Model
    evidence: Mapping[str, Evidence]
    """{name: evidence of one site}"""
    labels: Mapping[str, Mapping[int, str]]
    """{name of the evidence: {unit: label}}; units that abstain are not in it."""
    unit_set: UnitSet


def labelled_model(folder: EvidenceFolder, store: LabelStore | None) -> LabelledModel:
    """Load what a bundle, or evidence of neurons, was made from, with the labels of its units.

    Labels come from ``store``, or without one from the bundle. Raises `InvalidInputError` when
    there are none, and `MismatchError` when the model that answers to its name is another one.
    """
    evidence = folder.open()
    if store:
        labels = {
            name: {
                index: entry.description.text
                for index, entry in store.currents(name).items()
                if entry.description.text is not None
            }
            for name in evidence
        }
    elif folder.kind == "bundle":
        rows = Bundle(folder.path).descriptions
        labels = {name: {i: r["text"] for i, r in rows.items() if r["text"]} for name in evidence}
    else:
        labels = {}
    if not any(labels.values()):
        raise InvalidInputError(
            f"no unit of {folder.path} has a label; run `vision-sae describe` or `vision-sae "
            "label`, and name the label store with --labels",
            field="labels",
        )
    model, dictionaries = _model(folder)
    units = [
        LabelledUnit(found.site, index, text)
        for name, found in evidence.items()
        for index, text in sorted(labels[name].items())
    ]
    return LabelledModel(model, evidence, labels, UnitSet(units, dictionaries, model.grid.special))


def _model(folder: EvidenceFolder) -> tuple[Model, dict[str, Dictionary]]:
    dictionaries: dict[str, Dictionary] = {}
    if folder.kind == "bundle":
        bundle = Bundle(folder.path)
        identity, dictionaries = bundle.manifest["model"], {bundle.site: bundle.dictionary}
    else:
        identity = Neurons(folder.path).manifest["model"]
    return load_bound_model(identity), dictionaries
