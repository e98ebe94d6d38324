"""Training drawings of the demo CLIP: many makers' emoji, icons and clip art, with names.

A figure is one drawing on a transparent ground with its name. Three hundred concepts are held out:
`held_out` draws them from the emoji that both makers of the test have drawn, except flags, because
known flags do not reveal an unknown one. `Taboo` removes held-out concepts from training: every
maker's drawing of the code point or of the name, and every tag, written word and caption with the
name. A concept with a longer name stays: "tropical fish" stays if "fish" is held out.

Making the drawings needs the network once (`corpus_packages.fetch`) and the rasteriser
``resvg_py==0.5.0``.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from tools.demo.corpus_drawn import COLOURS, Concept, plain_code
from tools.demo.corpus_packages import EMOJIBASE, FLUENT, NOTO, Package

HELD_OUT = 300
TEST_MAKERS = ("fluent", "noto")
FLAGS = 9
"""emojibase's group of the flags."""
SEED = 7
PIXELS = 224
"""Side in pixels of rasterised vector drawings."""


def _icons(name: str, version: str, license_id: str, authors: str, contents: str) -> Package:
    return Package("npm", f"@iconify-json/{name}", version, license_id, authors, contents)


TWEMOJI = _icons("twemoji", "1.2.5", "CC-BY-4.0", "Twitter, Inc and contributors", "emoji")
FLAT = _icons("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation", "emoji")
MOZILLA = _icons("fxemoji", "1.2.2", "Apache-2.0", "Mozilla", "emoji")
EMOJIONE = _icons("emojione", "1.2.3", "CC-BY-4.0", "EmojiTwo contributors", "emoji")
ICON_SETS = (
    _icons("game-icons", "1.2.4", "CC-BY-3.0", "the authors of game-icons.net", "icons"),
    _icons("icon-park", "1.2.4", "Apache-2.0", "ByteDance", "icons"),
    _icons("fluent-color", "1.2.21", "MIT", "Microsoft Corporation", "icons"),
    _icons("flat-color-icons", "1.2.3", "MIT", "Icons8", "icons"),
    _icons("streamline-ultimate-color", "1.2.2", "CC-BY-4.0", "Streamline", "icons"),
)
_CLIP_ART = ("1:0.18+dfsg-19", "LicenseRef-public-domain", "contributors to openclipart.org")
CLIP_ART = Package("debian", "openclipart-png", *_CLIP_ART, "clip art")
CLIP_ART_TITLES = Package("debian", "openclipart-svg", *_CLIP_ART, "titles of the clip art")
FIGURE_PACKAGES = (
    *(FLUENT, NOTO, EMOJIBASE, TWEMOJI, FLAT, MOZILLA, EMOJIONE),
    *(*ICON_SETS, CLIP_ART, CLIP_ART_TITLES),
)

_ARTICLE = re.compile(r"^(?:an?|the) ")
_VARIANT = re.compile(
    r" (?:one|two|three|four|five|six|\d+|start|end|alt|off|on|outline|\w|filled)$"
)
_INTERFACE = (
    "abstract align app arrow arrows border checkbox chevron click close column cursor direction "
    "disabled distribute down edit expand file filter folder format insert layer layout left list "
    "menu page preview right row scroll select setting settings sort sorting switch table text "
    "time timeline ui up upload view vertical horizontal zoom api code data database server "
    "wireless optimization add delete check remove"
)
"""Words in icon names that denote buttons of programs, not visible things."""
_DULL_CLIP_ART = (
    "computer/icons shapes/stars signs_and_symbols/flags signs_and_symbols/map_symbols "
    "transportation/aiga-symbols special/gradients shapes/jigsaw shapes/arrows computer/buttons "
    "signs_and_symbols/led shapes/flowchart shapes/callouts signs_and_symbols/clocks "
    "people/smilies special/examples unsorted/duplicates recreation/games"
)
"""Folders whose titles name a collection or a country instead of the content."""

_LARGEST_FILE = 300_000
"""Largest clip art to read, in bytes: some are posters of hundreds of megapixels."""


@dataclass(frozen=True)
class Figure:
    """One drawing with its name."""

    maker: str
    name: str  # plain words: "red apple"
    phrase: str  # as a caption calls it: "a red apple"
    tags: tuple[str, ...]
    path: Path | None = None  # of a picture
    svg: str = ""  # or the drawing itself
    code: str = ""  # emoji only
    tinted: bool = False  # drawn in one colour, which may be chosen
    group: int = -1  # emojibase's number of the emoji's kind
    rounds: int = 1  # how many training pictures on varied grounds show it alone
    file: str = ""  # where it lies in its maker's package, with the package's name

    @property
    def origin(self) -> str:
        """The source of evidence: two pictures of one drawing count as one."""
        return self.file or f"{self.maker}/{self.code or self.name}"

    def draw(self, tint: str | None = None) -> Image.Image:
        """The drawing (RGBA), curves rasterised to `PIXELS`; ``tint`` names a colour of it."""
        if self.path is not None:
            with Image.open(self.path) as file:
                return file.convert("RGBA")
        import resvg_py

        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[tint or "black"])
        svg = self.svg.replace("currentColor", colour)
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg, width=PIXELS, height=PIXELS, skip_system_fonts=True
        )
        return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")


def plain_name(text: str) -> str:
    """Lower case words without article, punctuation and the separators of file names."""
    words = re.sub(r"[^a-z0-9']+", " ", text.lower().replace("’", "'"))
    return _ARTICLE.sub("", words.strip()).strip()


def with_article(name: str) -> str:
    """ "red apple" -> "a red apple"; plurals stay as they are."""
    if name.startswith("flag "):
        return f"the flag of {name.removeprefix('flag ')}"
    if name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return name
    vowel = name[0] in "aeiou" and not re.match(r"u(?:ni|s|k|fo|r[ae])", name)
    return f"{'an' if vowel else 'a'} {name}"


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _stems(text: str) -> str:
    return f" {' '.join(_stem(word) for word in plain_name(text).split())} "


def held_out(figures: Iterable[Figure]) -> list[Figure]:
    """The figures no training picture or text may show: `HELD_OUT` concepts drawn at random, each
    by both of `TEST_MAKERS`, in order of code and maker."""
    drawn = {maker: dict[str, Figure]() for maker in TEST_MAKERS}
    for figure in figures:
        if figure.maker in drawn and figure.group != FLAGS:
            drawn[figure.maker][figure.code] = figure
    first, second = (drawn[maker] for maker in TEST_MAKERS)
    codes = sorted(set(first) & set(second))
    chosen = sorted(random.Random(SEED).sample(codes, HELD_OUT))
    return [by_code[code] for code in chosen for by_code in (first, second)]


class Taboo:
    """Names and code points that would reveal a held-out figure."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        figures = list(figures)
        self._codes = {figure.code for figure in figures if figure.code}
        self._names = {_stems(text) for f in figures for text in (f.name, f.phrase)}
        names = sorted(map(re.escape, self._names), key=len, reverse=True)
        self._said = re.compile("|".join(names))

    def shows(self, figure: Figure) -> bool:
        """Whether a figure shows a held-out concept, by code point or by name."""
        same = {_stems(figure.name), _stems(figure.phrase)} & self._names
        return figure.code in self._codes or bool(same)

    def says(self, text: str) -> bool:
        """Whether ``text`` contains the name of a held-out concept, singular or plural."""
        return self._said.search(_stems(text)) is not None

    def allowed(self, figures: Iterable[Figure]) -> list[Figure]:
        """The figures that training may use, without forbidden tags."""
        return [
            replace(figure, tags=tuple(tag for tag in figure.tags if not self.says(tag)))
            for figure in figures
            if not self.shows(figure)
        ]


@dataclass(frozen=True)
class Emojibase:
    """Names and tags of the emoji, by code."""

    root: Path

    @cached_property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Every emoji except skin tones and letters of flags."""
        data = json.loads((self.root / "package/en/data.json").read_text("utf-8"))
        return {plain_code(e["hexcode"]): e for e in data if e.get("group") not in (None, 2)}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Name of each emoji."""
        return {code: entry["label"] for code, entry in self.entries.items()}


def read_figures(
    roots: Mapping[str, Path], concepts: list[Concept], emojibase: Emojibase
) -> list[Figure]:
    """Every drawing of every maker, held-out ones included, in a fixed order."""
    phrases = {plain_code(concept.code): concept.phrase for concept in concepts}
    emoji = [*_emoji_files(roots), *_emoji_curves(roots, emojibase)]
    figures = [
        Figure(
            maker=maker,
            name=plain_name(emojibase.labels[code]),
            phrase=phrases.get(code) or with_article(plain_name(emojibase.labels[code])),
            tags=tuple(emojibase.entries[code].get("tags", ())),
            path=path,
            svg=svg,
            code=code,
            group=emojibase.entries[code]["group"],
            rounds=_rounds(emojibase.entries[code], maker),
            file=_file_in_package(roots, maker, path),
        )
        for maker, code, path, svg in emoji
        if code in emojibase.entries
    ]
    return [*figures, *_icon_figures(roots), *_clip_art(roots)]


def _file_in_package(roots: Mapping[str, Path], maker: str, path: Path | None) -> str:
    """The source as the corpus names it; empty for a drawing without a file."""
    if path is None:
        return ""
    package = {"fluent": FLUENT, "noto": NOTO}[maker].name
    return f"{package}/{path.relative_to(roots[package] / 'package').as_posix()}"


def _rounds(entry: dict[str, Any], maker: str) -> int:
    """Things are shown twice; flags, and the variants of people by gender, by fewer makers."""
    flag = entry["group"] == FLAGS
    if flag or "gender" in entry:
        return int(maker in (("fluent",) if flag else ("fluent", "noto", "twemoji")))
    return 2 if entry["group"] in range(3, 8) else 1


def _emoji_files(roots: Mapping[str, Path]) -> Iterator[tuple[str, str, Path | None, str]]:
    fluent = roots[FLUENT.name] / "package/assets"
    noto = roots[NOTO.name] / "package/img/google/64"
    for maker, folder, suffix in (("fluent", fluent, ".webp"), ("noto", noto, ".png")):
        for path in sorted(folder.glob(f"*{suffix}")):
            yield maker, plain_code(path.stem), path, ""


def _emoji_curves(
    roots: Mapping[str, Path], emojibase: Emojibase
) -> Iterator[tuple[str, str, Path | None, str]]:
    by_name = {plain_name(label): code for code, label in emojibase.labels.items()}
    joined = {name.replace(" ", ""): code for name, code in by_name.items()}
    makers = (
        ("twemoji", TWEMOJI, by_name),
        ("flat", FLAT, by_name),
        ("mozilla", MOZILLA, joined),
        ("emojione", EMOJIONE, by_name),
    )
    for maker, package, codes in makers:
        for name, svg in _svgs(roots[package.name]):
            if code := codes.get(plain_name(name)):
                yield maker, code, None, svg


def _svgs(root: Path) -> Iterator[tuple[str, str]]:
    """(name, drawing) of each icon of an icon set."""
    icons = json.loads((root / "package/icons.json").read_text("utf-8"))
    for name, icon in icons["icons"].items():
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        yield name, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def _icon_figures(roots: Mapping[str, Path]) -> Iterator[Figure]:
    for package in ICON_SETS:
        maker, seen = package.name.split("/")[1], set[str]()
        for raw, svg in _svgs(roots[package.name]):
            name = _VARIANT.sub("", plain_name(raw))
            if (
                name in seen
                or len(name) < 3
                or not set(_INTERFACE.split()).isdisjoint(name.split())
            ):
                continue
            seen.add(name)
            tinted = "currentColor" in svg
            yield Figure(maker, name, with_article(name), (), svg=svg, tinted=tinted)


def _clip_art(roots: Mapping[str, Path]) -> Iterator[Figure]:
    pictures = roots[CLIP_ART.name] / "usr/share/openclipart/png"
    titles = roots[CLIP_ART_TITLES.name] / "usr/share/openclipart/svg"
    counts = dict[str, int]()
    for path in sorted(pictures.rglob("*.png")):
        inside = path.relative_to(pictures)
        folder = "/".join(inside.parts[:2])
        if (
            path.is_symlink()
            or folder in _DULL_CLIP_ART.split()
            or path.stat().st_size > _LARGEST_FILE
        ):
            continue
        source = titles / inside.with_suffix(".svg")
        if not source.is_file():
            continue
        title, tags = _title(source.read_text("utf-8", errors="replace"))
        counts[title] = counts.get(title, 0) + 1
        if title and counts[title] <= 2:
            yield Figure("clip art", title, with_article(title), tags, path=path)


def _title(svg: str) -> tuple[str, tuple[str, ...]]:
    """(title, keywords) of a clip art's metadata; an empty title where it is none in English."""
    found = re.search(r"<dc:title>([^<]*)</dc:title>", svg)
    raw = re.split(r" - | by |,|\(", found.group(1))[0] if found else ""
    title = re.sub(r" ?\d+$", "", plain_name(raw))
    foreign = re.compile(
        r"clipart|collection|gramastar|theme|iconset|aiga|symbol signs|architetto|\b(?:di|da|con|"
        r"del|della|il|un|una|per|su|e|la|le)\b|unsorted|various|untitled|mpcad|blueman"
    )
    if not 3 <= len(title) <= 40 or foreign.search(title):
        return "", ()
    tags = (plain_name(tag) for tag in re.findall(r"<rdf:li>([^<]*)</rdf:li>", svg))
    return title, tuple(tag for tag in tags if len(tag) > 2)
