"""Attribution and intervention: whether sums check, whether orders are true, and what serving adds.

``python -m tests.benchmarks.attribution`` prints JSON. It is of the bundles that ``make demo``
makes of the demo's ViT and CLIP, unless ``--vit BUNDLE --clip BUNDLE`` names others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from timm.models import VisionTransformer
from torch import Tensor
from vision_sae_client import Client
from vision_sae_client import targets as asked_targets

from tests.benchmarks._device import report
from vision_sae import devices
from vision_sae.activations.harvest import choose, harvest
from vision_sae.attribution import targets
from vision_sae.attribution.ledger import ledger
from vision_sae.attribution.observation import Observation
from vision_sae.attribution.targets import Target, measure_targets
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.config import HarvestConfig, ServeConfig, TrainConfig
from vision_sae.demo import CORPUS
from vision_sae.demo.run import bundle_path, serving
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.dictionaries.protocol import SiteDictionary, to_dense
from vision_sae.dictionaries.resident import resident, resident_at
from vision_sae.evaluation import attribution as evaluation
from vision_sae.evaluation.pointing import NODES, pointing
from vision_sae.models.bound import bound
from vision_sae.models.grid import Preprocessing
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import Model
from vision_sae.models.vit import TimmBackbone, VitModel
from vision_sae.pictures.decode import decode_image
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.scenes import VALUES, Scene, scenes
from vision_sae.steering.edits import FeatureEdit
from vision_sae.steering.intervention import FeatureIntervention
from vision_sae.transfers import to_host
from vision_sae.v1 import ledger_pb2

_PICTURES, _TESTED = 200, 30
_CAPTUM = 6
_TIMED = 40
_CLIENTS, _CALLS, _ROUNDS = 32, 256, 7
"""Calls of a round are many for each client: at its start and end not all of them are asking."""
_BATCHES, _PASSES = (1, 2, 4, 8, 16), 3
_PLANTED = "background"
"""The attribute that interventions are about."""
_SIDE, _RATE = 64, 2e-3
_TRAINED, _CLASSIFIED = 3000, 600
"""Scenes that the planted classifier is trained on; of these, and of others, that it is asked."""
_ATTRIBUTED, _USED = 10, 20
"""Pictures by which a concept's features are found, and how many features that are."""


def opened(path: Path, dtype: str) -> tuple[Bundle, VitModel, SiteDictionary]:
    """A bundle with its model in a precision."""
    bundle = read_bundle(path)
    identity = bundle.manifest["model"]
    model = bound(load_model(identity["name"], dtype=dtype), identity)  # type: ignore[arg-type]
    assert isinstance(model, VitModel)
    return bundle, model, SiteDictionary(bundle.dictionary, bundle.site)


def captum_difference(
    model: VitModel, found: SiteDictionary, images: Sequence[Tensor], wanted: Sequence[Target]
) -> float:
    """The largest difference to captum's integrated gradients over (codes, error), per feature,
    over the largest contribution."""
    largest = 0.0
    dictionary, special = resident(found.dictionary, model.device), model.grid.special
    for image, target in zip(images, wanted, strict=True):
        scene = Observation(model, image, target, [found.site])
        update = scene.updates[found.site]
        codes = to_dense(dictionary.encode(update), dictionary.width)
        error = update - (codes @ dictionary.decoder + dictionary.bias)

        def forward(codes: Tensor, error: Tensor) -> Tensor:
            values = []
            for patches in codes @ dictionary.decoder + dictionary.bias + error:

                def edit(vectors: Tensor, patches: Tensor = patches) -> Tensor:
                    return torch.cat([vectors[:, :special], patches[None]], dim=1)

                with model.replace(found.site, edit):
                    values.append(measure_targets(model, image[None], [target])[1][0, 0])  # noqa: B023
            return torch.stack(values)

        theirs, _ = IntegratedGradients(forward).attribute(
            (codes[None], error[None]),
            method="gausslegendre",
            n_steps=NODES,
            internal_batch_size=1,
        )
        ours = ledger(scene, found, nodes=NODES).per_feature
        difference = (ours - theirs[0].sum(0).cpu().double()).abs().max()
        largest = max(largest, float(difference / ours.abs().max()))
    return largest


def in_turns(served: Callable[[], object], inside: Callable[[], object]) -> tuple[float, float]:
    """(milliseconds of a served call, its time over that of the call inside): medians of pairs that
    follow each other, after a few to warm up, for a machine's speed changes by the minute."""
    pairs = [(_ms(served), _ms(inside)) for _ in range(_TIMED + 3)][3:]
    ratios = [over / within for over, within in pairs]
    return float(np.median([over for over, _ in pairs])), float(np.median(ratios))


def _ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begun)


def latencies(path: Path, picture: Picture) -> dict[str, float]:
    """Time of a call through gRPC over that of the same computing in process."""
    from vision_sae_server.loading import load_state
    from vision_sae_server.services.attribution import AttributionServicer

    from vision_sae.v1 import attribution_service_pb2 as pb

    data = picture.path.read_bytes()
    state = load_state([path], ServeConfig(port=0))
    servicer = AttributionServicer(state)
    name = f"dictionaries/{read_bundle(path).name}"
    image = {"data": data}
    encode = pb.EncodeRequest(image=image, dictionary=name, top_k=10)
    target = asked_targets.mean_embedding()
    method = ledger_pb2.ATTRIBUTION_METHOD_ACT_X_GRAD
    attribute = pb.AttributeRequest(
        image=image, dictionaries=[name], target=target, method=method, top_k=10
    )
    with asyncio.Runner() as runner, serving([path]) as address, Client(address) as client:

        def inside_encode() -> object:
            return runner.run(servicer.Encode(encode, None))  # type: ignore[arg-type]

        def inside_attribute() -> object:
            return runner.run(servicer.Attribute(attribute, None))  # type: ignore[arg-type]

        def over_attribute() -> object:
            return client.attribute(data, target, dictionaries=[name], method=method, top_k=10)

        encode_ms, encode_ratio = in_turns(
            lambda: client.encode(data, name, top_k=10), inside_encode
        )
        attribute_ms, attribute_ratio = in_turns(over_attribute, inside_attribute)
    state.close()
    return {
        "encode_ms": round(encode_ms, 2),
        "encode_latency_ratio": round(encode_ratio, 3),
        "attribute_ms": round(attribute_ms, 2),
        "attribute_latency_ratio": round(attribute_ratio, 3),
    }


class Offline:
    """The best a loop without a server does: from files to codes, in batches, decoding the next one
    while the model has the one before."""

    def __init__(
        self,
        model: Model,
        found: SiteDictionary,
        files: Sequence[bytes],
        sizes: Sequence[int] = _BATCHES,
    ) -> None:
        """``sizes`` are the sizes of batches that are tried; ``best`` is the fastest of them."""
        self._model, self._found = model, resident_at(found, model.device)
        self._files = files[: max(sizes)]
        self._inputs = torch.stack(list(map(self._prepared, self._files)))
        self._readers = ThreadPoolExecutor(os.cpu_count())
        by_size = {size: max(self.rate(size) for _ in range(3)) for size in sizes}
        self.best = max(by_size, key=by_size.__getitem__)

    def _prepared(self, file: bytes) -> Tensor:
        return self._model.preprocess(decode_image(file))

    def _encode(self, batch: Tensor) -> None:
        site, special = self._found.site, self._model.grid.special
        with torch.inference_mode(), self._model.capture([site], stop=True) as captured:
            self._model.forward(batch)
        vectors = captured[site][:, special:].flatten(0, 1).float()
        to_host(*self._found.dictionary.encode(vectors))

    def rate(self, size: int) -> float:
        """Pictures a second, in batches of ``size``."""
        batches = [
            self._files[start : start + size] for start in range(0, len(self._files), size)
        ] * _PASSES
        begun = time.perf_counter()
        following = self._readers.map(self._prepared, batches[0])
        for upcoming in [*batches[1:], []]:
            batch = torch.stack(list(following))
            following = self._readers.map(self._prepared, upcoming)
            self._encode(batch)
        return _PASSES * len(self._files) / (time.perf_counter() - begun)

    def of_model_alone(self) -> float:
        """Pictures a second when they need not be read."""
        begun = time.perf_counter()
        for batch in self._inputs.split(self.best) * _PASSES:
            self._encode(batch)
        return _PASSES * len(self._inputs) / (time.perf_counter() - begun)


def in_rounds(
    address: str,
    name: str,
    files: Sequence[bytes],
    offline: Offline,
    *,
    calls: int = _CALLS,
    rounds: int = _ROUNDS,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(of 32 clients of Encode, of `Offline` from files, of its model alone): pictures a second.

    Each round of clients is between two of the loop alone, whose mean is its figure, for machines
    whose speed changes by the minute.
    """
    rates = []
    with Client(address, timeout=300) as client, ThreadPoolExecutor(_CLIENTS) as pool:

        def call(number: int) -> object:
            return client.encode(files[number % len(files)], name, top_k=10)

        list(pool.map(call, range(_CLIENTS)))
        alone = offline.rate(offline.best), offline.of_model_alone()
        for _ in range(rounds):
            before = alone
            begun = time.perf_counter()
            list(pool.map(call, range(calls)))
            rate = calls / (time.perf_counter() - begun)
            alone = offline.rate(offline.best), offline.of_model_alone()
            rates.append((rate, *np.mean([before, alone], axis=0)))
    served, from_files, model_alone = np.array(rates).T
    return served, from_files, model_alone


def throughput(path: Path, pictures: Sequence[Picture]) -> dict[str, float]:
    """Pictures a second of 32 clients over the rate of `Offline`: the medians of `in_rounds`."""
    files = [p.path.read_bytes() for p in pictures]
    bundle, model, found = opened(path, "auto")
    offline = Offline(model, found, files)
    with serving([path]) as address:
        rates = in_rounds(address, f"dictionaries/{bundle.name}", files, offline)
    served, from_files, model_alone = rates
    return {
        "served_per_s": round(float(np.median(served)), 2),
        "offline_per_s": round(float(np.median(from_files)), 2),
        "model_alone_per_s": round(float(np.median(model_alone)), 2),
        "offline_batch": offline.best,
        "throughput_ratio_32_clients": round(float(np.median(served / from_files)), 3),
        "throughput_ratio_to_model_alone": round(float(np.median(served / model_alone)), 3),
    }


def interventions() -> dict[str, float]:
    """Share of pictures that the classifier no longer says a planted concept of, when the features
    that the concept uses are ablated, and when as much is moved along random features.

    The classifier sees nothing but what its last block's output holds, so that ablating there
    leaves no way around. A concept's features are those that contribute most, over some pictures of
    the training, to its logit.
    """
    model = trained_classifier(_PLANTED)
    known, held = composed(_CLASSIFIED, seed=5), composed(_CLASSIFIED, seed=6)
    with TemporaryDirectory() as folder:
        found, explained = site_dictionary(model, known, Path(folder))
    position = list(VALUES).index(_PLANTED)
    flipped, at_random, said = [], [], []
    for value in range(len(VALUES[_PLANTED])):
        logit = targets.class_logit(value)
        total = torch.zeros(found.dictionary.width, dtype=torch.float64)
        for scene in shows(known, position, value)[:_ATTRIBUTED]:
            seen = Observation(model, model.preprocess(scene.image), logit, [found.site])
            total += ledger(seen, found, nodes=NODES).per_feature
        used = torch.argsort(-total)[:_USED].tolist()
        edits = [FeatureEdit("d", feature, "ablate") for feature in used]
        intervention = FeatureIntervention(model, edits, {"d": found}, controls=5)
        for scene in shows(held, position, value):
            outcome = intervention(model.preprocess(scene.image), [logit])
            said.append(bool(outcome.values_before > 0))
            if said[-1]:
                flipped.append(bool(outcome.values_after < 0))
                at_random += (outcome.values_control < 0).flatten().tolist()
    return {
        "recall": round(float(np.mean(said)), 3),
        "explained_variance": round(explained, 3),
        "planted": round(float(np.mean(flipped)), 3),
        "random": round(float(np.mean(at_random)), 3),
    }


def composed(count: int, seed: int) -> list[Scene]:
    """Scenes as the planted classifier sees them."""
    return list(scenes(count, seed, side=_SIDE))


def shows(drawn: Sequence[Scene], position: int, value: int) -> list[Scene]:
    """Those whose attribute at ``position`` has a value."""
    return [scene for scene in drawn if scene.attributes.numbers[position] == value]


def trained_classifier(attribute: str) -> VitModel:
    """A small ViT without a class token that says of each value of an attribute whether a scene has
    it: a logit above 0 says so. One that must choose among the values, in softmax, has one that it
    says of nothing at all, which no ablation takes away."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(_SIDE, _SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    drawn, position = composed(_TRAINED, seed=5), list(VALUES).index(attribute)
    device = devices.chosen()
    images = torch.stack([preprocessing(scene.image) for scene in drawn]).to(device)
    numbers = torch.tensor([scene.attributes.numbers[position] for scene in drawn])
    truth = torch.nn.functional.one_hot(numbers, len(VALUES[attribute])).float().to(device)
    module = VisionTransformer(
        img_size=_SIDE,
        patch_size=8,
        embed_dim=96,
        depth=4,
        num_heads=3,
        class_token=False,
        global_pool="avg",
        num_classes=len(VALUES[attribute]),
    ).to(device)
    batches = [rows for _ in range(6) for rows in torch.randperm(len(images)).split(64)]
    optimizer = torch.optim.AdamW(module.parameters(), _RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=len(batches))
    for rows in batches:
        logits = module(images[rows])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    backbone = TimmBackbone(module)
    return VitModel("planted", backbone, preprocessing, dtype="float32", device=device)


def site_dictionary(
    model: VitModel, drawn: Sequence[Scene], folder: Path
) -> tuple[SiteDictionary, float]:
    """(an SAE of the last block's output on scenes, its explained variance)"""
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, scene in enumerate(drawn):
        scene.image.save(pictures / f"{number:04}.png")
    site = [name for name in model.sites if name.endswith(".resid")][-1]
    config = HarvestConfig(sites=(site,))
    store = harvest(model, image_folder(pictures), folder / "store", config, progress=False)
    training = TrainConfig(site=site, steps=600, expansion=4, k=8, batch_size=1024)
    place = folder / "dictionary"
    metrics = train_dictionary(store, place, training, {"scenes": store}, progress=False)
    dictionary, _ = load_dictionary(place)
    return SiteDictionary(dictionary, site), metrics["scenes"]["explained_variance"]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of both bundles; each part is printed as soon as it is known."""
    pictures = choose(image_folder(CORPUS / "heldout"), given.pictures)
    if more := given.pictures - len(pictures):
        pictures += choose(image_folder(CORPUS / "train"), more)
    # Times first, of a process whose memory no other work has left in pieces.
    figures: dict[str, Any] = latencies(given.vit, pictures[0])
    figures |= throughput(given.vit, pictures[:64])
    print(json.dumps(figures, indent=1), flush=True)
    for name, path in (("vit", given.vit), ("clip", given.clip)):
        _, model, found = opened(path, "float32")
        images = [model.preprocess(picture.load()) for picture in pictures]
        wanted = evaluation.targets_of(model, [picture.caption for picture in pictures])
        made = evaluation.evaluate_attribution(model, found, images, wanted, tested=_TESTED)
        figures[name] = {
            "completeness_gap_p95": made.gap_p95,
            "captum_max_abs_diff": captum_difference(
                model, found, images[:_CAPTUM], wanted[:_CAPTUM]
            ),
            "rank_correlation_with_ablation": made.rank_correlation,
            "deletion_auc": {
                order: area._asdict() for order, area in made.areas["code deletion"].items()
            },
            "pointing_game": {
                site: {attribute: figures._asdict() for attribute, figures in of_site.items()}
                for site, of_site in pointing(model, evaluation.sites_of(found)).items()
            },
            "report": made.to_json(),
        }
        print(json.dumps({name: figures[name]}, indent=1), flush=True)
    figures["intervention"] = interventions()
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--vit", type=Path, default=bundle_path("demo:dinov2-s"))
    parser.add_argument("--clip", type=Path, default=bundle_path("demo:clip"))
    parser.add_argument("--pictures", type=int, default=_PICTURES)
    report(parser, measure, indent=1)


if __name__ == "__main__":
    main()
