"""The flows of the library on a GPU: the answers of the CPU, no waits, bounded memory.

Not yet run on a GPU. ``make test-gpu`` runs them where there is one; everywhere else
`tests.worlds.fake_flows` runs the same flows without numbers. Models are those of the fake flows,
float32, TF32 off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worlds import fake_flows
from tests.worlds.tiny import picture_folder, random_sae, tiny_model, write_dictionary, write_store
from vision_sae.activations.harvest import harvest, rows_of
from vision_sae.activations.shards import Departure
from vision_sae.attribution import targets
from vision_sae.attribution.ledger import attribute, mean_code, of_picture
from vision_sae.bundles import patch_index_gpu
from vision_sae.bundles.build import Encoder, build
from vision_sae.bundles.patch_index_builder import PatchIndexBuilder
from vision_sae.config import BuildConfig, HarvestConfig
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.dictionaries.resident import resident
from vision_sae.models.generator import GenerationSettings
from vision_sae.models.sdxl import SdxlModel
from vision_sae.models.vectors import site_vectors
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import image_folder
from vision_sae.steering.edits import FeatureEdit
from vision_sae.steering.generation import Changes, SteeredGeneration
from vision_sae.steering.intervention import FeatureIntervention
from vision_sae.transfers import Leaving, to_device, to_host

GPU = "cuda:0"
SITE = "blocks.1.update"
close = torch.testing.assert_close
Quietly = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def models() -> tuple[VitModel, VitModel]:
    """(a ViT on the CPU, the same on the GPU)"""
    cpu, gpu = tiny_model(), tiny_model()
    gpu.backbone.module.to(GPU)
    gpu.device = torch.device(GPU)
    return cpu, gpu


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def near(one: Tensor, other: Tensor) -> None:
    """Agreement of float32 on CPU and GPU with TF32 off."""
    close(one.cpu().double(), other.cpu().double(), rtol=1e-5, atol=1e-5)


def test_site_vectors(models: tuple[VitModel, VitModel], images: Tensor) -> None:
    one, other = (site_vectors(model, SITE, images) for model in models)
    assert other.is_cuda
    near(one, other)


def test_codes_and_metrics(images: Tensor) -> None:
    sae, rows = random_sae(32, 96, 8, bias=0.1), torch.randn(500, 32)
    there = resident(sae, torch.device(GPU))
    one, other = sae.encode(rows), there.encode(rows.cuda())
    assert torch.equal(one.indices, other.indices.cpu())
    near(one.values, other.values)
    near(sae.decode(one), there.decode(other))
    expected = evaluate(sae, rows.split(100))._asdict()
    assert evaluate(there, rows.split(100))._asdict() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("nodes", [1, 8])
@pytest.mark.parametrize("reference", ["zero", "mean", "picture"])
def test_ledgers(
    models: tuple[VitModel, VitModel], images: Tensor, nodes: int, reference: str
) -> None:
    features = SiteDictionary(random_sae(32, 96, 8, bias=0.1), SITE)
    start = {
        "zero": None,
        "mean": mean_code(torch.ones(32) / 10, torch.ones(96) / 100),
        "picture": of_picture(features.dictionary, site_vectors(models[0], SITE, images[1])),
    }[reference]
    one, other = (
        attribute(model, features, images[0], targets.class_logit(1), nodes=nodes, reference=start)
        for model in models
    )
    assert other.per_feature.device.type == "cpu"
    near(one.per_feature, other.per_feature)
    near(one.per_patch, other.per_patch)
    near(one.values, other.values)


def edits(patches: int) -> list[FeatureEdit]:
    named: list[Any] = ["ablate", "add", "scale", "clamp", "replace"]
    changes = [FeatureEdit("a", number, name, 1.5) for number, name in enumerate(named)]
    return [*changes, FeatureEdit("a", 7, "add", 2.0, weights=torch.linspace(0, 1, patches))]


def test_interventions(models: tuple[VitModel, VitModel], images: Tensor) -> None:
    features = {"a": SiteDictionary(random_sae(32, 96, 8), SITE)}
    wanted = [targets.class_logit(0), targets.similarity(torch.ones(32))]
    one, other = (
        FeatureIntervention(model, edits(16), features, controls=2)(images[0], wanted)
        for model in models
    )
    np.testing.assert_allclose(other.values_after, one.values_after, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other.values_control, one.values_control, rtol=1e-5, atol=1e-5)
    assert other.relative_change == pytest.approx(one.relative_change, rel=1e-5)


def test_without_an_edit_the_output_keeps_its_bits(
    models: tuple[VitModel, VitModel], images: Tensor
) -> None:
    silent = [FeatureEdit("a", 3, "scale", 1.0)]
    features = {"a": SiteDictionary(random_sae(32, 96, 8), SITE)}
    result = FeatureIntervention(models[1], silent, features)(images[0], [])
    assert torch.equal(result.before.embedding, result.after.embedding)


@pytest.fixture(scope="module")
def generator() -> SdxlModel:
    """The tiny pipeline on the GPU."""
    return SdxlModel("tiny", fake_flows.generator().pipeline, dtype="float32", device=GPU)


def steered(generator: SdxlModel) -> SteeredGeneration:
    site = fake_flows.DOWN
    dim = generator.sites[site].dim
    features = {"a": SiteDictionary(random_sae(dim, 96, 8), site)}
    patches = generator.grid(site, 64, 64).patches
    settings = GenerationSettings("a red star", steps=4, guidance_scale=0.0)
    return SteeredGeneration(generator, settings, Changes(edits(patches), (), features))


def test_no_step_of_a_generation_waits(generator: SdxlModel, without_waiting: Quietly) -> None:
    generation = steered(generator)
    generation.advance()
    with without_waiting():
        while not generation.done:
            generation.advance()
    picture, twin, _ = generation.result()
    assert picture.tobytes() != twin.tobytes()


def test_a_generation_is_repeated_bit_for_bit(generator: SdxlModel) -> None:
    runs = [steered(generator) for _ in range(2)]
    for run in runs:
        while not run.done:
            run.advance()
    assert runs[0].result().picture.tobytes() == runs[1].result().picture.tobytes()


def test_no_batch_of_harvest_waits(
    models: tuple[VitModel, VitModel], images: Tensor, without_waiting: Quietly
) -> None:
    config = HarvestConfig(sites=(SITE,))

    def step() -> Departure:
        rows, embedding = rows_of(models[1], config, to_device(images, torch.device(GPU)))
        return Departure([*rows.values()], embedding)

    step().arrive()
    with without_waiting():
        departures = [step() for _ in range(4)]
    (expected,), _ = step().arrive()
    for departure in departures:
        (rounding,), _ = departure.arrive()
        assert rounding.low.is_pinned()
        assert torch.equal(rounding.low, expected.low)


def test_a_store_is_that_of_the_cpu_to_the_rounding(
    models: tuple[VitModel, VitModel], tmp_path: Path
) -> None:
    pictures = image_folder(picture_folder(tmp_path / "pictures", 23))
    config = HarvestConfig(sites=(SITE,), batch_size=4, shard_images=10, dtype="float32")
    one, other = (
        harvest(model, pictures, tmp_path / model.device.type, config, progress=False)
        for model in models
    )
    near(torch.cat([*one.batches(SITE, 100)]), torch.cat([*other.batches(SITE, 100)]))
    assert [image.id for image in one.images] == [image.id for image in other.images]


def test_no_batch_of_build_waits(without_waiting: Quietly) -> None:
    rows = torch.randn(400, 32)
    encoder = Encoder(random_sae(32, 96, 8), rows.mean(0), 400, GPU)
    encoder.encode(rows[:100]).arrive()
    with without_waiting():
        leaving = [encoder.encode(batch) for batch in rows[100:].split(100)]
    assert all(part.device.type == "cpu" for each in leaving for part in each.arrive())


def test_a_bundle_is_that_of_the_cpu(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 4, 8)).astype(np.float32)
    store = write_store(tmp_path / "store", [vectors])
    source = write_dictionary(tmp_path / "dictionary", random_sae(8, 24, 3), store)
    one, other = (
        build(store, source, tmp_path / device[:4], BuildConfig(), progress=False, device=device)
        for device in ("cpu", GPU)
    )
    assert np.array_equal(one.codes.indices, other.codes.indices)
    np.testing.assert_allclose(one.codes.values, other.codes.values, rtol=1e-3)


def test_memory_of_harvest_does_not_grow_with_the_batches(
    models: tuple[VitModel, VitModel], images: Tensor
) -> None:
    config = HarvestConfig(sites=(SITE,))

    def peak(count: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        before: Departure | None = None
        for _ in range(count):
            rows, embedding = rows_of(models[1], config, to_device(images, torch.device(GPU)))
            departure = Departure([*rows.values()], embedding)
            if before is not None:
                before.arrive()
            before = departure
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    peak(3)
    assert peak(40) <= 1.1 * peak(3)


def test_tensors_that_leave_are_whole_while_the_gpu_goes_on() -> None:
    numbers = torch.arange(1_000_000)
    x = numbers.to(GPU)
    assert torch.equal(to_host(x)[0], numbers)
    leaving = Leaving(x, x.float())
    del x
    for _ in range(8):  # later tensors, which take the memory of x if it is free too early
        torch.full((1_000_000,), -1, device=GPU)
    whole, floats = leaving.arrive()
    assert torch.equal(whole, numbers)
    assert torch.equal(floats, numbers.float())


@pytest.fixture
def small_gpu() -> Iterator[None]:
    """Leave this process 1 GiB of the GPU."""
    _, total = torch.cuda.mem_get_info(GPU)
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total), GPU)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, GPU)


@pytest.mark.usefixtures("small_gpu")
def test_a_batch_without_room_is_halved_once_and_memory_comes_back() -> None:
    from vision_sae_server.runtime.devices import computed, computed_in_halves

    from vision_sae.errors import OverloadedError

    def take(items: Sequence[int]) -> Sequence[int]:
        room = torch.empty(len(items) * 300, 2**20, dtype=torch.uint8, device=GPU)
        room.zero_()
        return items

    assert computed(lambda: computed_in_halves(take, [1, 2, 3, 4])) == [1, 2, 3, 4]
    with pytest.raises(OverloadedError):
        computed(lambda: computed_in_halves(take, [*range(16)]))
    assert take([1, 2]) == [1, 2]


@pytest.mark.skipif(patch_index_gpu.gpu_of(GPU) is None, reason="needs faiss-gpu")
@pytest.mark.parametrize("kind", ["Flat", "IVF16,SQ8"])
def test_an_index_of_the_gpu_opens_on_the_cpu(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision_sae.bundles import patch_index_builder
    from vision_sae.bundles.patch_index import PatchIndex

    monkeypatch.setattr(patch_index_builder, "usual_type", lambda _rows, _dim: kind)
    rows = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    builder = PatchIndexBuilder(
        tmp_path / "index", 32, 4000, rows.__getitem__, np.arange(4000), device=GPU
    )
    builder.add(rows)
    report = builder.finish()
    index = PatchIndex.load(tmp_path / "index", report.nprobe)
    on_cpu = index.search(rows[:50], 10)
    assert index.use_gpu(kind, GPU)
    on_gpu = index.search(rows[:50], 10)
    assert (on_gpu[1] == on_cpu[1]).mean() > 0.99
