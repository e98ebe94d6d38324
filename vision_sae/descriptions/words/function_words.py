"""English words that say nothing about a picture."""

from __future__ import annotations

FUNCTION_WORDS = frozenset((
    "a", "an", "and", "are", "as", "at", "behind", "between", "by", "each", "for", "from", "has",
    "have", "her", "his", "in", "into", "is", "it", "its", "near", "next", "of", "off", "on",
    "onto", "or", "other", "over", "that", "the", "their", "there", "this", "to", "under", "up",
    "very", "was", "were", "which", "while", "with", "without",
))  # fmt: skip
