"""Make the pictures that the demo's released dictionaries are trained on, and their stores.

    python -m tools.demo.make_dictionary_data pictures --cache DOWNLOADS --out DATA
    python -m tools.demo.make_dictionary_data stores --out DATA

``pictures`` paints a part of the recipe of the demo CLIP (`vision_sae.demo.clip_pictures`), the
drawings of six makers of emoji foremost, and writes ``DATA/pictures`` with its captions. ``stores``
looks at them once with both models, whose first blocks are the same, and publishes an
ActivationStore of each: ``DATA/vit`` and ``DATA/clip``. Both steps go on where they stopped.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from vision_sae.config import HarvestConfig
from vision_sae.demo import clip_pictures
from vision_sae.demo.both import harvest_both
from vision_sae.demo.clip_figures import Taboo, held_out
from vision_sae.demo.clip_pictures import Picture as Recipe
from vision_sae.demo.make_clip_data import SEED, figures_of
from vision_sae.models.clip import ClipModel
from vision_sae.models.registry import load_model
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import CAPTIONS_JSONL, image_folder
from vision_sae.statistics.sides import JOINED_BY, side_of

SHARES = {
    "figure": 9600,
    "pair": 1300,
    "word": 300,
    "shape": 250,
    "texture": 200,
    "scene": 700,
    "photograph": 1300,
}
"""How many pictures of each kind are taken, where the recipe has so many."""
MAKERS = {"game-icons": 0.3, "icon-park": 0.3}
"""Makers of whose drawings only this share is taken: icons of one colour, and of interfaces."""
VIT_SITES = ("blocks.8.update", "blocks.10.update")
CLIP_SITES = ("blocks.9.update", "blocks.10.update")
_SHARD = 512


def main() -> None:
    """Read the command line and do one of the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=("pictures", "stores"))
    parser.add_argument("--cache", type=Path, help="folder for downloads")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training data")
    parser.add_argument("--share", type=float, default=1.0, help="of all numbers of pictures")
    arguments = parser.parse_args()
    if arguments.step == "pictures":
        make_pictures(arguments.out, arguments.cache, arguments.share)
    else:
        make_stores(arguments.out)


def choose(recipe: Sequence[Recipe], share: float, rng: random.Random) -> list[Recipe]:
    """The pictures that are taken, in an order of their own.

    Of each drawing one picture; pairs only where both drawings lie on one side, so that every
    picture can choose, judge or audit (`vision_sae.statistics.sides`).
    """
    wanted = {kind: round(count * share) for kind, count in SHARES.items()}
    shown = set[str]()
    taken = list[Recipe]()
    order = list(recipe)
    rng.shuffle(order)
    for picture in order:
        origin = JOINED_BY.join(picture.sources)
        if wanted[picture.kind] == 0 or (picture.kind == "pair" and side_of(origin) is None):
            continue
        if picture.kind == "figure":
            if origin in shown or rng.random() > MAKERS.get(origin.partition("/")[0], 1.0):
                continue
            shown.add(origin)
        wanted[picture.kind] -= 1
        taken.append(picture)
    return taken


def _caption(picture: Recipe) -> tuple[str, list[str]]:
    """(the caption that says most, all else that is said of it)"""
    full = max(picture.captions, key=lambda text: (" background" in text, len(text)))
    return full, [text for text in dict.fromkeys(picture.captions) if text != full]


def make_pictures(out: Path, cache: Path, share: float) -> None:
    """Paint what is chosen into ``out/pictures`` as WebP files."""
    figures = figures_of(cache)
    recipe = clip_pictures.plan(figures, Taboo(held_out(figures)), SEED)
    taken = choose(recipe, share, random.Random(SEED))
    folder = out / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:05d}.webp" for number in range(len(taken))]
    lines = []
    for name, picture in zip(names, taken, strict=True):
        caption, tags = _caption(picture)
        source = JOINED_BY.join(picture.sources)
        row = {"file": name, "caption": caption, "tags": tags, "source": source}
        lines.append(json.dumps(row, ensure_ascii=False))
    for name, picture in tqdm(zip(names, taken, strict=True), total=len(taken)):
        if not (folder / name).is_file():
            picture.paint().save(folder / name, "WEBP", quality=88)
    (folder / CAPTIONS_JSONL).write_text("\n".join(lines) + "\n", "utf-8")


def make_stores(out: Path) -> None:
    """Publish ``out/vit`` and ``out/clip``."""
    vit, clip = load_model("demo:dinov2-s"), load_model("demo:clip")
    assert isinstance(vit, VitModel)
    assert isinstance(clip, ClipModel)
    configs = tuple(
        HarvestConfig(model=model.name, sites=sites, shard_images=_SHARD)
        for model, sites in ((vit, VIT_SITES), (clip, CLIP_SITES))
    )
    directories = (out / "vit", out / "clip")
    harvest_both(vit, clip, image_folder(out / "pictures"), directories, (configs[0], configs[1]))


if __name__ == "__main__":
    main()
