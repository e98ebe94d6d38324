"""Where labelled units come from: a bundle's own labels, or those of a label store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vision_sae.bundles.bundle import Bundle
from vision_sae.descriptions.applications.units import LabelledUnit, UnitSet
from vision_sae.descriptions.batch import EvidenceFolder
from vision_sae.descriptions.evidence.bundle import BundleEvidence
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
    there are none or the units are of no model that can be run, and `MismatchError` when the model
    that answers to its name is another one.
    """
    if folder.kind == "milan":
        raise InvalidInputError(
            f"{folder.path} holds exemplars in MILAN's layout, which do not say of what model; "
            "name a bundle, or a folder of neurons that `vision-sae label` made",
            field="units",
        )
    opened: Bundle | Neurons
    dictionaries: dict[str, Dictionary] = {}
    described: dict[int, str] = {}
    if folder.kind == "bundle":
        opened = Bundle(folder.path)
        if store:
            store.import_bundle(opened)
        found: list[Evidence] = [BundleEvidence(opened)]
        dictionaries = {opened.site: opened.dictionary}
        described = {i: row["text"] for i, row in opened.descriptions.items() if row["text"]}
    else:
        opened = Neurons(folder.path)
        found = list(opened)
    labels = {e.name: store.texts(e.name) if store else described for e in found}
    units = [
        LabelledUnit(e.site, index, text)
        for e in found
        for index, text in sorted(labels[e.name].items())
    ]
    if not units:
        raise InvalidInputError(
            f"no unit of {folder.path} has a label; run `vision-sae describe` or `vision-sae "
            "label`, and name the label store with --labels",
            field="labels",
        )
    model = load_bound_model(opened.manifest["model"])
    evidence = {e.name: e for e in found}
    firing = {e.site: [unit for unit in range(e.width) if e.peaks(unit).any()] for e in found}
    unit_set = UnitSet(units, dictionaries, firing, model.grid.special)
    return LabelledModel(model, evidence, labels, unit_set)
