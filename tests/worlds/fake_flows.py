"""The work of the library on a GPU that is not there, flow by flow; see `tests.worlds.fake_cuda`.

Each flow runs one piece of work up to the point where its result is in host memory, and checks the
copies between host and device. What reads numbers in host memory comes after that point, and is the
same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.worlds import fake_cuda
from tests.worlds.fake_cuda import DEVICE, Counts, fake_sae
from tests.worlds.tiny import noise_image, tiny_model
from vision_sae.activations.harvest import rows_of
from vision_sae.activations.shards import Departure
from vision_sae.attribution import ledger as references
from vision_sae.attribution import targets
from vision_sae.attribution.ledger import Reference, attribute
from vision_sae.attribution.methods.grad_cam import grad_cam
from vision_sae.attribution.methods.gradient_x_input import gradient_x_input
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target
from vision_sae.bundles.build import Encoder
from vision_sae.config import HarvestConfig
from vision_sae.dictionaries.downstream import output_distance
from vision_sae.dictionaries.metrics import MetricsAccumulator, explained_share
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.evaluation.monosemanticity import max_pooled
from vision_sae.evidence.neuron_pass import departure_of
from vision_sae.evidence.probe_pass import embedded
from vision_sae.models.clip import ClipModel
from vision_sae.models.generator import GenerationSettings, raising
from vision_sae.models.grid import Preprocessing
from vision_sae.models.protocol import Model
from vision_sae.models.sdxl import SdxlModel
from vision_sae.models.similarity import embed_pictures
from vision_sae.models.vectors import site_vectors
from vision_sae.models.vit import TorchvisionBackbone, VitModel
from vision_sae.steering.ablation import edited, without_features, without_neurons
from vision_sae.steering.edits import FeatureEdit, When
from vision_sae.steering.generation import Changes, SteeredGeneration
from vision_sae.steering.intervention import FeatureIntervention
from vision_sae.steering.transport import Transport
from vision_sae.transfers import to_host

Flow = Callable[[Counts], None]
FLOWS: dict[str, Flow] = {}
"""{name: flow}; a flow runs inside `fake_cuda`, whose counts it is given."""
SITE, LATER, DIM = "blocks.1.update", "blocks.2.update", 32
DOWN, UP = "down_blocks.2.attentions.1.update", "up_blocks.0.attentions.1.update"


def flow(name: str) -> Callable[[Flow], Flow]:
    """Enter a function in `FLOWS`."""

    def enter(work: Flow) -> Flow:
        FLOWS[name] = work
        return work

    return enter


def run(name: str) -> None:
    """Run one flow; raises whatever is wrong with it."""
    models = [make() for make in MODELS]  # made of real tensors
    with fake_cuda.fake_cuda() as counts:
        for model in models:
            fake_cuda.put_on_gpu(model)
        FLOWS[name](counts)


@cache
def vit() -> VitModel:
    """A tiny ViT of timm."""
    return tiny_model()


@cache
def torchvision_vit() -> VitModel:
    """A tiny ViT of torchvision."""
    from torchvision.models import VisionTransformer

    module = VisionTransformer(32, 8, 2, 2, DIM, 64, num_classes=5)
    size = Preprocessing(height=32, width=32)
    return VitModel("torchvision", TorchvisionBackbone(module), size, dtype="float32")


@cache
def clip() -> ClipModel:
    """A tiny CLIP of open_clip."""
    import open_clip

    vision = {"image_size": 32, "layers": 3, "width": DIM, "patch_size": 8, "head_width": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    module = open_clip.CLIP(12, vision, text).eval()
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=16)
    size = Preprocessing(height=32, width=32)
    return ClipModel("clip", module, tokenizer, size, dtype="float32")


class Schedule:
    """A scheduler of plain numbers, which fake tensors in host memory would not have."""

    config: dict[str, Any] = {"timestep_spacing": "trailing"}  # noqa: RUF012  # as diffusers has it
    order, init_noise_sigma = 1, 1.0

    def set_timesteps(self, steps: int, device: str) -> None:
        """The times of the steps, on ``device``."""
        self.timesteps = torch.linspace(999, 0, steps, device=device)

    def scale_model_input(self, latents: Tensor, _time: Tensor) -> Tensor:
        """The latents as they are."""
        return latents

    def step(
        self, predicted: Tensor, _time: Tensor, latents: Tensor, return_dict: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Latents of the next step, and the prediction without noise."""
        assert not return_dict
        return latents - 0.1 * predicted, latents - predicted


@cache
def generator() -> SdxlModel:
    """A tiny pipeline of SDXL's classes."""
    import tempfile
    from pathlib import Path

    from vision_sae.models.embedded.generator import new_pipeline, write_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        pipeline = new_pipeline(Path(folder))
    pipeline.scheduler = Schedule()
    return SdxlModel("tiny", pipeline, dtype="float32")


MODELS: tuple[Any, ...] = (vit, torchvision_vit, clip, generator)
"""What makes the models, each once."""


def forget() -> None:
    """Let go of the models, so that no fake tensor outlives the flows."""
    for make in MODELS:
        make.cache_clear()


def picture() -> Tensor:
    """A preprocessed picture in host memory."""
    return torch.randn(3, 32, 32)


def on_host(*tensors: Tensor) -> None:
    """Check that tensors have left the device."""
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def check(counts: Counts, before: Counts, *, to_device: int, waits: int) -> None:
    """Check the copies since ``before``."""
    seen = counts.since(before)
    assert (seen.to_device, seen.waits) == (to_device, waits), seen


def _captures(model: Model, site: str, counts: Counts) -> None:
    before = copy(counts)
    vectors = site_vectors(model, site, torch.randn(2, 3, 32, 32))
    assert vectors.device == DEVICE
    check(counts, before, to_device=1, waits=0)


@flow("capture of a site: timm")
def _timm(counts: Counts) -> None:
    for kind in ("update", "resid", "mlp", "attn"):
        _captures(vit(), f"blocks.1.{kind}", counts)


@flow("capture of a site: torchvision")
def _torchvision(counts: Counts) -> None:
    _captures(torchvision_vit(), "blocks.1.update", counts)


@flow("capture of a site: open_clip")
def _open_clip(counts: Counts) -> None:
    _captures(clip(), SITE, counts)


@flow("texts")
def _texts(counts: Counts) -> None:
    before = copy(counts)
    assert clip().embed_texts(["a red apple", "dog"]).device == DEVICE
    check(counts, before, to_device=2, waits=0)  # tokens, and the places of the batch


@flow("a step of harvest")
def _harvest(counts: Counts) -> None:
    config = HarvestConfig(sites=(SITE, "blocks.2.mlp"), dtype="bfloat16")
    before = copy(counts)
    rows, embedding = rows_of(vit(), config, torch.randn(4, 3, 32, 32).to(DEVICE))
    check(counts, before, to_device=1, waits=0)
    roundings, (left,) = Departure([*rows.values()], embedding).arrive()
    on_host(left, *(part for each in roundings for part in (each.low, each.checks)))
    check(counts, before, to_device=1, waits=1)


@flow("a step of harvest, aligned with text")
def _harvest_aligned(counts: Counts) -> None:
    config = HarvestConfig(sites=(SITE,), text_aligned=True)
    before = copy(counts)
    rows, embedding = rows_of(clip(), config, torch.randn(4, 3, 32, 32).to(DEVICE))
    Departure([*rows.values()], embedding).arrive()
    check(counts, before, to_device=1, waits=1)


@flow("a step over raw neurons")
def _neurons(counts: Counts) -> None:
    images, before = torch.randn(4, 3, 32, 32).to(DEVICE), copy(counts)
    roundings, (left,) = departure_of(vit(), ["blocks.0.mlp", "blocks.2.mlp"], images).arrive()
    on_host(left, *(part for each in roundings for part in (each.low, each.checks)))
    check(counts, before, to_device=0, waits=1)


@flow("encode and decode")
def _encode(counts: Counts) -> None:
    sae, vectors = fake_sae(DIM), torch.randn(40, DIM, device=DEVICE)
    before = copy(counts)
    codes = sae.encode(vectors)
    assert sae.decode(codes).shape == vectors.shape
    check(counts, before, to_device=0, waits=0)


@flow("a dictionary beside the model")
def _resident(counts: Counts) -> None:
    sae, before = fake_sae(DIM, device="cpu"), copy(counts)
    for _ in range(3):
        assert resident(sae, DEVICE).encode(torch.randn(5, DIM, device=DEVICE)).values.is_cuda
    check(counts, before, to_device=4, waits=0)  # four tensors, once


@flow("metrics")
def _metrics(counts: Counts) -> None:
    sae, metrics = fake_sae(DIM), MetricsAccumulator(DIM, 48, DEVICE)
    vectors, mean = torch.randn(32, DIM, device=DEVICE), torch.randn(DIM, device=DEVICE)
    before = copy(counts)
    for _ in range(2):
        codes = sae.encode(vectors)
        metrics.add(vectors, sae.decode(codes), codes)
        explained_share(vectors, sae.decode(codes), mean)
        max_pooled(codes, 16, sae.width)
    check(counts, before, to_device=0, waits=0)
    on_host(metrics.mean, metrics.fired)


@flow("a step of build")
def _build(counts: Counts) -> None:
    encoder = Encoder(fake_sae(DIM, device="cpu"), torch.randn(DIM), 128, str(DEVICE))
    before = copy(counts)
    for _ in range(2):
        on_host(*encoder.encode(torch.randn(64, DIM)).arrive())
    check(counts, before, to_device=2, waits=2)


def _attributed(
    counts: Counts, target: Target, reference: Reference | None = None, **options: Any
) -> None:
    image, before = picture(), copy(counts)
    made = attribute(
        vit(), SiteDictionary(fake_sae(DIM), SITE), image, target, reference=reference, **options
    )
    on_host(made.values, made.per_feature, made.update, made.error, *made.codes)
    on_host(*made.contributions, made.bias)
    assert counts.since(before).waits == 1


@flow("a ledger by one backward pass")
def _ledger(counts: Counts) -> None:
    before = copy(counts)
    _attributed(counts, targets.class_logit(1))
    check(counts, before, to_device=2, waits=1)  # the picture, and the nodes


@flow("a ledger by integrated gradients")
def _integrated(counts: Counts) -> None:
    before = copy(counts)
    _attributed(counts, targets.class_logit(1), nodes=20, special_tokens=True)
    check(counts, before, to_device=2, waits=1)


@flow("ledgers against references")
def _references(counts: Counts) -> None:
    sae, target = fake_sae(DIM), targets.similarity(torch.randn(DIM))
    _attributed(counts, target, references.block_removed(sae))
    _attributed(counts, target, references.mean_code(torch.randn(DIM), torch.randn(48)))
    _attributed(counts, target, references.of_picture(sae, torch.randn(16, DIM)))


@flow("targets")
def _targets(counts: Counts) -> None:
    feature = targets.feature(fake_sae(DIM, device="cpu"), LATER, 3, special=1, pooling="max")
    probe = targets.probe(torch.randn(DIM), 0.5)
    _attributed(counts, targets.contrast(feature, probe))
    before = copy(counts)
    _attributed(counts, probe)
    check(counts, before, to_device=2, waits=1)  # the probe is there already


def _edits(patches: int) -> list[FeatureEdit]:
    operations: Sequence[Any] = ("ablate", "add", "scale", "clamp", "replace")
    edits = [FeatureEdit("a", number, name, 1.5) for number, name in enumerate(operations)]
    weighted = FeatureEdit("a", 7, "add", 1.0, weights=torch.rand(patches))
    return [*edits, weighted, FeatureEdit("a", 8, "clamp", 1.0, fires_above=0.5)]


@flow("maps of gradients")
def _maps(counts: Counts) -> None:
    image, before = picture(), copy(counts)
    observation = Observation(vit(), image, targets.class_logit(1), [SITE])
    for method in (grad_cam, gradient_x_input):
        assert method(observation, SITE).device == DEVICE
    observation.measured_at(SITE, torch.randn(20, 16, DIM, device=DEVICE))
    check(counts, before, to_device=3, waits=0)  # the picture, and the node of each gradient


@flow("embeddings of pictures")
def _pictures(counts: Counts) -> None:
    pictures = [noise_image(40, 34, seed=number) for number in range(20)]
    before = copy(counts)
    on_host(embed_pictures(clip(), pictures))
    check(counts, before, to_device=2, waits=1)  # two batches


@flow("an intervention")
def _intervention(counts: Counts) -> None:
    features = {"a": SiteDictionary(fake_sae(DIM), SITE)}
    before = copy(counts)
    edits = _edits(vit().grid.patches)
    intervention = FeatureIntervention(vit(), edits, features, controls=3)
    measured = intervention.measured(picture(), [targets.class_logit(0), targets.class_logit(1)])
    assert measured.values.shape == (5, 2)
    on_host(*to_host(measured.values, measured.moved, measured.after.embedding))
    # The picture, and the weights of the two edits that have some; controls share them.
    check(counts, before, to_device=3, waits=1)


@flow("neurons and features switched off")
def _ablation(counts: Counts) -> None:
    off = without_features(fake_sae(DIM), [1, 2], 1)
    neurons = without_neurons([3, 4])
    images, before = torch.randn(2, 3, 32, 32).to(DEVICE), copy(counts)
    for _ in range(2):
        with edited(vit(), {SITE: off, "blocks.2.mlp": neurons}):
            changed = vit().forward(images)
    output_distance(vit().forward(images), changed)
    check(counts, before, to_device=2, waits=0)  # which features and which neurons, once


def _generated(counts: Counts, changes: Changes, **settings: Any) -> None:
    wanted = GenerationSettings("a red star", steps=3, **settings)
    generation = SteeredGeneration(generator(), wanted, changes)
    generation.advance([UP])  # the first step places what the others need
    before = copy(counts)
    while not generation.done:
        assert generation.advance([UP])[UP].device == DEVICE
    check(counts, before, to_device=0, waits=0)


@flow("steps of a generation with edits")
def _generation(counts: Counts) -> None:
    dim = generator().sites[DOWN].dim
    features = {"a": SiteDictionary(fake_sae(dim, device="cpu"), DOWN)}
    patches = generator().grid(DOWN, 64, 64).patches
    _generated(counts, Changes(_edits(patches), (), features), guidance_scale=0.0)
    added = [FeatureEdit("a", 1, "add", 2.0, when=When(0, None, (1.0, 0.5)))]
    _generated(counts, Changes(added, (), features), guidance_scale=3.0)


@flow("steps of a guided generation with a transport")
def _transport(counts: Counts) -> None:
    dim = generator().sites[DOWN].dim
    features = {"a": SiteDictionary(fake_sae(dim), DOWN)}
    source = GenerationSettings("a blue ring", seed=1)
    carried = (Transport("a", source, top_k=5), Transport("a", source, features=(1, 2)))
    opposed = [FeatureEdit("a", 3, "clamp", 2.0, half="opposed")]
    _generated(counts, Changes(opposed, carried, features), guidance_scale=3.0)


@flow("a generation with a direction added")
def _raising(counts: Counts) -> None:
    model = generator()
    change = raising(model, DOWN, torch.randn(model.sites[DOWN].dim))
    denoising = model.start(GenerationSettings("a star", steps=2, guidance_scale=0.0))
    for number in range(2):
        before = copy(counts)
        with change(denoising), torch.inference_mode(), nullcontext():
            denoising.advance()
        check(counts, before, to_device=1 - number, waits=0)


@flow("a pass of a probe")
def _probe(counts: Counts) -> None:
    before = copy(counts)
    on_host(*embedded(clip(), torch.randn(4, 3, 32, 32)))
    check(counts, before, to_device=1, waits=1)
