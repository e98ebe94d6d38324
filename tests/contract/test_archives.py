"""What version 0.1 wrote opens unchanged, and reads as the code of that version read it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.patch_search import by_vector, vector_of
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.descriptions.protocol import Description
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.neurons import Neurons
from vision_sae.labels.entries import Entry, Unit
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore

ARCHIVE = Path(__file__).parent / "archives" / "0.1"
EXPECTED: dict[str, Any] = json.loads((ARCHIVE / "expected.json").read_text())
SITE = "blocks.1.update"
UNIT = 7
"""The neuron that is recorded."""
DICTIONARIES = EXPECTED["dictionaries"]
KEPT, COMPUTED = 0.0, 1e-5
"""How far values may differ: what is only read not at all, what is computed by rounding."""


def close(expected: Any, tolerance: float) -> Any:
    return pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def store() -> ActivationStore:
    made = ActivationStore(ARCHIVE / "store")
    made.verify()
    return made


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_bundle(ARCHIVE / "bundle")


def test_pictures_of_a_store(store: ActivationStore) -> None:
    expected = EXPECTED["store"]
    assert store.rows == expected["rows"] == 48 * 16
    assert [[i.id, i.width, i.height, i.caption] for i in store.images[:3]] == expected["pictures"]
    assert [skipped.id for skipped in store.skipped] == expected["skipped"] == ["broken.png"]
    assert [len(data) for data in store.thumbnails()][:3] == expected["thumbnail_bytes"]


def test_vectors_of_a_store(store: ActivationStore) -> None:
    expected = EXPECTED["store"]
    for row, vector in expected["vectors"].items():
        assert store.take(SITE, np.array([int(row)]))[0].tolist() == vector
    assert store.mean(SITE).tolist() == close(expected["mean"], COMPUTED)
    assert store.embeddings[5].tolist() == close(expected["embedding"], KEPT)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionary(name: str, store: ActivationStore) -> None:
    expected = DICTIONARIES[name]
    dictionary, manifest = load_dictionary(ARCHIVE / "dictionaries" / name)
    assert dictionary.width == expected["width"]
    assert manifest["metrics"] == expected["metrics"]
    rows = np.array([int(row) for row in EXPECTED["store"]["vectors"]])
    codes = dictionary.encode(store.take(SITE, np.sort(rows)))
    for features, values, of_row in zip(
        codes.indices, codes.values, expected["codes"], strict=True
    ):
        pairs = zip(features.tolist(), values.tolist(), strict=True)
        firing = {feature: value for feature, value in pairs if value > 0}
        assert firing == close(dict(of_row), COMPUTED)
    decoded = dictionary.decode(codes).numpy()
    np.testing.assert_allclose(decoded, expected["reconstructions"], rtol=0, atol=COMPUTED)


def test_identity_of_a_bundle(bundle: Bundle) -> None:
    expected = EXPECTED["bundle"]
    assert bundle.manifest_sha256 == expected["manifest_sha256"]
    assert bundle.dictionary_sha256 == expected["dictionary_sha256"]
    assert BundleEvidence(bundle).identity == expected["identity"]
    assert bundle.manifest["metrics"] == expected["metrics"]


def test_measurements_of_a_bundle(bundle: Bundle) -> None:
    expected, feature = EXPECTED["bundle"], EXPECTED["bundle"]["feature"]
    features, values = bundle.codes.row(100)
    assert [features.tolist(), values.tolist()] == expected["codes"]
    assert [float(each[feature]) for each in bundle.statistics[:4]] == expected["statistics"]
    strongest, spread = bundle.exemplars(feature)
    shown = [[e.patch, e.activation, int(e.mask.sum())] for e in strongest + spread]
    assert shown == expected["exemplars"]
    assert bundle.relations.nearest[feature].tolist() == expected["nearest"]


def test_descriptions_of_a_bundle(bundle: Bundle) -> None:
    texts = {str(feature): row["text"] for feature, row in bundle.descriptions.items()}
    assert {f: text for f, text in texts.items() if text} == EXPECTED["bundle"]["descriptions"]
    assert set(EXPECTED["bundle"]["descriptions"].values()) == {"red", "green", "blue", "white"}


def test_search_in_a_bundle(bundle: Bundle) -> None:
    found = by_vector(bundle, vector_of(bundle, 100), 5)
    expected = EXPECTED["bundle"]["found"]
    assert [patch for patch, *_ in found] == [patch for patch, _ in expected]
    assert [score for _, score, *_ in found] == close([score for _, score in expected], COMPUTED)


def test_evidence_of_neurons() -> None:
    expected, neurons = EXPECTED["neurons"], Neurons(ARCHIVE / "neurons")
    evidence = neurons.evidence(SITE)
    assert evidence.identity == expected["identity"]
    assert [skipped.id for skipped in neurons.skipped] == expected["skipped"]
    assert evidence.peaks(UNIT).tolist() == expected["peaks"]
    firings = evidence.firings(UNIT)
    shown = [[f.image, f.patch, f.activation, int(f.mask.sum())] for f in firings]
    assert shown == expected["firings"]


@pytest.fixture
def labels(tmp_path: Path) -> LabelStore:
    return LabelStore(shutil.copy(ARCHIVE / "labels.sqlite", tmp_path))


def shown(entry: Entry | None) -> list[str | None]:
    return [entry.description.text, entry.origin, entry.author] if entry else []


def test_label_that_a_person_edited(labels: LabelStore) -> None:
    expected = EXPECTED["labels"]
    unit = Unit.parse(expected["edited"])
    assert shown(labels.current(unit)) == expected["current"] == ["red masonry", "person", "ada"]
    assert [shown(entry) for entry in labels.history(unit)] == expected["history"]
    assert [hit.unit.resource for hit in labels.search("masonry")] == expected["found"]


def test_labels_of_the_bundle_are_known(labels: LabelStore, bundle: Bundle) -> None:
    assert labels.import_bundle(bundle) == 0


def test_states_of_label_jobs(labels: LabelStore) -> None:
    states = {
        job.name: [job.state, job.total, job.labelled, job.abstained, job.failed]
        for job in LabelJobs(labels).all()
    }
    assert states == EXPECTED["labels"]["jobs"]


def test_unfinished_label_job_goes_on(labels: LabelStore) -> None:
    jobs = LabelJobs(labels)
    chunk = jobs.claim("unfinished", "worker", count=10, seconds=60)
    assert chunk is not None
    assert chunk.indices == (2, 3)  # of four, two were finished
    made = {i: Description(i, f"label {i}", "", "caption-pmi", 3) for i in chunk.indices}
    jobs.finish("unfinished", chunk, made, seconds=60)
    assert jobs.get("unfinished").state == "succeeded"
    assert [done.sequence for done in jobs.finished("unfinished")] == [1, 2, 3, 4]
