"""Whether a label contains a word or phrase: whole words, so that "red" does not match "colored".

Case and English plurals make no difference: "Dogs" matches "a dog". A query of several words is a
phrase: the words must follow each other in the label.
"""

from __future__ import annotations

import re
from functools import lru_cache

from vision_sae.errors import InvalidInputError

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"['’]s\b|['’](?=\W|$)")
_IRREGULAR = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "teeth": "tooth",
    "women": "woman",
}
_SINGULAR = frozenset({"always", "gas", "lens", "news", "series", "species", "yes"})
"""Singular words that end like a plural."""
_ENDINGS = (
    (re.compile(r"(?<=\w{2})ies$"), ("y", "ie")),
    (re.compile(r"(?<=\w)ves$"), ("f", "fe", "ve")),
    (re.compile(r"(?<=s|x|z|o)es$|(?<=ch|sh)es$"), ("", "e")),
    (re.compile(r"(?<=\w\w)(?<![sui])s$|(?<=ski)s$"), ("",)),
)


@lru_cache(maxsize=65536)
def _singulars(word: str) -> frozenset[str]:
    """The word and every possible singular of the word: spelling alone can leave several."""
    if word in _IRREGULAR:
        return frozenset({word, _IRREGULAR[word]})
    if word not in _SINGULAR:
        for ending, singular in _ENDINGS:
            if ending.search(word):
                return frozenset({word, *(ending.sub(end, word) for end in singular)})
    return frozenset({word})


def _words(text: str) -> list[frozenset[str]]:
    return [_singulars(word) for word in _WORD.findall(_POSSESSIVE.sub("", text).casefold())]


def matches(query: str, text: str) -> bool:
    """Whether ``text`` contains the word or phrase ``query``.

    Raises `InvalidInputError` for a query without a letter or digit.
    """
    wanted, words = _words(query), _words(text)
    if not wanted:
        raise InvalidInputError(
            f"the query {query!r} holds no word; give a word or a phrase", field="query"
        )
    return any(
        all(not a.isdisjoint(b) for a, b in zip(wanted, words[start:], strict=False))
        for start in range(len(words) - len(wanted) + 1)
    )
