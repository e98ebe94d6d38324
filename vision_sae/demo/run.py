"""The main job on the embedded default: pictures -> features, evidence and labels over gRPC.

Every stage calls the function behind the public command, so the demo is also the shortest complete
example. Finished stages are reused.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vision_sae.activations.harvest import choose, harvest
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build, current_bundle
from vision_sae.bundles.read import Bundle
from vision_sae.config import Config, HarvestConfig, TrainConfig
from vision_sae.demo import CORPUS, generations
from vision_sae.demo.both import harvest_both
from vision_sae.demo.report import FILES, label, write_report
from vision_sae.descriptions.describe import describe_bundle, is_described
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.labels.again import JUDGED_AGAIN, judge_again
from vision_sae.models.clip import ClipModel
from vision_sae.models.loading import load_model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.places import check_output_folder
from vision_sae.resources import dictionary_resource, model_resource
from vision_sae.v1.attribution_service_pb2 import ENCODE_ORDER_INFORMATIVE, EncodeResponse
from vision_sae.v1.generation_service_pb2 import GenerationSettings

SITE = "blocks.10.update"
"""A late site, close to the targets: the best site for attributions."""
VIT, CLIP = "demo:dinov2-s", "demo:clip"
MODELS = {VIT: "blocks.8.update", CLIP: "blocks.9.update"}
"""{model: its earlier harvested site}; the first blocks of both models are the same."""
RELEASED = (f"{VIT}/{SITE}", f"{CLIP}/{SITE}")
"""Released dictionaries that the demo shows. They were trained and labelled on far more pictures.
`vision_sae.load_dictionary` also loads those of the earlier sites."""
WORK = Path("runs/demo")
"""The default work folder of the command."""
_KEPT = ("vit", "clip", "generator", "my-dictionary", "demo-*", "probes", ".*")
"""Patterns of all entries of the work folder; older entries are replaced."""
_HELDOUT_IMAGES = 80
_TRAINING = TrainConfig(site=MODELS[VIT], steps=200, expansion=2, k=16)
"""Settings of the dictionary that the demo trains: small, so that training takes a minute."""
_LOOKED_AT = 48
"""Number of held-out pictures among which the demo chooses the one with most labels."""
_SHOWN = 12
"""Number of features in an answer."""


@dataclass
class Stages:
    """Names and times the stages."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, says: str) -> Iterator[None]:
        """Announce a stage and time it."""
        print(f"\n[{len(self.seconds) + 1}] {name}: {says}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)


def most_telling(encode: Callable[[Picture], EncodeResponse]) -> Picture:
    """The held-out picture with the most caption-confirmed labels among the first features of its
    answer. The picture is in no training split, and the choice is automatic."""

    def named(picture: Picture) -> int:
        descriptions = (item.feature.description for item in encode(picture).features)
        return sum("captions" in description.judged_by for description in descriptions)

    return max(choose(image_folder(CORPUS / "heldout"), _LOOKED_AT), key=named)


def bundle_path(model: str, site: str = SITE, work: Path = WORK) -> Path:
    """The demo's path for the bundle of a model's site."""
    return work / f"demo-{model.removeprefix('demo:')}-block{site.split('.')[1]}"


class Harvested(NamedTuple):
    """The activation stores of both models."""

    vit: ActivationStore
    clip: ActivationStore
    heldout: ActivationStore
    """The store of the ViT over held-out pictures."""

    def store(self, model: str) -> ActivationStore:
        """The training store of a model, by the model's name."""
        return self.clip if model == CLIP else self.vit


def harvest_pictures(work: Path, stages: Stages) -> Harvested:
    """Harvest both models in one pass over the corpus; finished stores are reused."""
    pictures = image_folder(CORPUS / "train")
    of_vit = HarvestConfig(model=VIT, sites=(MODELS[VIT], SITE))
    of_clip = HarvestConfig(model=CLIP, sites=(MODELS[CLIP], SITE), text_aligned=True)
    with stages.stage("harvest", f"vectors of {VIT} and {CLIP} for {len(pictures)} pictures"):
        vit, clip = load_model(VIT), load_model(CLIP)
        assert isinstance(vit, VitModel)
        assert isinstance(clip, ClipModel)
        places = (work / "vit" / "store", work / "clip" / "store")
        seen, by_clip = harvest_both(vit, clip, pictures, places, (of_vit, of_clip), overwrite=True)
        heldout = of_vit.model_copy(update={"limit": _HELDOUT_IMAGES})
        place = work / "vit" / "heldout"
        held = harvest(vit, image_folder(CORPUS / "heldout"), place, heldout, overwrite=True)
    return Harvested(seen, by_clip, held)


def train_one(stores: Harvested, work: Path, stages: Stages, config: Config) -> Bundle:
    """Train, build and describe a dictionary; finished stages are reused."""
    path, dictionary = work / "my-dictionary", work / "vit" / "dictionary"
    width = _TRAINING.expansion * stores.vit.sites[MODELS[VIT]]
    with stages.stage("train", f"a TopK SAE of {VIT} at {_TRAINING.site}, {width} features"):
        metrics = train_dictionary(
            stores.vit, dictionary, _TRAINING, {"heldout": stores.heldout}, overwrite=True
        )
        print(f"held-out pictures: {_shown(metrics['heldout'])}")
    with stages.stage("build", "its codes, statistics, exemplars and patch index"):
        bundle = _current(path, stores.vit, dictionary, config)
    with stages.stage("describe", "label every feature, judge the label, or abstain"):
        if not is_described(bundle, config.describe):
            bundle = describe_bundle(path, config.describe, bundle=bundle)
        _print_labels(bundle)
    return bundle


def build_released(
    name: str, stores: Harvested, work: Path, stages: Stages, config: Config
) -> Path:
    """The bundle of a released dictionary over the demo's pictures, with its labels judged
    again."""
    model, _, site = name.rpartition("/")
    path = bundle_path(model, site, work)
    with stages.stage(f"build {path.name}", f"the released dictionary {name} on the same pictures"):
        bundle = judge_again(path, _current(path, stores.store(model), name, config))
        _print_labels(bundle)
        doubted = bundle.manifest["describe"][JUDGED_AGAIN]["doubted"]
        print(f"{doubted} of the labels do not hold for these pictures and become guesses")
    return path


def _print_labels(bundle: Bundle) -> None:
    summary = bundle.manifest["describe"]
    print(f"{summary['labelled']} features labelled, {summary['abstained']} abstained")


def _shown(metrics: dict[str, float]) -> str:
    return (
        f"explained variance {metrics['explained_variance']:.3f}, L0 {metrics['l0']:.1f}, "
        f"{metrics['frac_alive']:.1%} of the features fire"
    )


def _current(path: Path, store: ActivationStore, dictionary: Path | str, config: Config) -> Bundle:
    """An existing bundle of the same store and dictionary, or a new bundle."""
    current = current_bundle(path, store, dictionary, config.build)
    return current or build(store, dictionary, path, config.build, overwrite=True)


@contextmanager
def serving(bundles: Sequence[Path], port: int = 0) -> Iterator[str]:
    """Run the server in another process; yield its address, and stop the server at the end."""
    command = [
        sys.executable, "-m", "vision_sae.cli", "serve", *map(str, bundles),
        "--port", str(port), "--clip", CLIP,
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("serving"):
                raise RuntimeError(f"the server did not start: {line or 'see the message above'}")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)


def ask(address: str, bundle: str, stages: Stages, out: Path) -> dict[str, Any]:
    """Encode the most telling picture through the client, and write one dictionary's answer."""
    from vision_sae_client import Client

    name, order = dictionary_resource(bundle), ENCODE_ORDER_INFORMATIVE
    says = f"which features of {name} fire in a held-out picture?"
    with stages.stage(f"ask {bundle}", says), Client(address) as client:

        def encode(picture: Picture, *, full: bool = False) -> EncodeResponse:
            return client.encode(
                picture.path, dictionary=name, top_k=_SHOWN, order=order, full=full
            )

        picture = most_telling(encode)
        answer, dictionary = encode(picture, full=True), client.dictionary(name)
    return write_report(out, picture, answer, dictionary, stages.seconds)


def steer(address: str, bundle: Bundle, stages: Stages, out: Path) -> None:
    """Raise one feature of the generator, and write the picture beside its unedited twin."""
    from vision_sae_client import Client, report, steering
    from vision_sae_client.edits import edit

    feature = generations.strongest_cause(bundle)
    text = bundle.descriptions.get(feature, {}).get("text") or "no label"
    says = f"feature {feature} of {bundle.name} ({text}) turned up"
    with stages.stage("steer", says), Client(address, timeout=600) as client:
        name = f"{dictionary_resource(bundle.name)}/features/{feature}"
        settings = GenerationSettings(
            model=model_resource(generations.MODEL),
            prompt=generations.prompts(1, generations.HELDOUT_SEED)[0],
            seed=1,
            edits=[edit(name, "add", generations.shown_value(bundle, feature))],
        )
        *_, last = client.generate(settings)
        steering.write(last.result, out, overwrite=True)
    print(f"{report.generation(last.result)}\nwritten: {out / 'beside.png'}")


def run(out: Path, work: Path, *, once: bool, port: int, web_port: int) -> None:
    """Run all stages and write ``out``; without ``once``, keep the server and the web page up."""
    from vision_sae.config import load_config

    check_output_folder(work, _KEPT, overwrite=True, field="work")
    check_output_folder(out, FILES, inputs=[work], overwrite=True)
    stages, config = Stages(), load_config()
    stores = harvest_pictures(work, stages)
    mine = train_one(stores, work, stages, config)
    bundles = [build_released(name, stores, work, stages, config) for name in RELEASED]
    generated = generations.make_bundle(work, stages.stage, config.build)
    start = time.perf_counter()
    served = [*bundles, mine.path, generated.path]
    with serving(served, 0 if once else port) as address:
        stages.seconds["serve"] = round(time.perf_counter() - start, 2)
        steer(address, generated, stages, out / "steered")
        for bundle, place in zip(bundles, (out, out / "clip"), strict=True):
            answer = ask(address, bundle.name, stages, place)
            _print_answer(answer, place)
        if not once:
            _stay(address, web_port)


def _print_answer(answer: dict[str, Any], out: Path) -> None:
    print(
        f"\n{answer['image']}: the dictionary explains {answer['explained_variance']:.1%} of it; "
        f"recall@10 of the patch index is {answer['recall_at_10']:.3f}"
    )
    for row in answer["features"]:
        shown = label(row)
        print(f"  feature {row['feature']:>5}  activation {row['activation']:6.2f}  {shown}")
    print(f"\nwritten: {out / 'answer.json'}, overlays, and {out / 'index.html'}")


def _stay(address: str, web_port: int) -> None:
    """Keep the server and the web page up until interrupted or terminated."""
    from vision_sae_client.web import launch

    print(
        f"\nThe server is up on {address}:\n"
        f"  vision-sae-client attribute PICTURE --address {address}",
        flush=True,
    )
    launch(address, port=web_port, examples_dir=CORPUS / "heldout" / "photographs")
