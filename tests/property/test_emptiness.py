"""Emptiness is a value: where nothing fires, or there is next to nothing to work on, every path
gives the right empty answer, or says why there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds.tiny import (
    GRID,
    SITE,
    random_sae,
    small_section,
    tiny_model,
    write_dictionary,
    write_store,
)
from vision_sae.activations.store import ActivationStore
from vision_sae.attribution import targets
from vision_sae.attribution.faithfulness import faithfulness
from vision_sae.attribution.ledger import (
    Reference,
    block_removed,
    ledger,
    mean_code,
    of_picture,
    zero_code,
)
from vision_sae.attribution.methods.deep_feature_factorisation import deep_feature_factorisation
from vision_sae.attribution.methods.eigen_cam import eigen_cam
from vision_sae.attribution.methods.exact_ablation import exact_ablation
from vision_sae.attribution.methods.grad_cam import grad_cam
from vision_sae.attribution.methods.gradient_x_input import gradient_x_input
from vision_sae.attribution.observation import Observation
from vision_sae.bundles import patch_search
from vision_sae.bundles.build import build
from vision_sae.bundles.co_activation import Activations
from vision_sae.bundles.codes import CodesBuilder, by_feature
from vision_sae.bundles.deletion import delete_images
from vision_sae.bundles.exemplars import exemplars
from vision_sae.bundles.matches import match_bundles
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.bundles.patch_index_builder import PatchIndexBuilder
from vision_sae.bundles.read import read_bundle
from vision_sae.bundles.relations import relations
from vision_sae.bundles.statistics import statistics
from vision_sae.config import BuildConfig, DescribeConfig, TrainConfig
from vision_sae.descriptions.describe import describe_bundle
from vision_sae.descriptions.scoring.scored import scored
from vision_sae.dictionaries import kernels
from vision_sae.dictionaries.architectures import ARCHITECTURES, read_weights
from vision_sae.dictionaries.ensemble import Bagging, Boosting
from vision_sae.dictionaries.factorise import factorise
from vision_sae.dictionaries.interop.exchange import export_dictionary, import_dictionary
from vision_sae.dictionaries.kinds.archetypal import ArchetypalSae
from vision_sae.dictionaries.kinds.batch_topk import BatchTopKSae
from vision_sae.dictionaries.kinds.gated import GatedSae
from vision_sae.dictionaries.kinds.jumprelu import JumpReluSae
from vision_sae.dictionaries.kinds.kmeans import KMeans
from vision_sae.dictionaries.kinds.matryoshka import MatryoshkaSae
from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.dictionaries.kinds.nmf import Nmf
from vision_sae.dictionaries.kinds.pca import Pca
from vision_sae.dictionaries.kinds.relu import ReluSae
from vision_sae.dictionaries.kinds.semi_nmf import SemiNmf
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.matching import assign, cosines, nearest
from vision_sae.dictionaries.metrics import MetricsAccumulator
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.protocol import Codes, Dictionary, SiteDictionary, join, to_dense
from vision_sae.dictionaries.sample import sample
from vision_sae.dictionaries.training.scaling import input_scaling
from vision_sae.errors import InvalidInputError
from vision_sae.evaluation.coherence import average_max_decoder_cosine_sim
from vision_sae.evaluation.monosemanticity import max_pooled, monosemanticity
from vision_sae.evaluation.report import evaluate
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.protocol import silent, split, spread
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.grid import PatchGrid
from vision_sae.statistics import association
from vision_sae.statistics.bootstrap import interval
from vision_sae.statistics.proportions import wilson
from vision_sae.steering.ablation import without_features
from vision_sae.steering.edits import FeatureEdit, activations, apply_edits, constant_addition
from vision_sae.steering.intervention import FeatureIntervention
from vision_sae.steering.transport import Transport, apply_transport

KINDS = (
    *("topk", "batch_topk", "matryoshka", "relu", "jumprelu", "gated", "archetypal"),
    *("pca", "nmf", "semi_nmf", "kmeans", "neurons", "bagging", "boosting"),
)
BY_STEPS = KINDS[:7]
SIZES = ((8, 2, 4), (8, 8, 4), (1, 1, 4), (1, 1, 1))
"""(F, k, D)"""


def silent_dictionary(kind: str, width: int = 8, k: int = 2, dim: int = 4) -> Dictionary:
    """A dictionary no feature of which fires on zeros; its bias is 0, 1, 2, ..., but for neurons,
    which have none, and for boosting, which has the bias of its members twice."""
    directions = torch.nn.functional.normalize(torch.ones(width, dim), dim=1)
    bias = torch.arange(dim).float()
    weights = {"w_dec": directions, "b_dec": bias}
    sae = weights | {"w_enc": directions.clone(), "b_enc": torch.full((width,), -1e9)}
    nothing = torch.zeros(width)
    match kind:
        case "topk":
            return TopKSae(k=k, **sae)
        case "batch_topk":
            return BatchTopKSae(k=k, threshold=torch.zeros(()), **sae)
        case "matryoshka":
            return MatryoshkaSae(k=k, prefixes=(width,), **sae)
        case "relu":
            return ReluSae(**sae)
        case "jumprelu":
            return JumpReluSae(threshold=nothing, **sae)
        case "gated":
            return GatedSae(r_mag=nothing, b_mag=nothing.clone(), **sae)
        case "archetypal":
            members = torch.zeros(width, 2, dtype=torch.int32)
            mixing = {"points": torch.zeros(2, dim), "members": members, "origin": bias.clone()}
            shares = torch.full((width, 2), 0.5)
            return ArchetypalSae(k=k, bound=0.1, shares=shares, lengths=nothing, **mixing, **sae)
        case "pca" | "nmf" | "semi_nmf":
            made = {"pca": Pca, "nmf": Nmf, "semi_nmf": SemiNmf}[kind]
            return made(w_dec=torch.zeros(width, dim), b_dec=bias, k=k)
        case "kmeans":
            return KMeans(w_dec=torch.zeros(width, dim), b_dec=bias, radii=nothing)
        case "neurons":
            return NeuronBasis(w_dec=torch.eye(dim), b_dec=torch.zeros(dim), k=None)
        case _:
            ensemble = Bagging if kind == "bagging" else Boosting
            return ensemble([silent_dictionary("topk", width, k, dim) for _ in range(2)])


def no_codes(rows: int, slots: int) -> Codes:
    """The codes of rows in which nothing fires."""
    return Codes(torch.zeros(rows, slots, dtype=torch.int64), torch.zeros(rows, slots))


# Dictionaries in which no feature fires


@pytest.mark.parametrize(("width", "k", "dim"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_code_decodes_to_the_bias(
    kind: str, width: int, k: int, dim: int, tmp_path: Path
) -> None:
    made = silent_dictionary(kind, width, k, dim)
    bias = torch.arange(dim).float() * {"neurons": 0, "boosting": 2}.get(kind, 1)
    described = json.loads(json.dumps(made.save(tmp_path)))
    for dictionary in (made, read_weights(tmp_path, described)):
        for rows in (0, 1, 5):
            codes = dictionary.encode(torch.zeros(rows, dim))
            assert not codes.values.any()
            assert torch.equal(dictionary.decode(codes), bias.expand(rows, dim))


@pytest.mark.parametrize("k", [0, 9])
def test_k_is_from_one_to_the_number_of_features(k: int) -> None:
    with pytest.raises(InvalidInputError, match=f"k is {k}; .* 1 to 8") as caught:
        silent_dictionary("topk", k=k)
    assert caught.value.field == "k"


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("slots", [0, 2])
def test_sparse_products_of_empty_codes_are_zero(rows: int, slots: int) -> None:
    indices, values = no_codes(rows, slots)
    weights, vectors = torch.ones(5, 4), torch.ones(rows, 4)
    assert torch.equal(kernels.bag(indices, values, weights), torch.zeros(rows, 4))
    assert kernels.sampled_dot(indices, vectors, weights).shape == (rows, slots)
    by_row = kernels.transpose(indices, 5)
    assert torch.equal(kernels.transposed_bag(by_row, values, vectors), torch.zeros(5, 4))
    assert torch.equal(to_dense(Codes(indices, values), 5), torch.zeros(rows, 5))
    assert join([Codes(indices, values), no_codes(1, 3)]).values.shape == (rows + 1, 3)


# What is measured on empty codes


@pytest.mark.parametrize("rows", [0, 6])
@pytest.mark.parametrize("slots", [0, 2])
@pytest.mark.parametrize("width", [1, 3])
def test_features_that_never_fire_have_no_figures(rows: int, slots: int, width: int) -> None:
    builder = CodesBuilder()
    builder.add(no_codes(rows, slots))
    codes = builder.by_patch()
    assert codes.indptr.tolist() == [0] * (rows + 1)
    postings = by_feature(codes, width)
    assert postings.indptr.tolist() == [0] * (width + 1)
    measured = statistics(postings)
    assert not any(part.any() for part in measured)
    assert measured.usual_mean == 0
    chosen = exemplars(postings, 2, np.zeros(width, np.float32), 3, 2)
    assert (chosen.patch == -1).all()
    assert not chosen.mask.any()
    related = relations(codes, torch.eye(width, 4))
    assert (related.parent == -1).all()
    assert (related.together == -1).all()
    assert related.nearest.shape == (width, width - 1)
    alike = Activations(codes, width).correlations(np.arange(width), Activations(codes, width))
    assert (alike == -np.inf).all()


def test_metrics_of_nothing_or_of_equal_rows_say_why_there_are_none() -> None:
    for rows, why in ((0, "no rows to measure"), (3, "no variance")):
        metrics = MetricsAccumulator(4, 5)
        metrics.add(torch.ones(rows, 4), torch.ones(rows, 4), no_codes(rows, 0))
        with pytest.raises(InvalidInputError, match=why):
            metrics.result()


def test_figures_of_no_pictures_are_undefined() -> None:
    none = np.zeros(0)
    for figure in (association.correlation, association.auprc, association.silent_share):
        assert math.isnan(figure(none, none))
    assert math.isnan(association.base_rate(none))
    no_sources = none.astype(np.int64)
    assert np.isnan(association.correlation_interval(none, none, no_sources)).all()
    assert association.precision_of_strongest(none, none, no_sources)[1] == 0
    assert wilson(0, 0)[1:] == (0, 1)

    def mean(drawn: Any) -> Any:
        return drawn.mean(1)

    assert interval(mean, [0], 0) is None
    assert scored("detection_auc", [mean], [0], 0) is None


def test_figures_of_features_without_pairs() -> None:
    assert average_max_decoder_cosine_sim(torch.ones(1, 4)) == 0
    assert max_pooled(no_codes(6, 0), 2, 3).tolist() == [[0, 0, 0]] * 3
    for images in (0, 1):
        found = monosemanticity(torch.zeros(images, 3), torch.ones(images, 2))
        assert found.isnan().all()
    for method in (assign, nearest):
        assert not len(method(cosines(torch.ones(3, 4), torch.ones(0, 4))).left)
        assert not len(method(cosines(torch.ones(0, 4), torch.ones(3, 4))).left)


@pytest.mark.parametrize(("rows", "pictures"), [(1, 1), (4, 1), (2, 2)])
def test_index_of_next_to_no_patches_finds_them(rows: int, pictures: int, tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)[:rows]
    builder = PatchIndexBuilder(
        tmp_path / "index", 4, rows, lambda chosen: vectors[chosen], np.arange(pictures)
    )
    builder.add(vectors[:0])
    builder.add(vectors)
    report = builder.finish()
    index = PatchIndex.load(tmp_path / "index", report.nprobe)
    assert index.search(vectors[:1], 1)[1].tolist() == [[0]]
    assert (index.search(vectors[:1], 3, np.zeros(rows, np.bool_))[1] == -1).all()
    assert index.search(vectors[:0], 3)[1].shape == (0, 3)


# Models, edits and attributions of a dictionary in which nothing fires


@pytest.fixture(scope="module")
def observation() -> Observation:
    return Observation(tiny_model(), torch.zeros(3, 32, 32), targets.class_logit(1), [SITE])


def references(dictionary: Dictionary, update: Tensor) -> Iterator[Reference]:
    yield zero_code(dictionary)
    yield block_removed(dictionary)
    yield mean_code(dictionary.bias, torch.zeros(dictionary.width))
    yield of_picture(dictionary, update)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "neurons"])
def test_a_ledger_without_firing_features_blames_error_and_bias(
    kind: str, observation: Observation
) -> None:
    found = SiteDictionary(silent_dictionary(kind, 8, 2, 32), SITE)
    for reference in references(found.dictionary, observation.updates[SITE]):
        made = ledger(observation, found, nodes=2, reference=reference)
        assert not made.per_feature.any()
        assert made.per_patch.shape == (16,)
        assert made.total == pytest.approx(float(made.error.sum() + made.bias.sum()))
        assert math.isfinite(made.completeness_gap)
    ablated = exact_ablation(observation, found, [0])
    assert ablated.features_total == 0
    assert exact_ablation(observation, found, []).features_total == 0
    image, width = torch.zeros(3, 32, 32), found.dictionary.width
    for test in faithfulness(observation, found, torch.zeros(width), torch.zeros(16), image):
        assert np.isfinite((test.area, test.area_random, test.area_activation)).all()


def edit(feature: int, operation: Any = "ablate", **options: Any) -> FeatureEdit:
    return FeatureEdit("d", feature, operation, 1.0, **options)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "neurons"])
def test_edits_of_features_that_do_not_fire(kind: str) -> None:
    dictionary = silent_dictionary(kind)
    row, zeros = dictionary.decoder[0], torch.zeros(3, 4)
    assert torch.equal(apply_edits(zeros, [], dictionary), zeros)
    for operation in ("ablate", "scale"):  # of an activation of 0
        assert torch.equal(apply_edits(zeros, [edit(0, operation)], dictionary), zeros)
    for operation in ("add", "clamp", "replace"):
        assert torch.equal(apply_edits(zeros, [edit(0, operation)], dictionary), row.expand(3, 4))
        assert apply_edits(zeros[:0], [edit(0, operation)], dictionary).shape == (0, 4)
    assert torch.equal(constant_addition([], dictionary, 0, 3), zeros)
    assert activations(dictionary.encode(zeros), []).shape == (3, 0)
    for features in ([], [0]):
        ablated = without_features(dictionary, features, 1)(torch.ones(2, 4, 4) * 0)
        assert torch.equal(ablated, torch.zeros(2, 4, 4))
    transport = Transport("d", GenerationSettings("a dog"), features=(0,))
    assert torch.equal(apply_transport(zeros, zeros, transport, dictionary, 0), zeros)


def test_interventions_without_edits_or_without_a_feature_to_control_by() -> None:
    model, image, logit = tiny_model(), torch.zeros(3, 32, 32), [targets.class_logit(0)]
    found = {"d": SiteDictionary(random_sae(32, 1, 1), SITE)}
    outcome = FeatureIntervention(model, [], found, controls=2)(image, logit)
    assert outcome.relative_change == 0
    assert outcome.values_before.tolist() == outcome.values_after.tolist()
    with pytest.raises(InvalidInputError, match="no feature of d is left") as caught:
        FeatureIntervention(model, [edit(0)], found, controls=1)
    assert caught.value.field == "control_count"


NO_PATCH = torch.zeros(16, dtype=torch.bool)


def test_regions_that_select_no_patch_are_refused() -> None:
    model = tiny_model()
    for of in (
        lambda: targets.feature(random_sae(32, 8, 2), SITE, 0, patches=NO_PATCH),
        lambda: targets.region_class(model, NO_PATCH, 0),
        lambda: Transport("d", GenerationSettings("a dog"), source_patches=NO_PATCH),
        lambda: Transport("d", GenerationSettings("a dog"), target_patches=NO_PATCH),
    ):
        with pytest.raises(InvalidInputError, match="selects no patch"):
            of()


def test_maps_of_a_site_that_holds_nothing_are_zero(observation: Observation) -> None:
    held = observation.updates[SITE]
    try:
        observation.updates[SITE] = torch.zeros(16, 32)
        assert not gradient_x_input(observation, SITE).any()
        assert not grad_cam(observation, SITE).any()
        assert not eigen_cam(observation, SITE).any()
    finally:
        observation.updates[SITE] = held
    (part, *_) = deep_feature_factorisation(-torch.ones(2, 4, 3), 2)
    assert not part.maps.any()
    assert deep_feature_factorisation(torch.zeros(0, 4, 3), 2) == []


# Stores of next to nothing

NORMAL = np.random.default_rng(0).normal(size=(3, 4, 4))
ONE_PATCH = PatchGrid(rows=1, cols=1, special=1, patch_height=16, patch_width=16)
EQUAL = 0.1 + np.arange(4)  # float16 cannot hold all of it: sums about zero leave a variance


def store_of(folder: Path, vectors: Any) -> ActivationStore:
    grid = ONE_PATCH if vectors.shape[1] == 1 else GRID
    return write_store(folder / "store", [vectors], grid=grid)


def config(architecture: Any, **options: Any) -> TrainConfig:
    usual = {"expansion": 2, "k": 1, "steps": 4, "batch_size": 2, "dead_after": 2}
    return TrainConfig(
        architecture=architecture, **(usual | options), **small_section(architecture)
    )


@pytest.mark.parametrize(
    "rows", [NORMAL[:1], NORMAL[:2, :1], NORMAL[:, :, :1]], ids=lambda rows: str(rows.shape)
)
def test_every_kind_trains_on_one_picture_or_one_patch_each_or_one_dimension(
    rows: Any, tmp_path: Path
) -> None:
    store = store_of(tmp_path, rows)
    vectors = next(store.batches(SITE, 100))
    for kind in (*BY_STEPS, "pca", "neurons"):
        for batch_size in (1, 2):
            out = tmp_path / f"{kind}-{batch_size}"
            made = config(kind, batch_size=batch_size)
            metrics = train_dictionary(store, out, made, {"store": store}, progress=False)
            assert all(map(math.isfinite, metrics["store"].values()))
            bundle = build(store, out, tmp_path / f"b-{kind}-{batch_size}", WITHOUT_FLOOR)
            x_hat = bundle.dictionary.decode(bundle.dictionary.encode(vectors))
            assert x_hat.shape == vectors.shape
            assert x_hat.isfinite().all()


WITHOUT_FLOOR = BuildConfig(recall_floor=0)


@pytest.mark.parametrize("rows", [np.zeros((3, 4, 4)), np.tile(EQUAL, (3, 4, 1))], ids=["0", "="])
def test_equal_rows_give_the_mean_or_a_refusal(rows: Any, tmp_path: Path) -> None:
    store = store_of(tmp_path, rows)
    first = next(store.batches(SITE, 1))
    for kind in BY_STEPS:
        with pytest.raises(InvalidInputError, match="all vectors of .* are equal"):
            train_dictionary(store, tmp_path / kind, config(kind), {}, progress=False)
    for kind in ("pca", "semi_nmf", "kmeans"):
        made = factorise(store, kind, k=1, progress=False)
        torch.testing.assert_close(made.bias, first[0])
        torch.testing.assert_close(made.decode(made.encode(first)), first)
    made = factorise(store, "nmf", progress=False)  # its bias is zero: one feature is the mean
    torch.testing.assert_close(made.decode(made.encode(first)), first, rtol=0.01, atol=0)
    dictionary = write_dictionary(tmp_path / "pca", factorise(store, "pca", progress=False), store)
    with pytest.raises(InvalidInputError, match="no two of the 12 vectors of .* differ"):
        build(store, dictionary, tmp_path / "bundle", BuildConfig(), progress=False)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("kind", [k.name for k in ARCHITECTURES if k.fit and k.name != "neurons"])
def test_factorisations_of_one_vector_are_refused(kind: str, tmp_path: Path) -> None:
    store = store_of(tmp_path, np.abs(NORMAL[:1, :1]))
    if kind == "nmf":  # of one vector, the vector
        made, x = factorise(store, kind, progress=False), next(store.batches(SITE, 1))
        torch.testing.assert_close(made.decode(made.encode(x)), x, rtol=0.05, atol=0.05)
        return
    with pytest.raises(InvalidInputError, match="harvest more pictures"):
        factorise(store, kind, progress=False)


def test_members_that_leave_nothing_over_need_no_further_member(tmp_path: Path) -> None:
    store = store_of(tmp_path, NORMAL)
    with pytest.raises(InvalidInputError, match="after the first members are equal") as caught:
        input_scaling(store, SITE, torch.zeros_like)
    assert caught.value.field == "members"


def test_a_store_without_pictures_is_refused(tmp_path: Path) -> None:
    store = store_of(tmp_path, NORMAL)
    nothing = store.manifest | {"images": 0, "shards": []}
    (store.path / "manifest.json").write_text(json.dumps(nothing))
    with pytest.raises(InvalidInputError, match="holds no pictures"):
        ActivationStore(store.path)
    for batches in ([], [torch.zeros(0, 4)]):
        with pytest.raises(InvalidInputError, match="no site vectors"):
            sample(batches, 5, seed=0)
    with pytest.raises(InvalidInputError, match="no site vectors"):
        NeuronBasis.fit([])


# Bundles


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, list[Path]]:
    """Bundles of one data set: of four features that never fire, and of a single feature."""
    root = tmp_path_factory.mktemp("bundles")
    captions = ["a red dog", "a cat", "a dog"]
    store = write_store(root / "store", [NORMAL], captions=captions)
    never = ReluSae(
        w_enc=torch.eye(4), b_enc=torch.full((4,), -99.0), w_dec=torch.eye(4), b_dec=torch.zeros(4)
    )
    rows = torch.eye(4)[:1]
    single = ReluSae(w_enc=rows, b_enc=torch.zeros(1), w_dec=rows, b_dec=torch.zeros(4))
    for name, made in (("never", never), ("single", single)):
        write_dictionary(root / f"{name}-dictionary", made, store)
        build(store, root / f"{name}-dictionary", root / name, BuildConfig(), progress=False)
    return store, [root / "never", root / "single"]


def test_a_bundle_in_which_nothing_fires_answers_nothing(
    bundles: tuple[ActivationStore, list[Path]],
) -> None:
    store, (path, _) = bundles
    bundle = read_bundle(path)
    measured = bundle.manifest["metrics"]["build"]
    assert measured["l0"] == measured["l1"] == measured["frac_alive"] == 0
    assert bundle.exemplars(0) == ([], [])
    assert bundle.image_counts.tolist() == [0, 0, 0, 0]
    assert not bundle.code_norms.any()
    assert len(patch_search.FiringPatches(bundle, 0)) == 0
    assert patch_search.by_code(bundle, {0: 1.0}, 5) == []
    assert patch_search.by_vector(bundle, np.ones(4, np.float32), 5, np.zeros(12, np.bool_)) == []
    evidence = BundleEvidence(bundle)
    assert evidence.firings(0) == []
    assert split(evidence, 0) == ([], [])
    assert spread(evidence, 3) == []
    assert silent(evidence, 0).all()
    assert evaluate(path, store, progress=False).values()["frac_alive"] == 0
    for describer in ("grounded", "caption-pmi"):
        settings = DescribeConfig(describer=describer, metrics=())
        described = describe_bundle(path, settings, progress=False).descriptions
        assert all("0 independent pictures" in row["abstained"] for row in described.values())


def test_a_bundle_of_a_single_feature_has_no_relatives(
    bundles: tuple[ActivationStore, list[Path]],
) -> None:
    _, (never, path) = bundles
    bundle = read_bundle(path)
    assert bundle.relations.nearest.shape == (1, 0)
    assert bundle.relations.children(0).tolist() == []
    matched = match_bundles(path, never)
    assert matched.matches["never"].nearest.tolist() == [-1]
    left = delete_images(path, ["0.png", "1.png"])
    assert left.image_counts.tolist() == [1]


def test_a_dictionary_that_never_fires_goes_to_other_libraries_and_back(
    bundles: tuple[ActivationStore, list[Path]], tmp_path: Path
) -> None:
    store, (path, _) = bundles
    export_dictionary(path.with_name("never-dictionary"), tmp_path / "exported", "saelens")
    made = import_dictionary(tmp_path / "exported", tmp_path / "imported", store)
    assert made["metrics"]["store"]["l0"] == 0
