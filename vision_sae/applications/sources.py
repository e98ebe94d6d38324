"""Where labelled units come from: a bundle's own labels, or those of a label store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vision_sae.applications.units import LabelledUnit, UnitSet
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.errors import InvalidInputError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.neurons import Neurons
from vision_sae.evidence.protocol import Evidence
from vision_sae.labels.batch import EvidenceFolder
from vision_sae.labels.entries import description_from_json
from vision_sae.labels.store import LabelStore
from vision_sae.models.bound import load_bound_model
from vision_sae.models.protocol import Model


@dataclass(frozen=True)
class LabelledModel:
    """A model, the evidence of its units, and their labels."""

    model: Model
    evidence: Mapping[str, Evidence]
    """{name: evidence of one site}"""
    unit_set: UnitSet
    """The units whose labels are used; units without a label are left out."""
    guesses_left_out: int
    """The number of units left out because no independent judge has confirmed their label."""


def labelled_model(
    folder: EvidenceFolder, store: LabelStore | None, *, guesses: bool = False
) -> LabelledModel:
    """Load the model behind a bundle, or behind evidence of neurons, with the labels of its units.

    Labels come from ``store``, or without a store from the bundle. Labels that a judge has
    confirmed are used, and with ``guesses`` all others, too. Raises `InvalidInputError` when no
    label can be used or the model of the units is unknown, and `MismatchError` when the model of
    that name has changed.
    """
    if folder.kind == "milan":
        raise InvalidInputError(
            f"{folder.path} holds exemplars in MILAN's layout, which do not say of what model; "
            "name a bundle, or a folder of neurons that `vision-sae label` made",
            field="units",
        )
    opened: Bundle | Neurons
    dictionaries: dict[str, Dictionary] = {}
    if folder.kind == "bundle":
        opened = read_bundle(folder.path)
        if store:
            store.import_bundle(opened)
        all_evidence: list[Evidence] = [BundleEvidence(opened)]
        dictionaries = {opened.site: opened.dictionary}
    else:
        opened = Neurons(folder.path)
        all_evidence = list(opened)
    labelled = [
        unit
        for e in all_evidence
        for unit in (_stored(store, e) if store else _of_bundle(opened, e.site))
    ]
    units = labelled if guesses else [unit for unit in labelled if not unit.is_guess]
    if not labelled:
        raise InvalidInputError(
            f"no unit of {folder.path} has a label; run `vision-sae describe` or `vision-sae "
            "label`, and name the label store with --labels",
            field="labels",
        )
    if not units:
        raise InvalidInputError(
            f"no unit of {folder.path} has a label that an independent judge has confirmed; "
            f"{len(labelled)} have a guess, and --guesses uses these",
            field="labels",
        )
    model = load_bound_model(opened.manifest["model"])
    evidence = {e.name: e for e in all_evidence}
    firing = {
        e.site: [unit for unit in range(e.width) if e.peaks(unit).any()] for e in all_evidence
    }
    unit_set = UnitSet(units, dictionaries, firing, model.grid.special)
    return LabelledModel(model, evidence, unit_set, len(labelled) - len(units))


def _stored(store: LabelStore, evidence: Evidence) -> list[LabelledUnit]:
    """The units of a site that have a label in a store, in their order."""
    judges = store.judges(evidence.name)
    return [
        LabelledUnit(evidence.site, index, text, judges.get(index, ""))
        for index, text in sorted(store.texts(evidence.name).items())
    ]


def _of_bundle(opened: Bundle | Neurons, site: str) -> list[LabelledUnit]:
    """The features that have a label in the bundle itself, in their order."""
    if not isinstance(opened, Bundle):
        return []
    descriptions = (description_from_json(row) for _, row in sorted(opened.descriptions.items()))
    return [LabelledUnit(site, d.feature, d.text, d.judged_by) for d in descriptions if d.text]
