"""Evaluation of a contrastive model: how well it names pictures of things outside its training.

Two tests, both of pictures that ship in this repository:

- the held-out pack: `HELD_OUT` concepts that no training picture or text of the demo CLIP shows
  or names, each drawn by two makers; the model ranks the names of all of them;
- the Tux Paint stamps of the demo corpus, a source of photographs that training never saw; the
  model chooses among the names of everything they show.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image

from tools.demo.clip_figures import TEST_MAKERS
from tools.demo.corpus_drawn import COLOURS
from vision_sae.demo import CORPUS
from vision_sae.models.protocol import ContrastiveModel

PACK = Path(__file__).parent / "clip_heldout"
MAKERS = TEST_MAKERS
OTHER_SOURCE = "tuxpaint-stamps-default"
_SIDE = 128
_QUALITY = 80
_BATCH = 32


class ClipFigures(TypedDict):
    """The result of `evaluate`; shares are between 0 and 1."""

    r_at_1: float
    """Share of held-out pictures whose right name ranks first."""
    r_at_5: float
    r_at_10: float
    r_at_10_by_maker: dict[str, float]
    zero_shot_other_source: float
    """Share of photographs of the other source with the right class."""
    zero_shot_classes: int
    """Number of classes."""


@dataclass(frozen=True)
class NamedPicture:
    """A picture and its right name."""

    path: Path
    name: str
    maker: str = ""


def write_pack(pictures: Iterable[tuple[str, str, str, Image.Image]]) -> None:
    """Write the held-out pack from (maker, code, name, picture)."""
    shutil.rmtree(PACK, ignore_errors=True)
    PACK.mkdir(parents=True)
    entries = []
    for maker, code, name, picture in pictures:
        file = f"{code}-{maker}.webp"
        small = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        small.save(PACK / file, "WEBP", quality=_QUALITY, method=6)
        entries.append({"file": file, "name": name, "maker": maker})
    entries.sort(key=lambda entry: entry["file"])
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    (PACK / "names.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def held_out_pictures() -> list[NamedPicture]:
    """The held-out pack, in the order of its list."""
    lines = (PACK / "names.jsonl").read_text("utf-8").splitlines()
    return [NamedPicture(PACK / e["file"], e["name"], e["maker"]) for e in map(json.loads, lines)]


def other_source_pictures() -> list[NamedPicture]:
    """The photographs of the other source, named by their captions."""
    found = []
    for split in ("train", "heldout"):
        lines = (CORPUS / split / "captions.jsonl").read_text("utf-8").splitlines()
        for entry in map(json.loads, lines):
            if entry["source"].startswith(OTHER_SOURCE):
                name = class_name(entry["caption"])
                found.append(NamedPicture(CORPUS / split / entry["file"], name))
    return found


_AROUND = re.compile(
    r",|(?<!^a)(?<!^an)(?<!^the) (?:on|in|with|behind|over|beside|before|against|under"
    r"|covered|seen|standing|walking|lying|running|grazing|sitting|spreading|bending|floating|eating|hanging|leaping|grown|built"
    r"|of stacked) "
)
_LOOKS = (
    "bright deep golden grey light dark old pale plain silver small large round rough tall slim "
    "shiny rusty clear colorful wet young smooth wide sitting standing grazing leaping spotted "
    "lit metal wooden"
)


def class_name(caption: str) -> str:
    """The thing that a caption names, without looks, posture, ground and surroundings.

    "a green and brown frog on a yellow background" -> "frog".
    """
    looks = "|".join(sorted({*COLOURS, *_LOOKS.split()}, key=len, reverse=True))
    plain = caption.replace("-", " ")
    bare = re.sub(rf"\b(?:{looks})\b(?! (?:on|in) ),?(?: and(?= ))?", "", plain)
    return re.sub(r"^(?:an?|the|two|three) ", "", _AROUND.split(" ".join(bare.split()))[0])


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def embed_pictures(model: ContrastiveModel, paths: Iterable[Path]) -> torch.Tensor:
    """(N, E) unit embeddings."""
    files = list(paths)
    rows = []
    for start in range(0, len(files), _BATCH):
        images = []
        for path in files[start : start + _BATCH]:
            with Image.open(path) as file:
                images.append(model.preprocess(file.convert("RGB")))
        with torch.inference_mode():
            rows.append(model.forward(torch.stack(images)).embedding.cpu())
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


def ranks(model: ContrastiveModel, pictures: list[NamedPicture]) -> torch.Tensor:
    """(N,) rank of each picture's own name among the names of all of them; 0 is first."""
    names = sorted({picture.name for picture in pictures})
    right = torch.tensor([names.index(picture.name) for picture in pictures])
    scores = embed_pictures(model, (p.path for p in pictures)) @ model.embed_texts(names).cpu().T
    return (scores > scores.gather(1, right[:, None])).sum(1)


def zero_shot(model: ContrastiveModel, pictures: list[NamedPicture]) -> tuple[float, int]:
    """(share of pictures given their own class, number of classes), asked as "a photograph of"."""
    names = sorted({picture.name for picture in pictures})
    texts = model.embed_texts([f"a photograph of {_with_article(name)}" for name in names]).cpu()
    best = (embed_pictures(model, (p.path for p in pictures)) @ texts.T).argmax(1)
    right = torch.tensor([names.index(picture.name) for picture in pictures])
    return float((best == right).float().mean()), len(names)


def evaluate(model: ContrastiveModel) -> ClipFigures:
    """Both tests on ``model``."""
    pictures = held_out_pictures()
    found = ranks(model, pictures)
    accuracy, classes = zero_shot(model, other_source_pictures())

    def within(places: int, maker: str = "") -> float:
        mine = torch.tensor([not maker or picture.maker == maker for picture in pictures])
        return float((found[mine] < places).float().mean())

    return {
        "r_at_1": within(1),
        "r_at_5": within(5),
        "r_at_10": within(10),
        "r_at_10_by_maker": {maker: within(10, maker) for maker in MAKERS},
        "zero_shot_other_source": accuracy,
        "zero_shot_classes": classes,
    }
