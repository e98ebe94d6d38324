"""The small data that the documentation's commands run on: pictures, bundles, a server.

The names are those that the pages use. Each part is made once, by the commands of the library, and
copied into the folder of every page that needs it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw
from typer.testing import CliRunner

from vision_sae.cli import app
from vision_sae.demo import CORPUS

SETTINGS = {
    "VISION_SAE_TRAIN__EXPANSION": "2",
    "VISION_SAE_TRAIN__STEPS": "10",
    "VISION_SAE_TRAIN__BATCH_SIZE": "256",
    "VISION_SAE_TRAIN__DEAD_AFTER": "20000",
    "VISION_SAE_BUILD__RECALL_FLOOR": "0",
}
"""What makes the pages' trainings small: the commands stay as a person types them."""
_CHOSEN = 16
_PROMPTS = ("a large red star at the left of a white background", "a small blue ring")


def run(*words: str | Path) -> None:
    """Run a command of the library, which ends well."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output


def _corpus(folder: Path, split: str, every: int, most: int) -> None:
    """Some captioned pictures of the demo's corpus."""
    folder.mkdir(parents=True)
    lines = (CORPUS / split / "captions.jsonl").read_text("utf-8").splitlines()[::every][:most]
    for line in lines:
        picture = folder / json.loads(line)["file"]
        picture.parent.mkdir(exist_ok=True)
        shutil.copyfile(CORPUS / split / json.loads(line)["file"], picture)
    (folder / "captions.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")


class World:
    """Each method fills a folder with one part; parts that are dear are made once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def fill(self, folder: Path, parts: Iterable[str]) -> None:
        """Put the parts that a page names into its folder."""
        fillers: dict[str, Callable[[Path], None]] = {
            "pictures": self._pictures,
            "classes": self._classes,
            "prompts": self._prompts,
            "store": self._store,
            "bundle": self._bundle,
            "other": self._other,
            "labels": self._labels,
            "released": self._released,
        }
        for part in parts:
            fillers[part](folder)

    def _pictures(self, folder: Path) -> None:
        for name in ("pictures", "cat.webp", "dog.webp", "fox.webp"):
            source = self.pictures / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)

    def _classes(self, folder: Path) -> None:
        files = sorted((self.pictures / "pictures").rglob("*.webp"))[:4]
        for number, file in enumerate(files):
            target = folder / "classes" / ("star", "ring")[number % 2]
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.name)

    def _prompts(self, folder: Path) -> None:
        (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in _PROMPTS))
        mask = Image.new("L", (64, 64))
        ImageDraw.Draw(mask).rectangle((0, 0, 32, 64), fill=255)
        mask.save(folder / "mask.png")

    def _store(self, folder: Path) -> None:
        for name in ("store", "heldout", "dictionary"):
            shutil.copytree(self.runs / name, folder / "runs" / name, dirs_exist_ok=True)

    def _bundle(self, folder: Path) -> None:
        shutil.copytree(self.runs / "my-dictionary", folder / "runs" / "my-dictionary")

    def _other(self, folder: Path) -> None:
        shutil.copytree(self.runs / "my-dictionary", folder / "runs" / "other")

    def _labels(self, folder: Path) -> None:
        """What people and somebody's describer say of the same units."""
        rows = "".join(f"blocks.10.update,{unit},a bright thing\n" for unit in range(4))
        (folder / "annotations.csv").write_text(f"layer,unit,summary\n{rows}")
        (folder / "theirs.csv").write_text(f"layer,unit,description\n{rows}")

    def _released(self, folder: Path) -> None:
        """A bundle with labels."""
        released = "demo:dinov2-s/blocks.10.update"
        run("build", self.runs / "store", released, folder / "runs" / "released", *self._settings)

    @cached_property
    def pictures(self) -> Path:
        """Two folders of captioned pictures, and three single ones."""
        folder = self._root / "all"
        _corpus(folder / "pictures", "train", 17, _CHOSEN)
        _corpus(folder / "heldout", "heldout", 7, 8)
        singles = sorted((folder / "heldout").rglob("*.webp"))
        for name, file in zip(("cat", "dog", "fox"), singles, strict=False):
            shutil.copyfile(file, folder / f"{name}.webp")
        return folder

    @cached_property
    def runs(self) -> Path:
        """Stores, a dictionary and a bundle of the demo's ViT."""
        runs = self._root / "runs"
        for name, source in (("store", "pictures"), ("heldout", "heldout")):
            run("harvest", self.pictures / source, runs / name, "--model", "demo:dinov2-s")
        small = ("--expansion", "1", "--k", "16", "--steps", "40", "--batch-size", "512")
        run("train", runs / "store", runs / "dictionary", *small)
        run("build", runs / "store", runs / "dictionary", runs / "my-dictionary", *self._settings)
        run("describe", runs / "my-dictionary", *self._settings)
        return runs

    @cached_property
    def clip(self) -> Path:
        """A bundle of the demo's CLIP, of a released dictionary, whose patches texts can find."""
        folder = self._root / "clip"
        aligned = ("--model", "demo:clip", "--text-aligned")
        run("harvest", self.pictures / "pictures", folder / "store", *aligned)
        released = "demo:clip/blocks.10.update"
        run("build", folder / "store", released, folder / "demo-clip", *self._settings)
        return folder / "demo-clip"

    @cached_property
    def generated(self) -> Path:
        """A bundle of the demo's generator."""
        folder = self._root / "generated"
        site = ("--model", "demo:generator", "--site", "up_blocks.0.attentions.1.update")
        self._prompts(self._root)
        run("harvest", self._root / "prompts.txt", folder / "store", *site)
        small = ("--expansion", "1", "--k", "48", "--steps", "20", "--batch-size", "256")
        run("train", folder / "store", folder / "dictionary", *small)
        made = folder / "my-generator"
        run("build", folder / "store", folder / "dictionary", made, *self._settings)
        return folder

    @cached_property
    def _settings(self) -> tuple[str, str]:
        """The option that makes small bundles, and describes them by their captions alone."""
        path = self._root / "settings.yaml"
        path.write_text(
            "build: {recall_floor: 0}\ndescribe: {describer: caption-pmi, metrics: []}\n"
        )
        return ("--config", str(path))
