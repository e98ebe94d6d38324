"""The words a label may be made of: a list from a file, or what the data set's captions say.

Attributes and parts (`vision_sae.descriptions.describers.attributes`) belong to every vocabulary.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.describers.attributes import ATTRIBUTES, PARTS
from vision_sae.descriptions.describers.function_words import FUNCTION_WORDS
from vision_sae.dictionaries.weights import read_tensor_file
from vision_sae.errors import InvalidInputError
from vision_sae.files import kept, sha256_json
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.texts import lines_of, read_text

VISUAL_NOUNS = "visual_nouns.txt"
"""The list that comes with the package; its head says where it is from."""

_CLAUSE = re.compile(r"[^,.;:!?()\"\n]+")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\S+")
_LONGEST = 3
"""The most words in a phrase taken from captions."""
_FEWEST_SOURCES = {1: 2, 2: 3, 3: 3}
"""Independent pictures that must be said to show something before it can be what units have in
common, by its number of words: some words stand together by chance."""
_TELLING = 0.25
"""Captions that name this share of the package's things tell what a data set shows: the others are
not there to be seen, and a contrastive model can only be wrong about them. With all of them, half
of what the demo's labels said was said of no picture."""
_SHORTEST = 2
"""The fewest letters of a word."""
_BATCH = 256
"""Texts embedded at a time: always the same ones together, so that the vectors have the same
bits."""


def _runs(text: str) -> Iterator[list[str]]:
    """Content words that follow each other with nothing between them, in lower case."""
    for clause in _CLAUSE.findall(text.lower()):
        run: list[str] = []
        for word in [*_WORD.findall(clause), ""]:
            if word[:1].isalpha() and len(word) >= _SHORTEST and word not in FUNCTION_WORDS:
                run.append(word)
            elif run:
                yield run
                run = []


def _phrases(text: str) -> Iterator[str]:
    """The content words of a text, and each two or three of them in a row."""
    for run in _runs(text):
        for length in range(1, _LONGEST + 1):
            for start in range(len(run) - length + 1):
                yield " ".join(run[start : start + length])


def _distinct(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


@dataclass(frozen=True)
class Vocabulary:
    """Distinct words and phrases, in a fixed order."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, things: Iterable[str]) -> Self:
        """These words, and the attributes and parts that every vocabulary has."""
        return cls(_distinct((*things, *ATTRIBUTES, *PARTS)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The lines of a text file; blank ones and those that begin with ``#`` do not count.

        Raises `InvalidInputError` for a file that cannot be read or holds no word.
        """
        things = _words(read_text(path, "vocabulary"))
        if not things:
            raise InvalidInputError(
                f"the vocabulary {path} is empty; write one word or phrase a line",
                field="vocabulary",
            )
        return cls.of(things)

    @classmethod
    def of_captions(cls, images: Iterable[ImageRecord], *, nouns: bool = True) -> Self:
        """What captions say of several independent pictures: words, and phrases of two or three.

        Tags speak for pictures without a caption: beside one they say what else comes to mind
        ("lol" of a smiling face). With ``nouns`` the package's list of things that can be seen is
        added: those that are said of one picture at least, or where captions tell of few, all.
        """
        sources: dict[str, set[str]] = defaultdict(set)
        for image in images:
            for text in [image.caption] if image.caption else image.tags:
                for phrase in _phrases(text):
                    sources[phrase].add(image.origin)
        found = sorted(
            phrase
            for phrase, owners in sources.items()
            if len(owners) >= _FEWEST_SOURCES[len(phrase.split())]
        )
        if not nouns:
            return cls.of(found)
        things = _visual_nouns()
        said = [thing for thing in things if thing in sources]
        telling = len(said) >= _TELLING * len(things)
        return cls.of((*found, *(said if telling else things)))

    @cached_property
    def identity(self) -> str:
        """Hex SHA-256 of the words in their order."""
        return sha256_json(self.words)

    @cached_property
    def is_thing(self) -> Tensor:
        """Which words (W) can be given an attribute: all but the attributes themselves."""
        adjectives = frozenset(ATTRIBUTES)
        return torch.tensor([word not in adjectives for word in self.words])


def _words(text: str) -> list[str]:
    words = (line.text.strip() for line in lines_of(text))
    return [word for word in words if word and not word.startswith("#")]


def _visual_nouns() -> list[str]:
    return _words(files(__package__).joinpath(VISUAL_NOUNS).read_text(encoding="utf-8"))


def embed_vocabulary(model: ContrastiveModel, vocabulary: Vocabulary, directory: Path) -> Tensor:
    """The words as unit vectors (W, E) float32, kept in ``directory`` for the next time.

    A file there is of one model and one vocabulary. Workers may ask for it at the same time.
    """
    identity = sha256_json([model.identity(), vocabulary.identity])

    def write(path: Path) -> None:
        vectors = torch.empty(len(vocabulary.words), model.embedding_dim)
        for start in range(0, len(vectors), _BATCH):
            batch = vocabulary.words[start : start + _BATCH]
            vectors[start : start + _BATCH] = model.embed_texts(batch).cpu()
        save_file({"vectors": vectors}, path)

    found = kept(directory / f"words-{identity}.safetensors", read_tensor_file, write)
    return found["vectors"]
