"""Every field that the contract declares of an answer is filled by some answer of a tiny world."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from vision_sae_server import app
from vision_sae_server.labelling import Labelling
from vision_sae_server.served import ServedModel

from tests.service.test_descriptions import Lengths
from tests.service.test_neurons import SITE as NEURONS
from tests.service.test_neurons import evidence
from tests.worlds import contrastive as contrastive_world
from tests.worlds import generations, serving
from tests.worlds import tiny as worlds
from tests.worlds import wire as wire_world
from tests.worlds.contrastive import SitedClip
from tests.worlds.labels import made
from tests.worlds.serving import DICTIONARY, MODEL
from vision_sae.activations.harvest import harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build
from vision_sae.bundles.matches import match_bundles
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import BuildConfig, HarvestConfig
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.errors import InvalidImageError
from vision_sae.labels.entries import Unit
from vision_sae.labels.jobs.job import JobTarget
from vision_sae.labels.store import LabelStore
from vision_sae.models.sdxl import SdxlModel
from vision_sae.models.vit import TimmBackbone, VitModel
from vision_sae.pictures.folder import image_folder
from vision_sae.v1 import attribution_service_pb2 as attribution_pb
from vision_sae.v1 import catalog_service_pb2 as catalog_pb
from vision_sae.v1 import description_pb2, edit_pb2, image_pb2, ledger_pb2, target_pb2
from vision_sae.v1 import description_service_pb2 as description_pb
from vision_sae.v1 import generation_service_pb2 as generation_pb
from vision_sae.v1 import intervention_service_pb2 as intervention_pb
from vision_sae.v1 import label_job_service_pb2 as jobs_pb
from vision_sae.v1 import search_service_pb2 as search_pb
from vision_sae.v1.exemplar_pb2 import ExemplarOptions
from vision_sae.v1.feature_pb2 import FEATURE_VIEW_FULL

FILES = (
    *(catalog_pb, attribution_pb, intervention_pb, search_pb, description_pb, generation_pb),
    jobs_pb,
)
SERVICES = {
    name: service for file in FILES for name, service in file.DESCRIPTOR.services_by_name.items()
}
GIVEN_BACK = {"GenerationSettings", "FeatureUnits", "NeuronUnits", "LabelJobBudget"}
"""Messages of a caller that answers repeat: what is in them is what was sent."""
MIXED = "dictionaries/mixed"
LONG = "twenty letters of it and a dog"


class Asker:
    """Calls any rpc, and remembers which fields its answers had."""

    def __init__(self, seen: set[str], channel: grpc.Channel) -> None:
        self._seen, self._channel = seen, channel

    def __call__(self, rpc: str, *requests: Message, metadata: Any = ()) -> list[Any]:
        """The answers of ``Service.Rpc``; several requests are sent as a stream."""
        service, _, name = rpc.partition(".")
        method = SERVICES[service].methods_by_name[name]
        kinds = [
            "stream" if streams else "unary"
            for streams in (method.client_streaming, method.server_streaming)
        ]
        call = getattr(self._channel, "_".join(kinds))(
            f"/vision_sae.v1.{service}/{name}",
            request_serializer=type(requests[0]).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        given = iter(requests) if method.client_streaming else requests[0]
        found = call(given, metadata=metadata, timeout=60)
        answers = list(found) if method.server_streaming else [found]
        for answer in answers:
            self._remember(answer)
        return answers

    def _remember(self, message: Message) -> None:
        for field, value in message.ListFields():
            self._seen.add(field.full_name.removeprefix("vision_sae.v1."))
            if of_ours(field):
                for inner in value if field.is_repeated else [value]:
                    self._remember(inner)


def of_ours(field: FieldDescriptor) -> bool:
    """Whether what a field holds are messages of the contract, with fields of their own."""
    kind = field.message_type
    return (
        kind is not None
        and kind.file.package == "vision_sae.v1"
        and kind.name not in GIVEN_BACK
        and not kind.GetOptions().map_entry
    )


def declared() -> dict[str, FieldDescriptor]:
    """Every field of every message that an answer may hold, by name."""
    found: dict[str, FieldDescriptor] = {}

    def walk(message: Descriptor) -> None:
        for field in message.fields:
            name = field.full_name.removeprefix("vision_sae.v1.")
            if name not in found:
                found[name] = field
                if of_ours(field):
                    walk(field.message_type)

    for service in SERVICES.values():
        for method in service.methods:
            walk(method.output_type)
    return found


def picture(seed: int = 0, side: int = 16) -> image_pb2.Image:
    buffer = io.BytesIO()
    worlds.noise_image(side, side, seed).save(buffer, "PNG")
    return image_pb2.Image(data=buffer.getvalue())


class Teller:
    """A describer that has something to say in every field, and can be held up at a unit."""

    version = 1
    metrics = ("detection_auc",)

    def __init__(self) -> None:
        self.hold_at = -1
        self.held, self.open = threading.Event(), threading.Event()

    def identity(self) -> str:
        return "teller"

    def label(
        self, evidence: Any, units: Sequence[int], metrics: Sequence[str]
    ) -> Iterator[Description]:
        for unit in units:
            if unit == self.hold_at:
                self.held.set()
                assert self.open.wait(30)
            if unit == 4:
                raise InvalidImageError("no such picture", field="image")
            score = Score("detection_auc", 0.9, 20, 0.8, 1.0, 0.5, "hard", judge="captions")
            yield made(
                unit,
                None if unit == 3 else f"label of {unit}",
                describer="teller",
                describer_version=7,
                scores=(score,),
                evidence=[firing.patch for firing in evidence.firings(unit)[:1]],
                details={"judged_by": "captions"},
                candidates=(("another", -1.0),),
            )


def zoo(root: Path) -> tuple[Any, Teller]:
    """A ViT with class names and three dictionaries, one of a later site, its raw neurons, and a
    model of texts; labels in memory."""
    bundle = serving.zoo(root, folder="animals/")
    store = ActivationStore(root / "store")
    mixed = worlds.random_sae(serving.WIDTH, 8, 2, bias=0.5)
    worlds.write_dictionary(root / "m", mixed, store)
    build(store, root / "m", root / "mixed", BuildConfig(recall_floor=0), progress=False)
    vectors = np.random.default_rng(0).random((9, 4, serving.WIDTH))
    late = worlds.write_store(root / "late-store", [vectors], site="blocks.2.update")
    sae = worlds.identity_sae(serving.WIDTH, 4)
    worlds.write_dictionary(root / "l", sae, late, site="blocks.2.update")
    build(late, root / "l", root / "late", BuildConfig(recall_floor=0), progress=False)
    match_bundles(root / "zoo", root / "mixed")

    backbone = TimmBackbone(worlds.tiny_vit(img_size=16))
    names = [f"class {i}" for i in range(5)]
    model = VitModel("tiny", backbone, worlds.PREPROCESSING, dtype="float32", class_names=names)
    labels, teller = LabelStore("sqlite://"), Teller()
    labelling = Labelling({"teller": teller}, Lengths(), neurons={NEURONS: evidence()})
    held = serving.state(read_bundle(bundle.path), labels, labelling, model=model)
    serving.add(held, read_bundle(root / "mixed"), read_bundle(root / "late"))
    texts = ServedModel.ready(SitedClip(["red apple"]), [], held.config)
    held.models[texts.resource] = texts
    config = held.config.model_copy(update={"caller_key": "x-user"})
    return replace(held, config=config), teller


def ask_catalog(ask: Asker) -> None:
    ask("CatalogService.GetServerInfo", catalog_pb.GetServerInfoRequest())
    first = ask("CatalogService.ListModels", catalog_pb.ListModelsRequest(page_size=1))[0]
    token = first.next_page_token
    ask("CatalogService.ListModels", catalog_pb.ListModelsRequest(page_token=token))
    ask("CatalogService.GetModel", catalog_pb.GetModelRequest(name=MODEL))
    ask("CatalogService.ListDictionaries", catalog_pb.ListDictionariesRequest(page_size=1))
    ask("CatalogService.GetDictionary", catalog_pb.GetDictionaryRequest(name=DICTIONARY))
    full = {"view": FEATURE_VIEW_FULL, "exemplars": ExemplarOptions(masks=True)}
    for index in range(3):
        name = f"{DICTIONARY}/features/{index}"
        ask("CatalogService.GetFeature", catalog_pb.GetFeatureRequest(name=name, **full))
    listed = catalog_pb.ListFeaturesRequest(parent=MIXED, page_size=3, **full)
    ask("CatalogService.ListFeatures", listed)


def ask_descriptions(ask: Asker) -> None:
    """`ask_catalog` comes after it: what is asked for here is what the catalogue shows then."""
    feature, user = f"{DICTIONARY}/features/0", (("x-user", "ada"),)
    for index in range(4):
        ask(
            "DescriptionService.DescribeFeature",
            description_pb.DescribeFeatureRequest(
                feature=f"{DICTIONARY}/features/{index}", force=True, view=FEATURE_VIEW_FULL
            ),
        )
    update = description_pb.UpdateDescriptionRequest(
        description=description_pb2.Description(name=f"{feature}/description", text="a lynx")
    )
    ask("DescriptionService.UpdateDescription", update, metadata=user)
    score = description_pb.ScoreDescriptionRequest(feature=feature, text="a lynx")
    ask("DescriptionService.ScoreDescription", score)
    asked = description_pb.DescribeFeatureRequest(feature=feature, view=FEATURE_VIEW_FULL)
    ask("DescriptionService.DescribeFeature", asked)


def ask_jobs(ask: Asker, held: Any, teller: Teller) -> None:
    job = jobs_pb.LabelJob(
        features=jobs_pb.FeatureUnits(dictionary=DICTIONARY, indices=range(serving.WIDTH)),
        force=True,
        metrics=[description_pb2.SCORE_METRIC_DETECTION_AUC],
        budget=jobs_pb.LabelJobBudget(max_units=100),
    )
    teller.hold_at = serving.WIDTH - 1
    create = jobs_pb.CreateLabelJobRequest(label_job=job, label_job_id="whole")
    ask("LabelJobService.CreateLabelJob", create, metadata=(("x-user", "ada"),))
    assert teller.held.wait(30)
    get = jobs_pb.GetLabelJobRequest(name="labelJobs/whole")
    ask("LabelJobService.GetLabelJob", get)
    teller.open.set()
    ask("LabelJobService.WatchLabelJob", jobs_pb.WatchLabelJobRequest(name="labelJobs/whole"))
    # One whose evidence is not what it was when the job was made.
    asked = {"features": {"dictionary": DICTIONARY}}
    stale = JobTarget("teller", {DICTIONARY: "other"}, asked=asked)
    held.jobs.create([Unit(DICTIONARY, 0)], stale, name="stale")
    ask("LabelJobService.WatchLabelJob", jobs_pb.WatchLabelJobRequest(name="labelJobs/stale"))
    neurons = jobs_pb.NeuronUnits(model=MODEL, sites=["blocks.1.mlp"])
    create = jobs_pb.CreateLabelJobRequest(label_job=jobs_pb.LabelJob(neurons=neurons))
    ask("LabelJobService.CreateLabelJob", create)
    ask("LabelJobService.ListLabelJobs", jobs_pb.ListLabelJobsRequest(page_size=1))
    cancel = jobs_pb.CancelLabelJobRequest(name="labelJobs/whole")
    ask("LabelJobService.CancelLabelJob", cancel)


def ask_attributions(ask: Asker) -> None:
    encode = attribution_pb.EncodeRequest(
        image=picture(),
        dictionary=DICTIONARY,
        heatmap_format=image_pb2.HEATMAP_FORMAT_UINT8,
        include_codes=True,
    )
    ask("AttributionService.Encode", encode)
    target = target_pb2.Target(class_logit=target_pb2.ClassTarget(label="class 3"))
    asked = {"image": picture(), "target": target}
    books = attribution_pb.AttributeRequest(
        dictionaries=[MIXED],
        baseline=attribution_pb.AttributionBaseline(
            reference=ledger_pb2.REFERENCE_CODE_BLOCK_REMOVED
        ),
        faithfulness=True,
        special_tokens=True,
        top_k=2,
        **asked,
    )
    factors = attribution_pb.AttributeRequest(
        dictionaries=[DICTIONARY],
        method=ledger_pb2.ATTRIBUTION_METHOD_DEEP_FEATURE_FACTORISATION,
        components=2,
        **asked,
    )
    ask("AttributionService.Attribute", books)
    ask("AttributionService.Attribute", factors)
    item = attribution_pb.StreamAttributeRequest
    broken = attribution_pb.AttributeRequest()
    broken.CopyFrom(factors)
    broken.image.data = b"no picture"
    ask(
        "AttributionService.StreamAttribute",
        item(id="whole", request=factors),
        item(id="broken", request=broken),
    )


def ask_interventions(ask: Asker) -> None:
    edit = edit_pb2.Edit(
        feature=f"{DICTIONARY}/features/0",
        operation=edit_pb2.EDIT_OPERATION_ADD,
        value=300,
        unit=edit_pb2.EDIT_UNIT_RAW,
    )
    target = target_pb2.Target(class_logit=target_pb2.ClassTarget(index=3))
    plan = intervention_pb.InterventionPlan(
        edits=[edit],
        targets=[intervention_pb.NamedTarget(id="three", target=target)],
        include_embeddings=True,
        control_count=2,
    )
    images = [
        intervention_pb.InterventionImage(id=f"{i}", image=picture(i), group=group)
        for i, group in enumerate(["with", "with", "without", "without"])
    ]
    images.append(intervention_pb.InterventionImage(id="b", image=image_pb2.Image(data=b"b")))
    request = intervention_pb.InterveneRequest(plan=plan, images=images)
    ask("InterventionService.Intervene", request)
    item = intervention_pb.StreamInterveneRequest
    ask("InterventionService.StreamIntervene", item(plan=plan), item(image=images[0]))


def ask_searches(ask: Asker) -> None:
    region = search_pb.ImageRegion(image=picture())
    like = {"dictionary": DICTIONARY, "region": region, "collapse_near_duplicates": True}
    ask("SearchService.SearchPatches", search_pb.SearchPatchesRequest(page_size=30, **like))
    feature = f"{DICTIONARY}/features/0"
    ask("SearchService.SearchPatches", search_pb.SearchPatchesRequest(feature=feature))
    ask("SearchService.SearchFeatures", search_pb.SearchFeaturesRequest(feature=feature))


def ask_long_texts(ask: Asker) -> None:
    """Of a world whose encoder reads the first `wire_world.READS` letters of a text."""
    image, feature = wire_world.png(), f"{DICTIONARY}/features/0"
    target = target_pb2.Target(text=target_pb2.TextTarget(text=LONG))
    ask(
        "AttributionService.Attribute",
        attribution_pb.AttributeRequest(image=image, dictionaries=[DICTIONARY], target=target),
    )
    edit = edit_pb2.Edit(feature=feature, operation=edit_pb2.EDIT_OPERATION_ABLATE)
    plan = intervention_pb.InterventionPlan(
        edits=[edit], targets=[intervention_pb.NamedTarget(id="long", target=target)]
    )
    seen = intervention_pb.InterventionImage(image=image)
    ask("InterventionService.Intervene", intervention_pb.InterveneRequest(plan=plan, images=[seen]))
    score = description_pb.ScoreDescriptionRequest(feature=feature, text=LONG)
    ask("DescriptionService.ScoreDescription", score)
    ask("SearchService.SearchFeatures", search_pb.SearchFeaturesRequest(text=LONG))


def aligned(root: Path) -> Any:
    """A server of pictures whose patches lie in the space of texts."""
    clip = SitedClip(["red apple", "grey dog"])
    (root / "pictures").mkdir(parents=True)
    contrastive_world.picture(np.arange(16).reshape(4, 4) % 2).save(root / "pictures" / "a.png")
    config = HarvestConfig(sites=(clip.SITE,), text_aligned=True)
    pictures = image_folder(root / "pictures")
    store = harvest(clip, pictures, root / "store", config, progress=False)
    sae = worlds.identity_sae(clip.embedding_dim, 8)
    worlds.write_dictionary(root / "d", sae, store, site=clip.SITE)
    bundle = build(store, root / "d", root / "aligned", BuildConfig(), progress=False)
    return serving.state(bundle, LabelStore("sqlite://"), model=clip)


def ask_generations(ask: Asker) -> None:
    edit = edit_pb2.Edit(
        feature="dictionaries/up/features/3",
        operation=edit_pb2.EDIT_OPERATION_ADD,
        value=60,
        where=edit_pb2.Where(region=image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=32, y1=64))),
    )
    settings = generation_pb.GenerationSettings(
        model=generations.MODEL, prompt=LONG, seed=5, steps=2, edits=[edit]
    )
    request = generation_pb.GenerateRequest(
        settings=settings,
        preview_interval=1,
        effect_texts=["a star"],
        encode_dictionaries=["dictionaries/up"],
        request_id=str(uuid.uuid4()),
    )
    with ThreadPoolExecutor(4) as pool:  # so that some wait for the others
        every = list(pool.map(lambda _: ask("GenerationService.Generate", request), range(4)))
    encode = attribution_pb.EncodeRequest(
        image=picture(), dictionary="dictionaries/up", noising={"prompt": LONG}
    )
    ask("AttributionService.Encode", encode)
    recipe = every[0][-1].result.recipe
    again = generation_pb.GenerateRequest(recipe=recipe, omit_twin=True)
    ask("GenerationService.Generate", again)


def similarities(pictures: Sequence[Any], texts: Sequence[str]) -> Any:
    return np.full((len(pictures), len(texts)), 0.25, dtype=np.float32)


@pytest.fixture(scope="module")
def seen(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_generator: SdxlModel,
    generated_bundles: list[Bundle],
) -> set[str]:
    """The fields that some answer filled."""
    found: set[str] = set()
    root = tmp_path_factory.mktemp("declared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "_LAME_DUCK_SECONDS", 0)
        held, teller = zoo(root)
        held.labels.add(DICTIONARY, [made(0, "cats")], identity="")
        with serving.serving(held) as channel:
            ask = Asker(found, channel)
            ask_descriptions(ask)
            ask_catalog(ask)
            ask_jobs(ask, held, teller)
            ask_attributions(ask)
            ask_interventions(ask)
            ask_searches(ask)
        with serving.serving(wire_world.picture_state(root / "reading")) as channel:
            ask_long_texts(Asker(found, channel))
        for kind in (SitedClip, SdxlModel):
            patch.setattr(kind, "unread_text", lambda _, text: text[wire_world.READS :])
        with serving.serving(aligned(root / "aligned")) as channel:
            patches = search_pb.SearchPatchesRequest(dictionary="dictionaries/aligned", text=LONG)
            Asker(found, channel)("SearchService.SearchPatches", patches)
        labelling = Labelling(similarities=similarities)
        with serving.serving(
            generations.state(tiny_generator, generated_bundles, labelling)
        ) as channel:
            ask = Asker(found, channel)
            ask("CatalogService.GetServerInfo", catalog_pb.GetServerInfoRequest())
            ask_generations(ask)
    return found


def test_every_declared_field_is_filled_by_some_answer(seen: set[str]) -> None:
    current = {name for name, field in declared().items() if not field.GetOptions().deprecated}
    assert sorted(current - seen) == []


def test_a_deprecated_field_is_filled_by_none(seen: set[str]) -> None:
    deprecated = {name for name, field in declared().items() if field.GetOptions().deprecated}
    assert deprecated == {"Capability.scope", "ServerLimits.max_call_time"}
    assert not seen & deprecated
