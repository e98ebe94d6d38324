"""What the catalogue says of a server that was started as people start it: from bundles' paths."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import timm
import torch
from timm.models import save_for_hf
from vision_sae_server import app
from vision_sae_server.answers.dictionaries import dictionary_message
from vision_sae_server.answers.enums import dtype, enum_value
from vision_sae_server.answers.feature_values import feature_values
from vision_sae_server.answers.features import feature_messages
from vision_sae_server.answers.models import model_message
from vision_sae_server.loading import load_state

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY, refusal
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.deletion import delete_images
from vision_sae.bundles.read import read_bundle
from vision_sae.config import BuildConfig, HarvestConfig, ServeConfig
from vision_sae.descriptions.protocol import Score
from vision_sae.devices import device_name
from vision_sae.errors import InvalidInputError, NotFoundError
from vision_sae.evaluation.monosemanticity import floor, monosemanticity
from vision_sae.labels.entries import Outline
from vision_sae.labels.store import LabelStore
from vision_sae.models.loading import load_model
from vision_sae.pictures.folder import image_folder
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import attribution_service_pb2_grpc as attribution_grpc
from vision_sae.v1 import catalog_service_pb2 as pb
from vision_sae.v1 import catalog_service_pb2_grpc as catalog_grpc
from vision_sae.v1 import (
    description_pb2,
    exemplar_pb2,
    feature_pb2,
    image_pb2,
    label_job_service_pb2,
    model_pb2,
    target_pb2,
    tensor_pb2,
)
from vision_sae.v1 import search_service_pb2 as search_pb
from vision_sae.v1 import search_service_pb2_grpc as search_grpc

SITE = "blocks.1.update"
SIZES = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
CLASSES = ["heron", "crane", "tench, Tinca tinca", "crane"]
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT in a folder, and two bundles of one of its sites."""
    root = tmp_path_factory.mktemp("secret")
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", **SIZES, num_classes=len(CLASSES))
    config = {"label_names": CLASSES}
    save_for_hf(module, root / "vit", config, model_args=SIZES, safe_serialization=True)
    worlds.picture_folder(root / "pictures" / "noise", 8)
    name = f"local-dir:{root / 'vit'}"
    harvested = HarvestConfig(model=name, sites=(SITE,), batch_size=4)
    model = load_model(name, dtype="float32")
    pictures = image_folder(root / "pictures")
    store = harvest(model, pictures, root / "store", harvested, progress=False)
    for bundle, k in (("one", 4), ("other", 6)):
        worlds.write_dictionary(
            root / f"{bundle}-sae", worlds.identity_sae(32, k), store, site=SITE
        )
        config = BuildConfig(recall_floor=0)
        build(store, root / f"{bundle}-sae", root / bundle, config, progress=False)
    return root


@pytest.fixture(scope="module")
def channel(root: Path) -> Iterator[grpc.Channel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "_LAME_DUCK_SECONDS", 0)
        held = load_state([root / "one", root / "other"], ServeConfig(port=0))
        with serving.serving(held) as channel:
            yield channel


@pytest.fixture(scope="module")
def catalog(channel: grpc.Channel) -> Any:
    return catalog_grpc.CatalogServiceStub(channel)


@pytest.fixture(scope="module")
def listed(catalog: Any) -> model_pb2.Model:
    (model,) = catalog.ListModels(pb.ListModelsRequest()).models
    return model


def png() -> bytes:
    buffer = io.BytesIO()
    worlds.noise_image(16, 16).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_has_its_name_but_not_its_path(root: Path, listed: model_pb2.Model) -> None:
    assert (listed.source, listed.display_name) == ("local-dir:vit", "local-dir:vit")
    assert f"{root}/" not in str(listed)


def test_a_model_has_its_sizes(listed: model_pb2.Model) -> None:
    # One block of a ViT of width D has 12 D^2 + 13 D parameters, norms and biases among them.
    block = 12 * 32**2 + 13 * 32
    patches, table, norm, head = 3 * 64 * 32 + 32, (1 + 5) * 32, 2 * 32, 33 * len(CLASSES)
    assert listed.parameters == 2 * block + patches + table + norm + head
    assert listed.embedding_width == 32
    assert listed.dtype != tensor_pb2.D_TYPE_UNSPECIFIED
    assert listed.preprocessing.resize == "resize shorter side to 17, crop centre"


def test_class_names_come_with_the_model_that_is_asked_for(
    catalog: Any, listed: model_pb2.Model
) -> None:
    found = catalog.GetModel(pb.GetModelRequest(name=listed.name)).model
    assert list(found.class_names) == CLASSES
    assert not listed.class_names


def test_a_dictionary_has_its_site_and_when_it_was_published(root: Path, catalog: Any) -> None:
    time = datetime(2026, 11, 30, 12, 0, 0, 500_000, tzinfo=UTC)
    os.utime(root / "one" / "manifest.json", (time.timestamp(),) * 2)
    with serving.serving(load_state([root / "one"], ServeConfig(port=0))) as channel:
        stub = catalog_grpc.CatalogServiceStub(channel)
        found = stub.GetDictionary(pb.GetDictionaryRequest(name="dictionaries/one")).dictionary
    assert found.create_time.ToDatetime(UTC) == time
    assert found.site == f"{found.model}/sites/{SITE}"
    known = catalog.GetModel(pb.GetModelRequest(name=found.model)).model
    assert found.site in [site.name for site in known.sites]


def test_the_server_says_what_it_is(catalog: Any) -> None:
    info = catalog.GetServerInfo(pb.GetServerInfoRequest())
    assert info.api_version == "v1"
    assert info.device == "cpu"
    assert info.device_names == {"cpu": device_name("cpu")}
    assert {"torch", "numpy", "timm", "pillow"} <= info.library_versions.keys()
    assert info.limits.max_search_hits == 2000


def test_the_device_is_that_of_the_models(tmp_path: Path) -> None:
    held = serving.state(serving.zoo(tmp_path, described=False), LabelStore("sqlite://"))
    (served,) = held.models.values()
    served.model.device = torch.device("cuda:1")
    assert held.devices == ["cuda:1"]


@pytest.mark.parametrize("named", [True, False], ids=["named", "all"])
def test_a_feature_finds_those_of_the_other_dictionary_of_its_site(
    channel: grpc.Channel, named: bool
) -> None:
    request = search_pb.SearchFeaturesRequest(feature="dictionaries/one/features/5", page_size=1)
    if named:
        request.dictionaries.append("dictionaries/other")
    (hit,) = search_grpc.SearchServiceStub(channel).SearchFeatures(request).hits
    assert hit.feature.name == "dictionaries/other/features/5"  # the same direction
    assert hit.score == pytest.approx(1)


def attributed(channel: grpc.Channel, **target: Any) -> Any:
    asked = attribution_pb.AttributeRequest(
        image=image_pb2.Image(data=png()),
        dictionaries=["dictionaries/one"],
        target=target_pb2.Target(class_logit=target_pb2.ClassTarget(**target)),
    )
    return attribution_grpc.AttributionServiceStub(channel).Attribute(asked)


def test_a_class_is_named_or_numbered(channel: grpc.Channel) -> None:
    assert attributed(channel, label="heron") == attributed(channel, index=0)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("crane", "2 classes of .* named 'crane'; give the index, one of 1, 3"),
        ("Tench", "the nearest are 'tench, Tinca tinca'"),
        ("heorn", "the nearest are 'heron'"),
        ("zebra", "GetModel lists them"),
    ],
)
def test_a_class_that_is_not_clear_is_refused_with_what_is_near(
    channel: grpc.Channel, label: str, said: str
) -> None:
    with pytest.raises(grpc.RpcError, match=said) as caught:
        attributed(channel, label=label)
    assert refusal(caught.value) == (INVALID, "INVALID_INPUT", "target.class_logit.label")


def test_an_exemplar_has_its_data_set(catalog: Any) -> None:
    listing = pb.ListFeaturesRequest(
        parent="dictionaries/one", filter="count > 0", view=feature_pb2.FEATURE_VIEW_FULL
    )
    shown = [e for f in catalog.ListFeatures(listing).features for e in f.exemplars]
    assert shown
    assert {exemplar.data_set for exemplar in shown} == {"noise"}


def test_two_models_of_one_resource_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = worlds.write_store(tmp_path / "store", [torch.rand(9, 4, 32).numpy()])
    worlds.write_dictionary(tmp_path / "sae", worlds.identity_sae(32, 2), store)
    for name, folder in (("a:b", "one"), ("a-b", "two")):
        store.manifest["model"]["name"] = name
        config = BuildConfig(recall_floor=0)
        build(store, tmp_path / "sae", tmp_path / folder, config, progress=False)

    def load(name: str, **_: str) -> Any:
        model = worlds.tiny_model(img_size=16)
        model.name = name
        return model

    monkeypatch.setattr("vision_sae_server.loading.load_model", load)
    monkeypatch.setattr("vision_sae_server.loading.bound", lambda model, _: model)
    with pytest.raises(InvalidInputError, match="'a:b' and 'a-b' would both be models/a-b"):
        load_state([tmp_path / "one", tmp_path / "two"], ServeConfig(port=0))


def test_figures_of_a_dictionary_stand_beside_those_by_chance(tmp_path: Path) -> None:
    bundle = serving.zoo(tmp_path, described=False)
    measured = {"rows": 164, "l0": 1.0, "monosemanticity": 0.5, "monosemanticity_floor": 0.25}
    measured |= {"average_max_decoder_cosine_sim": 0.75, "kl_div_score": 0.875}
    bundle.manifest["metrics"] = {"held": measured}
    evaluated = {"monosemanticity_features": 3, "images": 41, "downstream_images": 7}
    bundle.manifest["evaluations"] = {"held": evaluated}
    bundle.manifest["nearest_floor"] = 0.125
    held = serving.state(bundle, LabelStore("sqlite://"))
    metrics = dictionary_message(held.dictionaries[DICTIONARY]).metrics
    found = {
        m.name.removeprefix("held."): (
            m.value,
            m.control if m.HasField("control") else None,
            m.count,
        )
        for m in metrics
    }
    assert found == {
        "l0": (1.0, None, 164),
        "monosemanticity": (0.5, 0.25, 3),
        "monosemanticity_floor": (0.25, None, 41),
        "average_max_decoder_cosine_sim": (0.75, 0.125, 32),
        "kl_div_score": (0.875, None, 7),
    }


def figure(held: Any, index: int) -> Any:
    """What is measured of a feature of the zoo, in full."""
    full, options = feature_pb2.FEATURE_VIEW_FULL, exemplar_pb2.ExemplarOptions()
    (found,) = feature_messages(held.dictionaries[DICTIONARY], [index], full, options)
    return found.metrics


def test_a_feature_has_its_monosemanticity(tmp_path: Path) -> None:
    bundle = serving.zoo(tmp_path, described=False)
    held = serving.state(bundle, LabelStore("sqlite://"))
    # Feature 0 fires in the even pictures but the last, with 1 + the number.
    fires = torch.tensor([0.0 if i % 2 or i == 40 else 1.0 + i for i in range(41)])
    embeddings = torch.from_numpy(bundle.embeddings)
    (measured,) = figure(held, 0)
    assert (measured.name, measured.count) == ("monosemanticity", 20)
    assert measured.value == pytest.approx(float(monosemanticity(fires[:, None], embeddings)))
    assert measured.lower < measured.value <= measured.upper
    assert measured.control == pytest.approx(floor(bundle.embeddings))
    assert not figure(held, 2)  # it fires in one picture: there is no pair


def test_pictures_that_were_deleted_are_no_evidence(tmp_path: Path) -> None:
    serving.zoo(tmp_path, described=False)
    made = delete_images(tmp_path / "zoo", ["0.png"])
    (measured,) = figure(serving.state(made, LabelStore("sqlite://")), 0)
    assert measured.count == 19
    assert measured.control == pytest.approx(floor(made.embeddings[1:]))


class TestWordsThatTheContractDoesNotHave:
    """A library or a store of a later version may use words that this contract lacks."""

    @pytest.mark.parametrize(
        ("enum", "prefix", "word", "value"),
        [
            (model_pb2.SiteKind, "SITE_KIND", "mlp", model_pb2.SITE_KIND_MLP),
            (model_pb2.SiteKind, "SITE_KIND", "router", 0),
            (description_pb2.ScoreMetric, "SCORE_METRIC", "iou", description_pb2.SCORE_METRIC_IOU),
            (description_pb2.ScoreMetric, "SCORE_METRIC", "charm", 0),
            (description_pb2.ScoreNegatives, "SCORE_NEGATIVES", "", 0),
            (label_job_service_pb2.LabelJobState, "LABEL_JOB_STATE", "paused", 0),
        ],
    )
    def test_are_unspecified(self, enum: Any, prefix: str, word: str, value: int) -> None:
        assert enum_value(enum, prefix, word) == value

    def test_a_precision(self) -> None:
        assert dtype(torch.bfloat16) == tensor_pb2.D_TYPE_BFLOAT16
        assert dtype(torch.complex64) == tensor_pb2.D_TYPE_UNSPECIFIED

    def test_a_kind_of_model(self, tmp_path: Path) -> None:
        model = worlds.tiny_model(img_size=16)
        model.kind = "state-space"
        bundle = serving.zoo(tmp_path, described=False)
        held = serving.state(bundle, LabelStore("sqlite://"), model=model)
        shown = model_message(held.models[serving.MODEL])
        assert shown.kind == model_pb2.MODEL_KIND_UNSPECIFIED

    def test_a_score_is_shown_and_filtered_by_nothing(self, tmp_path: Path) -> None:
        labels = LabelStore("sqlite://")
        held = serving.state(serving.zoo(tmp_path, described=False), labels)
        charm = Score("charm", 0.5, 3)  # type: ignore[arg-type]
        labels.add(DICTIONARY, [made(0, "cat", scores=(charm,))], identity="")
        served = held.dictionaries[DICTIONARY]
        (feature,) = feature_messages(
            served, [0], feature_pb2.FEATURE_VIEW_BASIC, exemplar_pb2.ExemplarOptions()
        )
        (shown,) = feature.description.scores
        assert (shown.metric, shown.value) == (0, 0.5)
        outline = Outline("cat", "caption-pmi", "describer", "", (charm,), "")
        assert feature_values(served, 0, outline)["text"] == "cat"


def test_the_store_of_this_world_is_read_by_bundles(root: Path) -> None:
    assert read_bundle(root / "one").data_sets.tolist() == ["noise"] * 8
    assert ActivationStore(root / "store").images[0].data_set == "noise"


def test_what_is_not_served_is_told_some_of_what_is(tmp_path: Path) -> None:
    held = serving.state(serving.zoo(tmp_path, described=False), LabelStore("sqlite://"))
    (served,) = held.models.values()
    held.models.update({f"models/m{i:02}": served for i in range(30)})
    with pytest.raises(NotFoundError, match="m09 and 21 more$") as caught:
        held.model("models/none", "name")
    assert caught.value.field == "name"
