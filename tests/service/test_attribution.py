"""Attribute over a real channel: every method, target and reference of the contract."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from vision_sae_server.answers.ledgers import METHOD_NAMES

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.activations.store import ActivationStore
from vision_sae.attribution.method import METHODS
from vision_sae.bundles.build import build
from vision_sae.bundles.read import read_bundle
from vision_sae.config import BuildConfig
from vision_sae.dictionaries.kinds.neurons import NeuronBasis
from vision_sae.labels.store import LabelStore
from vision_sae.models.vit import VitModel
from vision_sae.tensors import from_proto, to_proto
from vision_sae.v1 import attribution_service_pb2 as pb
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import image_pb2, ledger_pb2, target_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LOGIT = target_pb2.Target(class_logit=target_pb2.ClassTarget(index=3))
NEURONS = "dictionaries/neurons"
LATER = "dictionaries/later"


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    worlds.noise_image(16, 16, seed).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE, OTHER = png(), png(7)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The zoo, the raw neurons of its site, and a dictionary of a later one."""
    root = tmp_path_factory.mktemp("attribution")
    labels = LabelStore("sqlite://")
    made = serving.state(serving.zoo(root), labels)
    store = ActivationStore(root / "store")
    neurons = NeuronBasis.fit([torch.zeros(1, serving.WIDTH)], signed=True)
    worlds.write_dictionary(root / "n", neurons, store)
    build(store, root / "n", root / "neurons", BuildConfig(), progress=False)
    vectors = np.random.default_rng(0).random((9, 4, serving.WIDTH))
    later = worlds.write_store(root / "later-store", [vectors], site="blocks.2.update")
    sae = worlds.identity_sae(serving.WIDTH, 4)
    worlds.write_dictionary(root / "l", sae, later, site="blocks.2.update")
    build(later, root / "l", root / "later", BuildConfig(recall_floor=0), progress=False)
    serving.add(made, read_bundle(root / "neurons"), read_bundle(root / "later"))
    return made


@pytest.fixture(scope="module")
def model(held: Any) -> VitModel:
    (served,) = held.models.values()
    found: VitModel = served.model
    return found


@pytest.fixture(scope="module")
def service(held: Any) -> Iterator[Any]:
    with serving.serving(held) as channel:
        yield attribution_grpc.AttributionServiceStub(channel)


def asked(**options: Any) -> pb.AttributeRequest:
    options.setdefault("target", LOGIT)
    options.setdefault("dictionaries", [DICTIONARY])
    method = options.pop("method", None)
    return pb.AttributeRequest(
        image=image_pb2.Image(data=PICTURE),
        method=method and f"ATTRIBUTION_METHOD_{method}",
        heatmap_format=image_pb2.HEATMAP_FORMAT_FLOAT32,
        **options,
    )


def site(service: Any, **options: Any) -> ledger_pb2.SiteAttribution:
    (found,) = service.Attribute(asked(**options)).sites
    return found


def refused(service: Any, **options: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        service.Attribute(asked(**options))
    return refusal(caught.value)


def logits_of(model: VitModel, data: bytes) -> torch.Tensor:
    from PIL import Image

    image = model.preprocess(Image.open(io.BytesIO(data)).convert("RGB"))
    with torch.no_grad():
        logits = model.forward(image[None]).logits
    assert logits is not None
    return logits[0]


@pytest.mark.parametrize("special_tokens", [False, True], ids=["patches", "all tokens"])
@pytest.mark.parametrize(
    "baseline",
    [
        {"reference": "REFERENCE_CODE_ZERO"},
        {"reference": "REFERENCE_CODE_MEAN"},
        {"reference": "REFERENCE_CODE_BLOCK_REMOVED"},
        {"image": image_pb2.Image(data=OTHER)},
    ],
    ids=["zero", "mean", "removed", "picture"],
)
def test_books_check_from_every_reference(
    service: Any, baseline: dict[str, Any], special_tokens: bool
) -> None:
    found = site(
        service,
        baseline=pb.AttributionBaseline(**baseline),
        nodes=12,
        top_k=3,
        special_tokens=special_tokens,
    )
    books = found.ledger
    assert books.total == pytest.approx(books.features_total + books.sae_error + books.bias)
    span = books.target_value - books.baseline_value
    assert books.completeness_gap == pytest.approx(span - books.total, abs=1e-9)
    assert abs(books.completeness_gap) < 1e-3 * abs(span)
    shown = sum(feature.contribution for feature in found.features)
    assert shown + books.remainder == pytest.approx(books.features_total)
    at_patches = from_proto(found.total_map).sum()
    assert at_patches + found.special_tokens == pytest.approx(books.total, abs=1e-5)
    assert bool(found.special_tokens) is special_tokens
    for feature in found.features:
        at_patches = from_proto(feature.heatmap).sum()
        parts = at_patches + feature.special_tokens
        assert parts == pytest.approx(feature.contribution, abs=1e-5)
    expected = 0 if "image" in baseline else getattr(ledger_pb2, baseline["reference"])
    assert books.reference == expected


def test_without_a_method_gradients_are_integrated(service: Any) -> None:
    books = site(service).ledger
    assert books.method == ledger_pb2.ATTRIBUTION_METHOD_INTEGRATED_GRADIENTS
    assert books.nodes == 8


def test_exact_ablation_is_of_the_features_shown(service: Any) -> None:
    found = site(service, method="EXACT_ABLATION", top_k=2)
    assert len(found.features) == 2
    total = sum(feature.contribution for feature in found.features)
    assert found.ledger.features_total == pytest.approx(total)
    for feature in found.features:
        assert from_proto(feature.heatmap).sum() == pytest.approx(feature.contribution, abs=1e-6)


def test_exact_ablation_takes_no_baseline(service: Any) -> None:
    for baseline in ({"reference": "REFERENCE_CODE_MEAN"}, {"image": image_pb2.Image(data=OTHER)}):
        given = pb.AttributionBaseline(**baseline)
        found = refused(service, method="EXACT_ABLATION", baseline=given)
        assert found == (INVALID, "INVALID_INPUT", "baseline")


def test_the_grid_names_special_tokens_and_marks_artifacts(service: Any) -> None:
    grid = site(service).grid
    assert list(grid.special_tokens) == ["cls"]
    marked = from_proto(grid.artifacts)
    assert (marked.dtype, marked.shape) == (np.bool_, (2, 2))


def test_features_of_raw_neurons_are_named_by_their_dictionary(service: Any) -> None:
    found = site(service, method="RAW_NEURON", top_k=4)
    assert found.dictionary == NEURONS
    assert found.features[0].feature.name.startswith(f"{NEURONS}/features/")
    assert found.ledger.sae_error == pytest.approx(0, abs=1e-6)  # neurons explain everything
    assert refused(service, method="RAW_NEURON", dictionaries=[LATER])[1:] == (
        "NOT_CONFIGURED",
        "method",
    )


@pytest.mark.parametrize("method", ["GRADIENT_X_INPUT", "GRAD_CAM", "EIGEN_CAM"])
def test_maps_have_no_books(service: Any, method: str) -> None:
    found = site(service, method=method)
    assert from_proto(found.total_map).shape == (2, 2)
    assert from_proto(found.total_map).any()
    assert not found.HasField("ledger")
    assert not found.features
    assert refused(service, method=method, special_tokens=True)[2] == "special_tokens"


def test_gradient_times_input_sums_what_act_x_grad_attributes(service: Any) -> None:
    # <x, G> over the patches is what all features, the error and the bias get together.
    of_input = from_proto(site(service, method="GRADIENT_X_INPUT").total_map).sum()
    removed = pb.AttributionBaseline(reference="REFERENCE_CODE_BLOCK_REMOVED")
    total = site(service, method="ACT_X_GRAD", baseline=removed).ledger.total
    assert of_input == pytest.approx(total, abs=1e-5)


def test_factors_of_this_and_other_pictures(service: Any) -> None:
    context = [image_pb2.Image(data=png(seed)) for seed in (11, 12)]
    found = site(service, method="DEEP_FEATURE_FACTORISATION", components=3, context_images=context)
    assert [component.index for component in found.components] == [0, 1, 2]
    maps = [from_proto(component.heatmap) for component in found.components]
    assert all((map_ >= 0).all() for map_ in maps)
    np.testing.assert_allclose(sum(maps), from_proto(found.total_map), atol=1e-5)
    assert any(component.contribution for component in found.components)


_OTHER = {
    ledger_pb2.FAITHFULNESS_TEST_DELETION: ledger_pb2.FAITHFULNESS_TEST_INSERTION,
    ledger_pb2.FAITHFULNESS_TEST_INSERTION: ledger_pb2.FAITHFULNESS_TEST_DELETION,
}


def test_faithfulness_of_an_answer(service: Any) -> None:
    found = site(service, faithfulness=True)
    tests = {(t.space, t.test): t for t in found.faithfulness}
    assert len(tests) == 4
    for (space, test), measured in tests.items():
        curve = from_proto(measured.curve)
        assert (curve[0, 0], curve[-1, 0]) == (0, 1)
        assert 0 <= curve[:, 1].min() <= curve[:, 1].max() <= 1
        # What one test begins with is what the other ends with.
        other = from_proto(tests[space, _OTHER[test]].curve)
        assert np.sign(curve[0, 1] - curve[-1, 1]) == np.sign(other[-1, 1] - other[0, 1])
        assert measured.area == pytest.approx(np.trapezoid(curve[:, 1], curve[:, 0]), abs=1e-5)
        assert 0 <= measured.area_activation <= 1


@pytest.mark.parametrize("method", ["GRAD_CAM", "DEEP_FEATURE_FACTORISATION"])
def test_faithfulness_of_a_map_is_measured_in_pixels(service: Any, method: str) -> None:
    tests = site(service, method=method, faithfulness=True).faithfulness
    assert [t.space for t in tests] == [ledger_pb2.FAITHFULNESS_SPACE_PIXEL] * 2


class TestTargets:
    def value(self, service: Any, **target: Any) -> float:
        wanted = target_pb2.Target(**target)
        return float(site(service, target=wanted, method="ACT_X_GRAD").ledger.target_value)

    def test_contrast_of_classes(self, service: Any, model: VitModel) -> None:
        one = target_pb2.Target(class_logit=target_pb2.ClassTarget(index=1))
        both = target_pb2.ContrastTarget(positive=LOGIT, negative=one)
        logits = logits_of(model, PICTURE)
        assert self.value(service, contrast=both) == pytest.approx(float(logits[3] - logits[1]))

    def test_a_probe_of_the_callers(self, service: Any) -> None:
        weight = np.zeros(serving.WIDTH, dtype=np.float32)
        probe = target_pb2.ProbeTarget(weight=to_proto(weight), bias=0.25)
        assert self.value(service, probe=probe) == 0.25

    def test_a_probe_of_another_length_is_refused(self, service: Any) -> None:
        probe = target_pb2.ProbeTarget(weight=to_proto(np.zeros(3, dtype=np.float32)))
        assert refused(service, target=target_pb2.Target(probe=probe)) == (
            INVALID,
            "INVALID_INPUT",
            "target.probe.weight",
        )

    def test_the_picture_itself(self, service: Any) -> None:
        same = target_pb2.ImageTarget(image=image_pb2.Image(data=PICTURE))
        assert self.value(service, image=same) == pytest.approx(1, abs=1e-5)

    def test_a_feature_of_a_later_site(self, service: Any) -> None:
        fires = [
            self.value(
                service,
                feature=target_pb2.FeatureTarget(
                    feature=f"{LATER}/features/{i}", pooling="POOLING_SUM"
                ),
            )
            for i in range(8)
        ]
        assert max(fires) > 0

    def test_a_feature_that_does_not_come_later_is_refused(self, service: Any) -> None:
        target = target_pb2.FeatureTarget(feature=f"{DICTIONARY}/features/0")
        found = refused(service, target=target_pb2.Target(feature=target))
        assert found == (INVALID, "INVALID_INPUT", "target.feature.feature")

    def test_a_class_within_a_region(self, service: Any) -> None:
        regions = [
            target_pb2.RegionTarget(
                region=image_pb2.Region(box=image_pb2.Box(x0=0, y0=y, x1=16, y1=y + 8)),
                class_logit=target_pb2.ClassTarget(index=3),
            )
            for y in (0, 8)
        ]
        top, bottom = (self.value(service, region=region) for region in regions)
        assert top != bottom

    def test_texts_need_a_model_that_reads(self, service: Any) -> None:
        text = target_pb2.Target(text=target_pb2.TextTarget(text="a dog"))
        assert refused(service, target=text) == (INVALID, "INVALID_INPUT", "target.text")

    def test_classes_have_no_names_here(self, service: Any) -> None:
        named = target_pb2.Target(class_logit=target_pb2.ClassTarget(label="dog"))
        assert refused(service, target=named)[2] == "target.class_logit.label"


def test_every_site_has_a_ledger_of_its_own(service: Any) -> None:
    answer = service.Attribute(asked(dictionaries=[DICTIONARY, LATER]))
    assert [found.dictionary for found in answer.sites] == [DICTIONARY, LATER]
    assert answer.sites[0].ledger == site(service).ledger
    assert answer.sites[1].ledger == site(service, dictionaries=[LATER]).ledger


def test_every_picture_is_seen_once_whatever_the_number_of_sites(
    service: Any, model: VitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[str]] = []
    capture = model.capture

    def counted(sites: Any, **options: Any) -> Any:
        passes.append(list(sites))
        return capture(sites, **options)

    monkeypatch.setattr(model, "capture", counted)
    baseline = pb.AttributionBaseline(image=image_pb2.Image(data=OTHER))
    both = asked(dictionaries=[DICTIONARY, LATER], baseline=baseline)
    assert len(service.Attribute(both).sites) == 2
    assert passes == [["blocks.1.update", "blocks.2.update"]] * 2  # the picture and the other


def test_two_dictionaries_of_one_site_are_refused(service: Any) -> None:
    assert refused(service, dictionaries=[DICTIONARY, NEURONS]) == (
        INVALID,
        "INVALID_INPUT",
        "dictionaries",
    )


def test_a_stream_answers_item_by_item(service: Any) -> None:
    good = asked(method="ACT_X_GRAD")
    bad = asked(dictionaries=["dictionaries/none"])
    invalid = asked()
    invalid.ClearField("image")
    items = [("a", good), ("b", bad), ("c", invalid), ("a", good)]
    answers = list(
        service.StreamAttribute(pb.StreamAttributeRequest(id=i, request=r) for i, r in items)
    )
    assert [answer.id for answer in answers] == ["a", "b", "c", "a"]
    assert answers[0].response == service.Attribute(good) == answers[3].response
    assert (answers[1].error.reason, answers[1].error.field) == ("NOT_FOUND", "dictionary")
    assert (answers[2].error.code, answers[2].error.field) == (INVALID.value[0], "image")


def test_a_stream_answers_before_the_next_item_is_sent(service: Any) -> None:
    import queue

    waiting: queue.Queue[Any] = queue.Queue()
    answers = service.StreamAttribute(iter(waiting.get, None))
    for name in ("first", "second"):
        waiting.put(pb.StreamAttributeRequest(id=name, request=asked(method="ACT_X_GRAD")))
        assert next(answers).id == name
    waiting.put(None)
    assert list(answers) == []


def test_answers_at_the_same_time_are_what_each_is_alone(service: Any) -> None:
    methods = ("ACT_X_GRAD", "INTEGRATED_GRADIENTS", "EXACT_ABLATION")
    requests = [asked(method=methods[i % 3]) for i in range(15)]
    for i, request in enumerate(requests):
        request.image.data = png(i % 5)
    alone = [service.Attribute(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(service.Attribute, requests * 3))
    assert together == alone * 3


def test_the_contract_and_the_table_of_methods_name_the_same() -> None:
    assert sorted(METHOD_NAMES.values()) == list(METHODS.names)
