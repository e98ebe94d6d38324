"""Feature f fires in the images whose captions hold its word; all else is chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact

from tests.worlds.tiny import identity_sae, write_dictionary, write_store
from vision_sae.bundles.build import build
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig, DescribeConfig
from vision_sae.descriptions.describe import describe_bundle, is_described
from vision_sae.descriptions.describers.caption_pmi import CaptionPmi, CaptionPmiConfig, words
from vision_sae.descriptions.kinds import describer_kind
from vision_sae.descriptions.protocol import Description
from vision_sae.evidence.bundle import BundleEvidence

CONFIG = DescribeConfig(describer="caption-pmi", metrics=())
IMAGES, EXEMPLARS = 60, 10
PLANTED = ("cat", "dog", "boat")
FILLER = ("sky", "grass", "wall", "table", "lamp", "road", "door", "tree")


def world() -> tuple[np.ndarray, list[str]]:
    """Site vectors (images, patches, D) and captions. Image i shows the thing i % 3 for i < 45.

    Feature 3 fires in three images only, feature 4 at random, feature 5 never.
    """
    random = np.random.default_rng(0)
    vectors = np.zeros((IMAGES, 4, 6), dtype=np.float32)
    captions = []
    for i in range(IMAGES):
        filler = " and ".join(random.choice(FILLER, 2, replace=False))
        if i < 45:
            vectors[i, i % 4, i % 3] = 1 + i / 100
            captions.append(f"A {PLANTED[i % 3]} with {filler}.")
        else:
            captions.append(f"The {filler}")
    vectors[:3, 0, 3] = 1
    vectors[random.permutation(IMAGES)[:20], 1, 4] = random.uniform(0.5, 2, 20)
    return vectors, captions


def bundle_of(
    directory: Path, vectors: np.ndarray, captions: list[str], sources: Sequence[str] = ()
) -> Bundle:
    store = write_store(directory / "store", [vectors], captions=captions, sources=sources)
    dictionary = write_dictionary(directory / "d", identity_sae(vectors.shape[2], 3), store)
    config = BuildConfig(exemplars=EXEMPLARS, quantile_exemplars=2)
    return build(store, dictionary, directory / "bundle", config, progress=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path, *world())


def describe(bundle: Bundle, *features: int, **options: object) -> list[Description]:
    config = CaptionPmiConfig(**options)  # type: ignore[arg-type]
    return list(CaptionPmi(config).describe(BundleEvidence(bundle), features))


def test_caption_pmi_is_a_describer_chosen_by_name() -> None:
    assert describer_kind(CONFIG.describer).version == CaptionPmi.version


@pytest.mark.parametrize("feature", range(3))
def test_planted_word_is_found(bundle: Bundle, feature: int) -> None:
    (description,) = describe(bundle, feature)
    assert description.text == PLANTED[feature]
    assert description.abstained == ""


def test_pmi_by_hand(bundle: Bundle) -> None:
    # Of 15 cats every other is for describing: 8, and 15 of 60 captions, say "cat". 0.5 is added to
    # each count, 1 to each total.
    (description,) = describe(bundle, 0)
    expected = math.log((8.5 / 9) / (15.5 / 61))
    assert description.details["words"][0]["pmi"] == pytest.approx(expected, abs=1e-4)
    assert description.scores[0].value == pytest.approx(expected)
    assert description.scores[0].n == 8


def test_p_value_is_fishers_corrected_over_the_words(bundle: Bundle) -> None:
    (description,) = describe(bundle, 0)
    # Of the 8 exemplars 8 say "cat", of the 52 other images 7.
    p = fisher_exact([[8, 0], [7, 45]], alternative="greater").pvalue
    # Benjamini and Hochberg: the smallest of the 11 p-values (3 things, 8 fillers) times 11.
    found = description.details["words"][0]
    assert (found["exemplar_sources"], found["sources"]) == (8, 15)
    assert found["p_value"] == pytest.approx(11 * p)


def crops(tmp_path: Path) -> Bundle:
    """60 photographs in two crops each. Feature 0 fires in the first crop of the first twenty.

    First crops say "cat" in photographs 0 to 19, second crops say "dog" there and in 20 to 29.
    """
    vectors = np.zeros((120, 4, 3), dtype=np.float32)
    vectors[:40:2, 0, 0] = 1
    captions = [
        f"{word} {FILLER[i // 2 % 8]}"
        for i in range(120)
        for word in [("cat" if i < 40 else "mat") if i % 2 == 0 else ("dog" if i < 60 else "log")]
    ]
    return bundle_of(tmp_path, vectors, captions, [f"photograph {i // 2}" for i in range(120)])


def test_crops_of_one_photograph_count_once(tmp_path: Path) -> None:
    # Of 60 photographs 20 fire, 10 of them for describing; all 20 and no other say "cat".
    (description,) = describe(crops(tmp_path), 0, words=1)
    found = description.details["words"][0]
    assert found["word"] == "cat"
    assert (found["exemplar_sources"], found["sources"]) == (10, 20)
    assert found["pmi"] == pytest.approx(math.log((10.5 / 11) / (20.5 / 61)), abs=1e-4)


def test_crops_in_which_a_feature_is_silent_lend_it_no_words(tmp_path: Path) -> None:
    (description,) = describe(crops(tmp_path), 0, words=10)
    assert description.text == "cat"  # and not "dog", which the other crops of the same ones say


def test_many_crops_of_few_photographs_are_too_little_evidence(tmp_path: Path) -> None:
    vectors, captions = world()
    sources = [f"photograph {i % 3}" if i < 45 else f"other {i}" for i in range(IMAGES)]
    (description,) = describe(bundle_of(tmp_path, vectors, captions, sources), 0)
    assert description.text is None
    assert "1 independent pictures" in description.abstained


def test_evidence_names_the_strongest_patches(bundle: Bundle) -> None:
    (description,) = describe(bundle, 1)
    # Image i fires it in its patch i % 4, later ones more strongly: 43, 40, ..., every other taken.
    assert list(description.evidence) == [4 * i + i % 4 for i in range(43, 0, -6)]


def test_feature_of_few_images_abstains(bundle: Bundle) -> None:
    (description,) = describe(bundle, 3)
    assert (description.text, description.scores) == (None, ())
    assert "2 independent pictures" in description.abstained


def test_silent_feature_abstains(bundle: Bundle) -> None:
    (description,) = describe(bundle, 5)
    assert description.text is None
    assert description.abstained


def test_feature_that_fires_at_random_abstains(bundle: Bundle) -> None:
    (description,) = describe(bundle, 4)
    assert description.text is None
    assert "significant" in description.abstained


def test_without_captions_it_abstains(tmp_path: Path) -> None:
    vectors, _ = world()
    (description,) = describe(bundle_of(tmp_path, vectors, [""] * IMAGES), 0)
    assert description.text is None
    assert "caption" in description.abstained


def test_permuted_captions_rarely_make_a_label(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    vectors = np.zeros((IMAGES, 4, 40), dtype=np.float32)
    for feature in range(40):
        vectors[random.permutation(IMAGES)[:15], feature % 4, feature] = 1
    labelled = describe(bundle_of(tmp_path, vectors, world()[1]), *range(40))
    # Each feature errs with probability 0.05 at most; 6 of 40 would be a one in fifty chance.
    assert sum(d.text is not None for d in labelled) < 6


def test_label_does_not_depend_on_what_else_is_asked(bundle: Bundle) -> None:
    together = describe(bundle, 0, 1, 2, 3, 4, 5)
    assert together == [describe(bundle, feature)[0] for feature in range(6)]


def test_at_most_the_asked_number_of_words(tmp_path: Path) -> None:
    vectors, captions = world()
    captions = [c.replace("cat", "black cat on a sofa at home") for c in captions]
    bundle = bundle_of(tmp_path, vectors, captions)
    assert len(describe(bundle, 0, words=2)[0].text.split(", ")) == 2  # type: ignore[union-attr]


def test_significance_is_that_of_the_configuration(bundle: Bundle) -> None:
    assert describe(bundle, 0, significance=1e-12)[0].text is None


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red car", {"red", "car"}),
        ("a colored wall", {"colored", "wall"}),  # "red" is not in "colored"
        ("The cat, the dog; THE END.", {"cat", "dog", "end"}),
        ("a well-known man's hat", {"well-known", "man's", "hat"}),
        ("42 trees", {"trees"}),
        ("Ein Schloß über Köln", {"ein", "schloß", "über", "köln"}),
        ("", set()),
    ],
)
def test_words_of_a_caption(caption: str, expected: set[str]) -> None:
    assert words(caption) == expected


def test_describe_publishes_one_description_a_feature(bundle: Bundle) -> None:
    made = describe_bundle(bundle.path, CONFIG, progress=False)
    assert sorted(made.descriptions) == list(range(6))
    assert made.descriptions[1]["text"] == "dog"
    assert made.descriptions[5]["text"] is None
    assert made.manifest["describe"]["labelled"] == 3
    assert made.manifest["describe"]["abstained"] == 3


def test_bundle_is_described_by_the_configuration_and_versions_that_did_it(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_described(bundle, CONFIG)
    made = describe_bundle(bundle.path, CONFIG, progress=False)
    assert is_described(made, CONFIG)
    other = CONFIG.model_copy(update={"caption_pmi": CaptionPmiConfig(significance=1e-12)})
    assert not is_described(made, other)
    monkeypatch.setattr("vision_sae.descriptions.toolbox.VERSION", 0)
    assert not is_described(made, CONFIG)


def test_describe_keeps_everything_else(bundle: Bundle) -> None:
    made = describe_bundle(bundle.path, CONFIG, progress=False)
    before = bundle.manifest["files"]
    assert {name: made.manifest["files"][name] for name in before} == before
    assert set(made.manifest["files"]) - set(before) == {"descriptions.jsonl"}


def test_describing_again_replaces_the_descriptions(bundle: Bundle) -> None:
    describe_bundle(bundle.path, CONFIG, progress=False)
    made = describe_bundle(
        bundle.path,
        CONFIG.model_copy(update={"caption_pmi": CaptionPmiConfig(significance=1e-12)}),
        progress=False,
    )
    assert made.manifest["describe"]["labelled"] == 0


def test_describe_takes_up_a_bundle_that_a_dead_writer_set_aside(bundle: Bundle) -> None:
    bundle.path.rename(bundle.path.with_name(".bundle.old"))
    made = describe_bundle(bundle.path, CONFIG, progress=False)
    assert made.path == bundle.path
    assert made.descriptions[0]["text"] == "cat"


def test_failed_describer_leaves_the_bundle_as_it_was(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CaptionPmi, "describe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        describe_bundle(bundle.path, CONFIG, progress=False)
    assert read_bundle(bundle.path).manifest == bundle.manifest
