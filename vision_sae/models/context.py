"""How much of a text a text encoder reads: it cuts a text silently at the length of its context.

Libraries that report the cut log the words of the text; `without_words_in_logs` stops them.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from typing import Any


def unread_by(tokenizer: Any, text: str, count: int) -> str:
    """The end of ``text`` from the first token on that a tokenizer of transformers leaves out when
    it keeps the first ``count``, special ones aside; "" where there are no more."""
    fast: bool = tokenizer.is_fast
    # Not verbose: the tokenizer would warn of a long text, and long texts are expected here.
    tokens = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=fast, truncation=False, verbose=False
    )
    ids = tokens["input_ids"]
    if len(ids) <= count:
        return ""
    if fast:
        return text[tokens["offset_mapping"][count][0] :].strip()
    return _behind(text, tokenizer.decode(ids[:count], skip_special_tokens=True))


def unread_by_pipeline(tokenizer: Any, text: str) -> str:
    """`unread_by` of a pipeline's tokenizer, which cuts at the length of its model's context."""
    own = tokenizer.num_special_tokens_to_add()
    return unread_by(tokenizer, text, tokenizer.model_max_length - own)


def unread_by_open_clip(tokenizer: Any, text: str) -> str:
    """The end of ``text`` that a tokenizer of open_clip leaves out; "" where it reads all."""
    cleaned, length = tokenizer.clean_fn(text), tokenizer.context_length
    if hasattr(tokenizer, "encode"):  # `SimpleTokenizer`, which puts a token at either end
        ids = tokenizer.encode(text)
        kept = tokenizer.decode(ids[: length - 2])
        unread = _behind(cleaned, kept) if len(ids) > length - 2 else ""
    else:
        theirs = tokenizer.tokenizer
        clips = tokenizer.tokenizer_mode == "clips"  # a token at either end and one for the class
        own = 3 if clips else theirs.num_special_tokens_to_add()
        unread = unread_by(theirs, cleaned, length - own)
    if not unread:
        return ""
    # Cleaning changes letters and spaces, so lengths differ: find the longest beginning of the text
    # that is, once cleaned, no longer than the part that was read.
    read = len(cleaned) - len(unread)
    ends = range(len(text) + 1)
    cut = bisect_right(ends, read, key=lambda end: len(tokenizer.clean_fn(text[:end]))) - 1
    return text[cut:].strip()


def _behind(text: str, decoded: str) -> str:
    """The end of ``text`` behind the part that was decoded; spaces of the two may differ."""
    count = sum(not letter.isspace() for letter in decoded)
    for position, letter in enumerate(text):
        if not count:
            return text[position:].strip()
        count -= not letter.isspace()
    return ""


def _no_words_of_texts(record: logging.LogRecord) -> bool:
    message = str(record.msg)
    return not message.startswith(("The following part of your input", "Token indices sequence"))


def without_words_in_logs(library: str) -> None:
    """Stop the logger named ``library``, for good, from telling which words of a text it cut.

    This is a filter and not a level: a level counts for all threads, and the first thread to finish
    would restore the level for the others.
    """
    logger = logging.getLogger(library)
    if _no_words_of_texts not in logger.filters:
        logger.addFilter(_no_words_of_texts)
