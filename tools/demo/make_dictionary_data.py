"""Make the training pictures of the demo's released dictionaries, and their activation stores.

    python -m tools.demo.make_dictionary_data pictures --cache DOWNLOADS --out DATA
    python -m tools.demo.make_dictionary_data stores --out DATA

``pictures`` paints a part of the recipe of the demo CLIP (`tools.demo.clip_pictures`), the
drawings of six makers of emoji foremost, and writes ``DATA/pictures`` with its captions. ``stores``
runs both models over the pictures in one pass, because their first blocks are the same, and
publishes an ActivationStore of each: ``DATA/vit`` and ``DATA/clip``. Both steps resume after a
stop.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from tools.demo import clip_pictures
from tools.demo.clip_figures import Taboo, held_out
from tools.demo.clip_pictures import Picture as Recipe
from tools.demo.make_clip_data import SEED, figures_of
from vision_sae.config import HarvestConfig
from vision_sae.demo.both import harvest_both
from vision_sae.models.clip import ClipModel
from vision_sae.models.loading import load_model
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
"""Largest number of pictures of each kind to take from the recipe."""
MAKERS = {"game-icons": 0.3, "icon-park": 0.3}
"""{maker: share of its drawings to take}: icons of one colour, and interface icons."""
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
    """The chosen pictures, shuffled.

    Each drawing has one picture. A pair is taken only if both drawings are on the same side, so
    that every picture can serve to choose, judge or audit (`vision_sae.statistics.sides`).
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
    """(the most informative caption, the other captions)"""
    full = max(picture.captions, key=lambda text: (" background" in text, len(text)))
    return full, [text for text in dict.fromkeys(picture.captions) if text != full]


def make_pictures(out: Path, cache: Path, share: float) -> None:
    """Paint the chosen pictures into ``out/pictures`` as WebP files."""
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
