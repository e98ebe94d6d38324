"""Make the table of nouns for parsing captions, from the files of WordNet 3.0.

    python -m tools.demo.make_nouns --wordnet FOLDER

``FOLDER`` holds ``index.noun``, ``data.noun``, ``noun.exc`` and ``cntlist.rev``, as the Debian
package ``wordnet-base`` installs them in ``/usr/share/wordnet``. The output ``nouns.tsv.gz``
lists kinds of things, each after its hypernyms, with the nouns that name them; see
`vision_sae.descriptions.predicates.wordnet` for its layout. Senses that name a single person or
place are left out. If a noun has visible senses, its invisible ones are left out too. The frequency
of a name comes from ``wordfreq``.
"""

from __future__ import annotations

import argparse
import gzip
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from wordfreq import zipf_frequency

from vision_sae.descriptions.predicates.wordnet import TABLE

_SENSES = 2
"""Number of senses of a noun that count: the most frequent ones, as in word-sense baselines."""
_RARE = 4
"""A second sense counts if it is at least this share as frequent as the first sense."""
_EVERYDAY = 3.0
"""Zipf frequency of an everyday word: once in a million."""
_SEEN = ("physical_entity", "shape", "symbol", "sign", "body_part")
"""Kinds whose members are all visible in pictures."""


class Synset(NamedTuple):
    """One sense: its names, and the byte offsets of its hypernyms."""

    names: list[str]
    hypernyms: list[int]
    single: bool
    """Whether the synset names a single person, place or thing."""


class WordNet:
    """The nouns of a folder of WordNet's own files (wndb(5WN))."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def synsets(self) -> dict[int, Synset]:
        """{byte offset: synset}"""
        found = {}
        for line in self._lines("data.noun"):
            fields = line.partition(" | ")[0].split()
            count = int(fields[3], 16)
            names = [fields[4 + 2 * i] for i in range(count)]
            pointers, at = int(fields[4 + 2 * count]), 5 + 2 * count
            links = [fields[at + 4 * i : at + 4 * i + 2] for i in range(pointers)]
            found[int(fields[0])] = Synset(
                names,
                [int(offset) for symbol, offset in links if symbol in ("@", "@i")],
                any(symbol == "@i" for symbol, _ in links),
            )
        return found

    @cached_property
    def senses(self) -> dict[str, list[int]]:
        """{noun: byte offsets of its senses, the most frequent first}"""
        found = {}
        for line in self._lines("index.noun"):
            fields = line.split()
            found[fields[0]] = [int(offset) for offset in fields[-int(fields[2]) :]]
        return found

    @cached_property
    def counts(self) -> dict[tuple[str, int], int]:
        """{(noun, number of its sense from 1): frequency in tagged texts}"""
        found: dict[tuple[str, int], int] = defaultdict(int)
        for line in self._lines("cntlist.rev"):
            key, sense, count = line.split()
            lemma, _, rest = key.partition("%")
            if rest.startswith("1:"):
                found[lemma, int(sense)] += int(count)
        return found

    @cached_property
    def exceptions(self) -> dict[str, str]:
        """{irregular plural: singular}"""
        return dict(line.split()[:2] for line in self._lines("noun.exc"))  # type: ignore[misc]

    def _lines(self, name: str) -> list[str]:
        text = (self._folder / name).read_text("latin-1")
        return [line for line in text.splitlines() if line and not line.startswith("  ")]

    def ancestors(self, offset: int) -> set[int]:
        """A synset and all its hypernyms."""
        found, todo = set[int](), [offset]
        while todo:
            at = todo.pop()
            if at not in found:
                found.add(at)
                todo += self.synsets[at].hypernyms
        return found

    def usual(self, noun: str, seen: frozenset[int]) -> list[int]:
        """The senses of a noun that count: no proper names, and no people named after a thing
        ("star")."""
        numbered = [
            (offset, self.counts.get((noun, number), 0))
            for number, offset in enumerate(self.senses[noun], start=1)
            if not self.synsets[offset].single and noun in self.synsets[offset].names
        ]
        visible = [s for s in numbered if self.ancestors(s[0]) & seen]
        first, *others = (visible or numbered or [(-1, 0)])[:_SENSES]
        person = self.senses["person"][0]
        thing = person not in self.ancestors(first[0]) if first[0] >= 0 else False
        return [
            offset
            for offset, count in (first, *others)
            if offset >= 0
            and count * _RARE >= first[1]
            and not (thing and person in self.ancestors(offset))
        ]


def _zipf(name: str) -> float:
    return zipf_frequency(name.replace("_", " "), "en")


def _usual_name(names: list[str]) -> str:
    """The first name that is an everyday word, or else the most frequent name."""
    words = [name for name in names if name.replace("_", "").isalpha()] or names
    return next((n for n in words if _zipf(n) >= _EVERYDAY), max(words, key=_zipf))


def table(wordnet: WordNet) -> str:
    """The text of the table."""
    seen = frozenset(sense for name in _SEEN for sense in wordnet.senses[name][:_SENSES])
    nouns = {noun: senses for noun in wordnet.senses if (senses := wordnet.usual(noun, seen))}
    kept = {at for senses in nouns.values() for sense in senses for at in wordnet.ancestors(sense)}
    depth: dict[int, int] = {}

    def height(offset: int) -> int:
        if offset not in depth:
            above = wordnet.synsets[offset].hypernyms
            depth[offset] = 1 + max((height(h) for h in above), default=-1)
        return depth[offset]

    order = sorted(kept, key=lambda offset: (height(offset), offset))
    row = {offset: number for number, offset in enumerate(order)}
    lines = []
    for offset in order:
        synset = wordnet.synsets[offset]
        name = _usual_name(synset.names)
        above = ",".join(str(row[h]) for h in synset.hypernyms)
        lines.append(f"{name.replace('_', ' ')}\t{round(10 * _zipf(name))}\t{above}")
    lines.append("")
    lines += [
        f"{noun.replace('_', ' ')}\t{','.join(str(row[s]) for s in senses)}"
        for noun, senses in sorted(nouns.items())
    ]
    lines.append("")
    lines += [
        f"{plural.replace('_', ' ')}\t{single.replace('_', ' ')}"
        for plural, single in sorted(wordnet.exceptions.items())
        if single in nouns
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of WordNet's files")
    text = table(WordNet(parser.parse_args().wordnet))
    TABLE.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    main()
