"""The words for labels: a list from a file, or words from the captions of the data set.

Attributes and parts (`vision_sae.descriptions.words.attributes`) belong to every vocabulary.
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
from jaxtyping import Bool, Float32
from safetensors.torch import save_file
from torch import Tensor

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.words.attributes import ATTRIBUTES, PARTS
from vision_sae.descriptions.words.function_words import FUNCTION_WORDS
from vision_sae.dictionaries.weights import read_tensor_file
from vision_sae.errors import InvalidInputError
from vision_sae.files import read_cached, sha256_json
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.texts import lines_of, read_text

VISUAL_NOUNS = "visual_nouns.txt"
"""The list of nouns in the package; the head of the file names its source."""

_CLAUSE = re.compile(r"[^,.;:!?()\"\n]+")
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*|\S+")
_LONGEST = 3
"""The most words in a phrase taken from captions."""
_FEWEST_SOURCES = {1: 2, 2: 3, 3: 3}
"""{number of words: fewest independent pictures whose captions contain a phrase}: some words stand
together by chance."""
_TELLING = 0.25
"""When captions name this share of the package's nouns, the other nouns are taken to be absent from
the data set, and a label with such a noun would be wrong. With all nouns in the vocabulary, half of
the words in the demo's labels were in no caption."""
_SHORTEST = 2
"""The fewest letters of a word."""
_BATCH = 256
"""Texts of one batch. The batches are the same in every call, so that the vectors have equal
bits."""


def _runs(text: str) -> Iterator[list[str]]:
    """Runs of adjacent content words, in lower case."""
    for clause in _CLAUSE.findall(text.lower()):
        run: list[str] = []
        for word in [*_WORD.findall(clause), ""]:
            if word[:1].isalpha() and len(word) >= _SHORTEST and word not in FUNCTION_WORDS:
                run.append(word)
            elif run:
                yield run
                run = []


def _phrases(text: str) -> Iterator[str]:
    """The content words of a text, and all sequences of two or three adjacent content words."""
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
        """A vocabulary of these words and of all attributes and parts."""
        return cls(_distinct((*things, *ATTRIBUTES, *PARTS)))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The lines of a text file; blank lines and lines that begin with ``#`` are ignored.

        Raises `InvalidInputError` for a file that cannot be read or contains no word.
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
        """Words, and phrases of two or three words, from captions of several independent pictures.

        Tags are used for pictures without a caption: beside a caption, tags contain associations
        ("lol" for a smiling face). With ``nouns``, nouns of the package's list are added: nouns in
        at least one caption, or all nouns when the captions contain few of them.
        """
        sources: dict[str, set[str]] = defaultdict(set)
        for image in images:
            for text in [image.caption] if image.caption else image.tags:
                for phrase in _phrases(text):
                    sources[phrase].add(image.origin)
        frequent = sorted(
            phrase
            for phrase, owners in sources.items()
            if len(owners) >= _FEWEST_SOURCES[len(phrase.split())]
        )
        if not nouns:
            return cls.of(frequent)
        things = _visual_nouns()
        captioned = [thing for thing in things if thing in sources]
        telling = len(captioned) >= _TELLING * len(things)
        return cls.of((*frequent, *(captioned if telling else things)))

    @cached_property
    def identity(self) -> str:
        """Hex SHA-256 of the words in their order."""
        return sha256_json(self.words)

    @cached_property
    def is_thing(self) -> Bool[Tensor, W]:
        """Whether a word can follow an attribute: all words but the attributes themselves."""
        adjectives = frozenset(ATTRIBUTES)
        return torch.tensor([word not in adjectives for word in self.words])


def _words(text: str) -> list[str]:
    words = (line.text.strip() for line in lines_of(text))
    return [word for word in words if word and not word.startswith("#")]


def _visual_nouns() -> list[str]:
    return _words(files(__package__).joinpath(VISUAL_NOUNS).read_text(encoding="utf-8"))


def embed_vocabulary(
    model: ContrastiveModel, vocabulary: Vocabulary, directory: Path
) -> Float32[Tensor, "W E"]:
    """The embeddings of the words, of length 1; cached in ``directory``.

    A cache file is of one model and one vocabulary. Several workers may call this at the same time.
    """
    identity = sha256_json([model.identity(), vocabulary.identity])

    def write(path: Path) -> None:
        vectors = torch.empty(len(vocabulary.words), model.embedding_dim)
        for start in range(0, len(vectors), _BATCH):
            batch = vocabulary.words[start : start + _BATCH]
            vectors[start : start + _BATCH] = model.embed_texts(batch).cpu()
        save_file({"vectors": vectors}, path)

    path = directory / f"words-{identity}.safetensors"
    return read_cached(path, read_tensor_file, write)["vectors"]
