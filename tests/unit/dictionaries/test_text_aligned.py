"""Patches in the space of texts: kept by a harvest, indexed by a build, found by what they show."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf import json_format
from typer.testing import CliRunner
from vision_sae_client import Client
from vision_sae_client.cli import app
from vision_sae_server import loading

from tests.worlds import serving
from tests.worlds import tiny as worlds
from tests.worlds.contrastive import SitedClip, picture
from tests.worlds.serving import refusal
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ALIGNED, ALIGNED_WEIGHTS, ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.patch_search import by_text_aligned
from vision_sae.bundles.read import Bundle
from vision_sae.cli import app as main
from vision_sae.config import BuildConfig, DescribeConfig, HarvestConfig, ServeConfig
from vision_sae.descriptions import toolbox
from vision_sae.descriptions.describers.vlm import VlmConfig
from vision_sae.errors import InvalidInputError, MismatchError
from vision_sae.evidence.bundle import BundleEvidence
from vision_sae.evidence.probe_pass import make_probe
from vision_sae.labels.store import LabelStore
from vision_sae.models.protocol import PatchEmbeddings
from vision_sae.pictures.folder import image_folder
from vision_sae.v1 import image_pb2
from vision_sae.v1 import search_service_pb2 as pb
from vision_sae.v1 import search_service_pb2_grpc as search_grpc

THINGS = ("red apple", "grey dog", "green bottle", "blue house")
CLIP = SitedClip(THINGS)
CONFIG = HarvestConfig(sites=(SitedClip.SITE,), batch_size=4, text_aligned=True)
DICTIONARY = "dictionaries/planted"
PICTURES = 12
CELLS = np.random.default_rng(0).integers(0, len(THINGS), (PICTURES, 4, 4))
"""What each patch of each picture shows. Even pictures lie in the folder ``even``."""
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def folder_of(number: int) -> str:
    return "even" if number % 2 == 0 else "odd"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    root = tmp_path_factory.mktemp("aligned")
    for number, cells in enumerate(CELLS):
        (root / "pictures" / folder_of(number)).mkdir(parents=True, exist_ok=True)
        path = root / "pictures" / folder_of(number) / f"{number:02}.png"
        picture(cells).save(path)
    pictures = image_folder(root / "pictures")
    return harvest(CLIP, pictures, root / "store", CONFIG, progress=False)


@pytest.fixture(scope="module")
def bundle(store: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("bundle")
    sae = worlds.identity_sae(CLIP.embedding_dim, 8)
    worlds.write_dictionary(root / "d", sae, store, site=SitedClip.SITE)
    return build(store, root / "d", root / "planted", BuildConfig(), progress=False)


@pytest.fixture(scope="module")
def address(bundle: Bundle) -> Iterator[str]:
    with serving.address(serving.state(bundle, LabelStore("sqlite://"), model=CLIP)) as where:
        yield where


@pytest.fixture(scope="module")
def service(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield search_grpc.SearchServiceStub(channel)


def shown(bundle: Bundle, patches: list[int]) -> list[str]:
    """What patches show, by the pictures' names."""
    found = []
    for patch in patches:
        image, place = divmod(patch, 16)
        number = int(Path(bundle.images[image].id).stem)
        found.append(THINGS[CELLS[number].flat[place]])
    return found


def search(service: Any, **asked: Any) -> pb.SearchPatchesResponse:
    given = {"dictionary": DICTIONARY, "omit_thumbnails": True, "page_size": 200} | asked
    answer: pb.SearchPatchesResponse = service.SearchPatches(pb.SearchPatchesRequest(**given))
    return answer


def things(answer: pb.SearchPatchesResponse, count: int) -> set[str]:
    """What the first hits show."""
    hits = answer.hits[:count]
    return {
        THINGS[CELLS[int(Path(hit.patch.image).stem), hit.patch.row, hit.patch.col]] for hit in hits
    }


def how_many(thing: str) -> int:
    return int((THINGS.index(thing) == CELLS).sum())


def test_store_keeps_patches_and_their_weights_beside_its_sites(store: ActivationStore) -> None:
    vectors = np.concatenate([batch.numpy() for batch in store.batches(ALIGNED, 7)])
    assert vectors.shape == (PICTURES * 16, CLIP.embedding_dim)
    pictures = image_folder(store.path.parent / "pictures")
    seen = CLIP.embed_patches(torch.stack([CLIP.preprocess(p.load()) for p in pictures]))
    np.testing.assert_allclose(vectors, seen.vectors.flatten(0, 1), atol=1e-3)
    (weights,) = store.arrays(ALIGNED_WEIGHTS)
    np.testing.assert_array_equal(weights, seen.weights.half())
    assert (store.text_aligned, list(store.sites)) == (True, [SitedClip.SITE])
    taken = store.take(ALIGNED, np.array([17, 3])).numpy()
    np.testing.assert_array_equal(taken, vectors[[17, 3]])


def test_embeddings_are_the_same_without_it(store: ActivationStore, tmp_path: Path) -> None:
    pictures = image_folder(store.path.parent / "pictures")
    config = CONFIG.model_copy(update={"text_aligned": False})
    plain = harvest(CLIP, pictures, tmp_path / "plain", config, progress=False)
    np.testing.assert_array_equal(plain.embeddings, store.embeddings)
    assert not plain.text_aligned


def test_a_model_without_texts_is_refused(tmp_path: Path) -> None:
    pictures = image_folder(worlds.picture_folder(tmp_path / "pictures", 2))
    config = HarvestConfig(sites=("blocks.1.update",), text_aligned=True)
    with pytest.raises(InvalidInputError, match="has no texts") as caught:
        harvest(worlds.tiny_model(), pictures, tmp_path / "store", config, progress=False)
    assert caught.value.field == "text_aligned"


@pytest.mark.parametrize("thing", THINGS)
def test_a_text_finds_the_patches_that_show_it(bundle: Bundle, thing: str) -> None:
    query = CLIP.embed_texts([thing])[0].numpy()
    hits = by_text_aligned(bundle, query, how_many(thing))
    assert set(shown(bundle, [hit.patch for hit in hits])) == {thing}


def test_text_over_a_channel(service: Any) -> None:
    answer = search(service, text="grey dog")
    assert things(answer, how_many("grey dog")) == {"grey dog"}
    assert answer.space == pb.SEARCH_SPACE_TEXT_ALIGNED
    assert answer.recall_at_10 == 1.0


def test_texts_as_examples_for_and_against(service: Any) -> None:
    query = pb.ExamplesQuery(
        positives=[pb.SearchExample(text="blue dog")],  # a bit of the house, a bit of the dog
        negatives=[pb.SearchExample(text="dog")],
        negative_weight=1.0,
    )
    answer = search(service, examples=query)
    assert answer.space == pb.SEARCH_SPACE_TEXT_ALIGNED
    assert things(answer, how_many("blue house")) == {"blue house"}


def test_pictures_and_patches_beside_texts(service: Any, bundle: Bundle) -> None:
    data = io.BytesIO()
    picture(np.full((4, 4), THINGS.index("green bottle"))).save(data, "PNG")
    region = pb.ImageRegion(image=image_pb2.Image(data=data.getvalue()))
    answer = search(service, region=region, space=pb.SEARCH_SPACE_TEXT_ALIGNED)
    assert things(answer, how_many("green bottle")) == {"green bottle"}
    assert answer.hits[0].score == pytest.approx(1, abs=1e-3)
    hit = answer.hits[0].patch
    patch = pb.IndexedPatch(image=hit.image, row=hit.row, col=hit.col)
    both = pb.ExamplesQuery(
        positives=[pb.SearchExample(text="green bottle"), pb.SearchExample(patch=patch)]
    )
    assert things(search(service, examples=both), 5) == {"green bottle"}


def test_only_of_one_data_set(service: Any) -> None:
    for name in ("even", "odd"):
        answer = search(service, text="grey dog", filter={"data_sets": [name]})
        assert {hit.patch.image.split("/")[0] for hit in answer.hits} == {name}
        assert len(answer.hits) == PICTURES // 2 * 16


def refused(service: Any, **asked: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        search(service, **asked)
    return refusal(caught.value)


def test_what_cannot_be_compared_with_texts(service: Any) -> None:
    feature = pb.SearchExample(feature=f"{DICTIONARY}/features/0")
    mixed = pb.ExamplesQuery(positives=[pb.SearchExample(text="a dog"), feature])
    assert refused(service, examples=mixed) == (INVALID, "INVALID_INPUT", "examples.feature")
    text = pb.ExamplesQuery(positives=[pb.SearchExample(text="a dog")])
    asked = {"examples": text, "space": pb.SEARCH_SPACE_VECTOR}
    assert refused(service, **asked) == (INVALID, "INVALID_INPUT", "space")
    asked = {"text": "a dog", "space": pb.SEARCH_SPACE_CODE}
    assert refused(service, **asked) == (INVALID, "INVALID_INPUT", "space")


def test_an_unknown_data_set_is_not_found(service: Any) -> None:
    found = refused(service, text="a dog", filter={"data_sets": ["none"]})
    assert found == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "filter.data_sets")


def test_clients_ask_by_text(address: str) -> None:
    with Client(address) as client:
        answer = client.search_patches(text="grey dog", dictionary="planted", count=5)
    assert things(answer, 5) == {"grey dog"}
    asked = ["search", "--text", "grey dog", "--patches", "--dictionary", "planted"]
    done = CliRunner().invoke(app, [*asked, "--address", address, "--json", "--count", "5"])
    assert json_format.Parse(done.stdout, pb.SearchPatchesResponse()).hits == answer.hits


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures the model is shown, call by call."""
    shown: list[int] = []
    embed = CLIP.embed_patches

    def counted(images: torch.Tensor) -> PatchEmbeddings:
        shown.append(len(images))
        return embed(images)

    monkeypatch.setattr(CLIP, "embed_patches", counted)
    return shown


def test_what_a_harvest_saw_need_not_be_looked_at_again(
    store: ActivationStore, bundle: Bundle, looks: list[int], tmp_path: Path
) -> None:
    evidence = BundleEvidence(bundle)
    kept = make_probe(CLIP, evidence, tmp_path / "kept", store=store, progress=False)
    assert looks == []
    anew = make_probe(CLIP, evidence, tmp_path / "anew", progress=False)
    assert looks
    # The pictures of this world survive JPEG: both saw the same.
    np.testing.assert_allclose(kept.embeddings, anew.embeddings, atol=1e-6)
    np.testing.assert_array_equal(kept.patches, anew.patches)
    np.testing.assert_array_equal(kept.weights, anew.weights)
    assert (kept.manifest["seen"], anew.manifest["seen"]) == ("store", "thumbnails")
    kept.check(CLIP, evidence)


def refusal_of_store(store: ActivationStore, bundle: Bundle, clip: SitedClip, where: Path) -> str:
    with pytest.raises(MismatchError) as caught:
        make_probe(clip, BundleEvidence(bundle), where, store=store, progress=False)
    assert caught.value.field == "probe_from"
    assert not where.exists()
    return str(caught.value)


def test_a_store_that_saw_something_else_is_refused(
    store: ActivationStore, bundle: Bundle, tmp_path: Path
) -> None:
    pictures = image_folder(store.path.parent / "pictures")
    fewer = harvest(CLIP, pictures[:8], tmp_path / "fewer", CONFIG, progress=False)
    assert "other pictures" in refusal_of_store(fewer, bundle, CLIP, tmp_path / "probe")
    plain = CONFIG.model_copy(update={"text_aligned": False})
    without = harvest(CLIP, pictures, tmp_path / "plain", plain, progress=False)
    assert "without --text-aligned" in refusal_of_store(without, bundle, CLIP, tmp_path / "probe")
    other = SitedClip(THINGS[::-1])
    assert "not from this" in refusal_of_store(store, bundle, other, tmp_path / "probe")


def test_describing_from_a_store(
    store: ActivationStore, bundle: Bundle, looks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolbox, "load_model", lambda _, **__: CLIP)
    asked = ["describe", str(bundle.path), "--probe-from", str(store.path)]
    done = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert "labelled" in done.stdout
    assert looks == []


def test_a_served_model_is_the_one_that_labels(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(name: str, **_: str) -> SitedClip:
        loads.append(name)
        return CLIP

    monkeypatch.setattr(loading, "load_model", load)
    monkeypatch.setattr(toolbox, "load_model", load)
    describe = DescribeConfig(describer="milan", clip="unused", vlm=VlmConfig(url="https://vlm"))
    made = loading.load_state([bundle.path], ServeConfig(clip=CLIP.name), describe)
    assert list(made.labelling.describers) == ["milan", "caption-pmi", "contrastive", "vlm"]
    identities = {labels.identity() for labels in made.labelling.describers.values()}
    assert len(identities) == 4
    assert made.labelling.similarities is not None
    shown = picture(np.full((4, 4), THINGS.index("grey dog")))
    cosines = made.labelling.similarities([shown], list(THINGS))
    assert THINGS[cosines[0].argmax()] == "grey dog"
    assert loads == [CLIP.name]
    made.close()
