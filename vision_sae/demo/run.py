"""The main job on the embedded default: pictures -> features, evidence and labels over gRPC.

Every stage is the public command's own function, so the demo is also the shortest true example of
how the pieces fit. Stages that are done are reused.
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
from vision_sae.bundles.build import build, is_current
from vision_sae.bundles.bundle import Bundle
from vision_sae.config import Config, HarvestConfig, TrainConfig
from vision_sae.demo import generations
from vision_sae.demo.both import harvest_both
from vision_sae.demo.report import FILES, label, write_report
from vision_sae.descriptions.again import JUDGED_AGAIN, judge_again
from vision_sae.descriptions.describe import describe_bundle, is_described
from vision_sae.dictionaries.pipeline import train_dictionary
from vision_sae.models.clip import ClipModel
from vision_sae.models.registry import load_model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.places import check_output_folder
from vision_sae.resources import dictionary_resource, model_resource
from vision_sae.v1.attribution_service_pb2 import ENCODE_ORDER_INFORMATIVE, EncodeResponse
from vision_sae.v1.generation_service_pb2 import GenerationSettings

CORPUS = Path(__file__).parent / "corpus"
SITE = "blocks.10.update"
"""Where targets are near: what attributions are best asked about."""
VIT, CLIP = "demo:dinov2-s", "demo:clip"
MODELS = {VIT: "blocks.8.update", CLIP: "blocks.9.update"}
"""The earlier site of each that is harvested; the first blocks of both are the same."""
RELEASED = (f"{VIT}/{SITE}", f"{CLIP}/{SITE}")
"""Dictionaries that the demo shows: trained and labelled on far more pictures, they come with the
package. `vision_sae.load_dictionary` has those of the earlier sites too."""
WORK = Path("runs/demo")
"""Where everything is kept, as the command has it."""
_KEPT = ("vit", "clip", "generator", "my-dictionary", "demo-*", "probes", ".*")
"""What the folder of stores, dictionaries and bundles may hold; older ones of it are replaced."""
_HELDOUT_IMAGES = 80
_TRAINING = TrainConfig(site=MODELS[VIT], steps=200, expansion=2, k=16)
"""Of the dictionary that is trained before one's eyes: small, to be there in a minute."""
_LOOKED_AT = 48
"""Held-out pictures of which the demo asks about the one that most labels speak of."""
_SHOWN = 12
"""Features of an answer."""


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
    """The held-out picture of which the most features, among the first of its answer, have a label
    that captions have confirmed: it is in no training split, and nobody chose it by hand."""

    def named(picture: Picture) -> int:
        found = (item.feature.description for item in encode(picture).features)
        return sum("captions" in description.judged_by for description in found)

    return max(choose(image_folder(CORPUS / "heldout"), _LOOKED_AT), key=named)


def bundle_path(model: str, site: str = SITE, work: Path = WORK) -> Path:
    """Where the demo keeps the bundle of a site of a model."""
    return work / f"demo-{model.removeprefix('demo:')}-block{site.split('.')[1]}"


class Harvested(NamedTuple):
    """What both models made of the pictures."""

    vit: ActivationStore
    clip: ActivationStore
    heldout: ActivationStore
    """What the ViT made of held-out pictures."""

    def store(self, model: str) -> ActivationStore:
        """The store of a model by its name."""
        return self.clip if model == CLIP else self.vit


def harvest_pictures(work: Path, stages: Stages) -> Harvested:
    """Both models look at the corpus at once; whatever is there already is kept."""
    pictures = image_folder(CORPUS / "train")
    of_vit = HarvestConfig(model=VIT, sites=(MODELS[VIT], SITE))
    of_clip = HarvestConfig(model=CLIP, sites=(MODELS[CLIP], SITE), text_aligned=True)
    with stages.stage("harvest", f"what {VIT} and {CLIP} make of {len(pictures)} pictures"):
        vit, clip = load_model(VIT), load_model(CLIP)
        assert isinstance(vit, VitModel)
        assert isinstance(clip, ClipModel)
        places = (work / "vit" / "store", work / "clip" / "store")
        seen, by_clip = harvest_both(vit, clip, pictures, places, (of_vit, of_clip), overwrite=True)
        heldout = of_vit.model_copy(update={"limit": _HELDOUT_IMAGES})
        place = work / "vit" / "heldout"
        held = harvest(vit, image_folder(CORPUS / "heldout"), place, heldout, overwrite=True)
    return Harvested(seen, by_clip, held)


def train_one(found: Harvested, work: Path, stages: Stages, config: Config) -> Bundle:
    """Train, build and describe a dictionary; whatever is there already is kept."""
    path, dictionary = work / "my-dictionary", work / "vit" / "dictionary"
    width = _TRAINING.expansion * found.vit.sites[MODELS[VIT]]
    with stages.stage("train", f"a TopK SAE of {VIT} at {_TRAINING.site}, {width} features"):
        metrics = train_dictionary(
            found.vit, dictionary, _TRAINING, {"heldout": found.heldout}, overwrite=True
        )
        print(f"held-out pictures: {_shown(metrics['heldout'])}")
    with stages.stage("build", "its codes, statistics, exemplars and patch index"):
        bundle = _current(path, found.vit, dictionary, config)
    with stages.stage("describe", "label every feature, judge the label, or abstain"):
        if not is_described(bundle, config.describe):
            bundle = describe_bundle(path, config.describe)
        _print_labels(bundle)
    return bundle


def build_released(name: str, found: Harvested, work: Path, stages: Stages, config: Config) -> Path:
    """The bundle of a released dictionary over the demo's pictures, with its labels judged anew."""
    model, _, site = name.rpartition("/")
    path = bundle_path(model, site, work)
    with stages.stage(f"build {path.name}", f"the released dictionary {name} on the same pictures"):
        _current(path, found.store(model), name, config)
        bundle = judge_again(path)
        _print_labels(bundle)
        doubted = bundle.manifest["describe"][JUDGED_AGAIN]["doubted"]
        print(f"{doubted} of the labels do not hold for these pictures: they are guesses here")
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
    """The bundle that is there, if it was made from just these, or a new one."""
    if is_current(path, store, dictionary, config.build):
        return Bundle(path)
    return build(store, dictionary, path, config.build, overwrite=True)


@contextmanager
def serving(bundles: Sequence[Path], port: int = 0) -> Iterator[str]:
    """The server as a process of its own; yields its address, and stops it at the end."""
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
    """Ask about the most telling picture through the client, and write the answer of one dictionary
    down."""
    from vision_sae_client import Client

    name, order = dictionary_resource(bundle), ENCODE_ORDER_INFORMATIVE
    says = f"which features of {name} fire in a picture that it never saw?"
    with stages.stage(f"ask {bundle}", says), Client(address) as client:

        def encode(picture: Picture, *, full: bool = False) -> EncodeResponse:
            return client.encode(
                picture.path, dictionary=name, top_k=_SHOWN, order=order, full=full
            )

        picture = most_telling(encode)
        answer, dictionary = encode(picture, full=True), client.dictionary(name)
    return write_report(out, picture, answer, dictionary, stages.seconds)


def steer(address: str, bundle: Bundle, stages: Stages, out: Path) -> None:
    """Turn one feature of the generator up, and write the picture beside its twin."""
    from vision_sae_client import Client, report, steering
    from vision_sae_client.edits import edit

    feature = generations.strongest_cause(bundle)
    said = bundle.descriptions.get(feature, {}).get("text") or "no label"
    says = f"feature {feature} of {bundle.name} ({said}) turned up"
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
    """Run all stages, write ``out``; without ``once`` keep the server and the page up."""
    from vision_sae.config import load_config

    check_output_folder(work, _KEPT, overwrite=True, field="work")
    check_output_folder(out, FILES, inputs=[work], overwrite=True)
    stages, config = Stages(), load_config()
    found = harvest_pictures(work, stages)
    mine = train_one(found, work, stages, config)
    bundles = [build_released(name, found, work, stages, config) for name in RELEASED]
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
    for found in answer["features"]:
        shown = label(found)
        print(f"  feature {found['feature']:>5}  activation {found['activation']:6.2f}  {shown}")
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
