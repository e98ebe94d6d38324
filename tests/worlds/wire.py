"""Servers to send anything to, and requests for them that are right."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from google.protobuf.message import Message
from PIL import Image
from torch.nn.functional import normalize

from tests.worlds import generations, serving
from tests.worlds import tiny as worlds
from tests.worlds.contrastive import phrase_vector
from tests.worlds.serving import DICTIONARY
from vision_sae.descriptions.protocol import Metric, Score
from vision_sae.labels.store import LabelStore
from vision_sae.models.embedded.generator import new_pipeline, write_tokenizer
from vision_sae.models.protocol import PatchEmbeddings
from vision_sae.models.sdxl import SdxlModel
from vision_sae.models.vit import TimmBackbone, VitModel
from vision_sae.tensors import to_proto
from vision_sae.v1 import attribution_service_pb2 as attribution
from vision_sae.v1 import catalog_service_pb2 as catalog
from vision_sae.v1 import description_pb2, edit_pb2, image_pb2, target_pb2
from vision_sae.v1 import description_service_pb2 as description
from vision_sae.v1 import generation_service_pb2 as generation
from vision_sae.v1 import intervention_service_pb2 as intervention
from vision_sae.v1 import label_job_service_pb2 as jobs
from vision_sae.v1 import search_service_pb2 as search

M = TypeVar("M", bound=Message)
READS = 20
"""Letters of a text that the encoder of these worlds reads."""


class ReadingVit(VitModel):
    """A tiny ViT that has texts, as a contrastive model does; it reads `READS` letters of each."""

    kind = "clip"
    embedding_dim = 32
    logit_scale = 10.0

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        found = [phrase_vector(text[:READS] or "nothing", 32) for text in texts]
        return torch.stack(found) if found else torch.zeros(0, 32)

    def unread_text(self, text: str) -> str:
        return text[READS:].strip()

    def embed_patches(self, images: torch.Tensor) -> PatchEmbeddings:
        count = self.grid.patches
        whole = normalize(self.forward(images).embedding, dim=1)
        vectors = whole[:, None].expand(-1, count, -1)
        return PatchEmbeddings(vectors, torch.full(vectors.shape[:2], 1 / count))


class Alike:
    """Says of every unit that it means a text as much as its number says."""

    def nearest(self, text: str, evidence: Any, by: str) -> list[tuple[int, float]]:
        return [(unit, 1 / (1 + unit)) for unit in range(8)]


class Lengths:
    """Scores a text by its length."""

    metrics: Sequence[Metric] = ("detection_auc",)

    def score(self, evidence: Any, unit: int, text: str, metrics: Any, **rest: Any) -> list[Score]:
        kinds = rest["negatives"]
        return [Score("detection_auc", len(text), rest["sample"], negatives=kind) for kind in kinds]


def labelling() -> Any:
    """Labels by captions; scores, meanings and similarities by the length of texts."""
    from vision_sae_server.labelling import Labelling

    def similarities(pictures: Sequence[Any], texts: Sequence[str]) -> Any:
        return np.array([[len(text) for text in texts]] * len(pictures), dtype=np.float32)

    return Labelling(
        scorer=Lengths(),
        meanings=Alike().nearest,
        similarities=similarities,
        unread_text=lambda text: text[READS:].strip(),
    )


def picture_state(root: Path) -> Any:
    """What a server of pictures holds: that of `tests.worlds.serving`, and a model with texts."""
    backbone = TimmBackbone(worlds.tiny_vit(img_size=16))
    model = ReadingVit("tiny", backbone, worlds.PREPROCESSING, dtype="float32")
    embeddings = np.ones((41, 32), dtype=np.float32)  # as long as the model's
    bundle = replace(serving.zoo(root), embeddings=embeddings)
    labels = LabelStore("sqlite://")
    labels.import_bundle(bundle)
    return serving.state(bundle, labels, labelling(), model=model)


def drawing_state(root: Path) -> Any:
    """What a server that generates holds: a tiny pipeline of random weights."""
    root.mkdir(parents=True, exist_ok=True)
    write_tokenizer(root / "tokenizer")
    torch.manual_seed(0)
    model = SdxlModel("tiny", new_pipeline(root / "tokenizer"), dtype="float32")
    return generations.state(model, generations.bundles(model, root), labelling())


def png(side: int = 24) -> image_pb2.Image:
    """A picture of noise."""
    data = io.BytesIO()
    worlds.noise_image(side, side).save(data, "PNG")
    return image_pb2.Image(data=data.getvalue())


def of(kind: type[M], **fields: Any) -> M:
    """A message of what its constructor takes at run time: numbers and names of enums, dicts."""
    return kind(**fields)


def _by_type(*messages: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for message in messages:
        found.setdefault(type(message).DESCRIPTOR.name, []).append(message)
    return found


def picture_requests() -> Mapping[str, Sequence[Any]]:
    """Right requests of `picture_state`, by the name of their type."""
    feature, image = f"{DICTIONARY}/features/0", png()
    box = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=12, y1=12))
    mask = image_pb2.Region(mask=to_proto(np.ones((24, 24), dtype=np.uint8)))
    part, patch = search.ImageRegion(image=image, region=box), search.IndexedPatch(image="0.png")
    text = target_pb2.Target(text=target_pb2.TextTarget(text="a cat"))
    of_class = target_pb2.ClassTarget(index=1)
    targets = [
        text,
        target_pb2.Target(class_logit=of_class),
        target_pb2.Target(contrast=target_pb2.ContrastTarget(positive=text, negative=text)),
        target_pb2.Target(image=target_pb2.ImageTarget(image=image)),
        target_pb2.Target(mean_embedding=target_pb2.MeanEmbeddingTarget()),
        target_pb2.Target(feature=target_pb2.FeatureTarget(feature=feature, region=mask)),
        target_pb2.Target(region=target_pb2.RegionTarget(region=box, class_logit=of_class)),
        target_pb2.Target(
            probe=target_pb2.ProbeTarget(weight=to_proto(np.ones(32, dtype=np.float32)))
        ),
    ]
    edits = [
        of(edit_pb2.Edit, feature=feature, operation="EDIT_OPERATION_ADD", value=2, where=where)
        for where in (
            None,
            edit_pb2.Where(region=mask),
            edit_pb2.Where(own_map=edit_pb2.OwnMap(min_quantile=0.5)),
            edit_pb2.Where(patches=edit_pb2.PatchSet(indices=[0, 3])),
            edit_pb2.Where(weights=to_proto(np.ones((2, 2), dtype=np.float32))),
        )
    ]
    plan = intervention.InterventionPlan(
        edits=edits,
        targets=[
            intervention.NamedTarget(id=str(i), target=target)
            for i, target in enumerate(targets)
            if i not in (4, 5)
        ],
        control_count=1,
    )
    seen = intervention.InterventionImage(id="a", image=image)
    attributes = [
        attribution.AttributeRequest(image=image, dictionaries=[DICTIONARY], target=target)
        for target in targets
    ]
    attributes += [
        of(
            attribution.AttributeRequest,
            image=image,
            dictionaries=[DICTIONARY],
            target=targets[1],
            method=method,
            nodes=2,
        )
        for method in range(1, 9)
    ]
    example = search.SearchExample(text="a cat")
    queries: list[dict[str, Any]] = [
        {"feature": feature},
        {"region": part},
        {"text": "a cat"},
        {"edited_code": search.EditedCodeQuery(patch=patch, edits=edits[:1])},
        {"edited_code": search.EditedCodeQuery(region=part, edits=edits[:1])},
        {"examples": search.ExamplesQuery(positives=[search.SearchExample(patch=patch)])},
        {"examples": search.ExamplesQuery(positives=[search.SearchExample(region=part)] * 2)},
        {"examples": search.ExamplesQuery(positives=[example], negatives=[example])},
    ]
    condition = search.PatchFilter(min_activation=1, activation_feature=feature)
    units = jobs.FeatureUnits(dictionary=DICTIONARY, indices=[0, 1], filter="count > 0")
    job = jobs.LabelJob(features=units, budget=jobs.LabelJobBudget(max_units=3))
    job.budget.max_duration.seconds = 9
    neurons = jobs.NeuronUnits(model=serving.MODEL, sites=["blocks.*.mlp"])
    said = description_pb2.Description(name=f"{feature}/description", text="a cat")
    update = description.UpdateDescriptionRequest(description=said)
    update.update_mask.paths.append("text")
    return _by_type(
        catalog.GetServerInfoRequest(),
        catalog.ListModelsRequest(page_size=1, page_token="0"),
        catalog.GetModelRequest(name=serving.MODEL),
        catalog.ListDictionariesRequest(filter="width > 1"),
        catalog.GetDictionaryRequest(name=DICTIONARY),
        of(
            catalog.ListFeaturesRequest,
            parent=DICTIONARY,
            filter='max > 1 AND text:"a"',
            order_by="max desc, index",
            view=2,
        ),
        of(catalog.GetFeatureRequest, name=feature, view=2, exemplars={"max_count": 3}),
        attribution.EncodeRequest(image=image, dictionary=DICTIONARY, region=box),
        of(
            attribution.EncodeRequest,
            image=image,
            dictionary=DICTIONARY,
            region=mask,
            order=4,
            view=2,
            include_codes=True,
        ),
        *attributes,
        *(attribution.StreamAttributeRequest(id="a", request=each) for each in attributes[:8]),
        intervention.InterveneRequest(plan=plan, images=[seen, seen]),
        intervention.StreamInterveneRequest(plan=plan),
        intervention.StreamInterveneRequest(image=seen),
        *(search.SearchPatchesRequest(dictionary=DICTIONARY, **query) for query in queries),
        search.SearchPatchesRequest(feature=feature, filter=condition, page_token="1"),
        search.SearchFeaturesRequest(text="a cat", filter="count > 1"),
        search.SearchFeaturesRequest(region=part, dictionaries=[DICTIONARY]),
        search.SearchFeaturesRequest(feature=feature),
        of(description.DescribeFeatureRequest, feature=feature, view=2),
        of(description.ScoreDescriptionRequest, feature=feature, text="a cat", negatives=[1, 2]),
        update,
        jobs.CreateLabelJobRequest(label_job=job),
        jobs.CreateLabelJobRequest(label_job=jobs.LabelJob(neurons=neurons)),
        jobs.GetLabelJobRequest(name="labelJobs/a"),
        jobs.ListLabelJobsRequest(filter="state = succeeded"),
        jobs.CancelLabelJobRequest(name="labelJobs/a"),
        jobs.WatchLabelJobRequest(name="labelJobs/a", resume_token="1"),
        of(generation.GenerateRequest, settings={"model": serving.MODEL}),
    )


def generation_requests() -> Mapping[str, Sequence[Any]]:
    """Right requests of a server of `tests.worlds.generations.state`, by the name of their type."""
    name, image = "dictionaries/up", png()
    box = image_pb2.Region(box=image_pb2.Box(x0=0, y0=0, x1=32, y1=64))
    edits = [
        of(
            edit_pb2.Edit,
            feature=f"{name}/features/3",
            operation="EDIT_OPERATION_ADD",
            value=2,
            where={"region": box},
            when=when,
        )
        for when in (
            None,
            edit_pb2.When(steps=edit_pb2.StepRange(first=1, last=1)),
            edit_pb2.When(schedule=edit_pb2.StrengthSchedule(factors=[0, 1])),
        )
    ]
    plain: dict[str, Any] = {"model": generations.MODEL, "prompt": "a star", "seed": 1, "steps": 2}
    plain |= {"width": 64, "height": 64}
    carried = generation.Transport(
        dictionary=name, source_prompt="a ring", source_region=box, target_region=box
    )
    settings = [
        generation.GenerationSettings(**plain, edits=edits),
        generation.GenerationSettings(**plain, transports=[carried]),
        of(
            generation.GenerationSettings,
            **plain,
            guidance_scale=2,
            negative_prompt="red",
            initial_image={"image": image},
        ),
    ]
    recipe = generation.Recipe(settings=settings[0], format_version=1)
    return _by_type(
        *(generation.GenerateRequest(settings=each, effect_texts=["a"]) for each in settings),
        of(generation.GenerateRequest, settings=settings[0], encode_dictionaries=[name], format=2),
        generation.GenerateRequest(recipe=recipe, allow_drift=True),
        of(
            attribution.EncodeRequest,
            image=image,
            dictionary=name,
            noising={"strength": 0.5, "prompt": "a"},
            region=box,
        ),
        of(catalog.GetFeatureRequest, name=f"{name}/features/1", view=2),
    )


def photograph(width: int, height: int) -> Image.Image:
    """Noise with a mean, as hard to pack as photographs are."""
    pixels = np.random.default_rng(0).normal(128, 20, (height, width, 3)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))
