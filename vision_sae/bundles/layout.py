"""The names of the files in a bundle, and the version of its format. FORMAT.md is normative."""

from __future__ import annotations

from vision_sae.artifacts import BUNDLE

FORMAT, VERSION = BUNDLE.format, BUNDLE.version

DICTIONARY = "dictionary"
IMAGES = "images.jsonl"
EMBEDDINGS = "embeddings.npy"
SITE_MEAN = "site_mean.npy"
CODES, CODES_COLUMN = "codes", "indices"
POSTINGS, POSTINGS_COLUMN = "postings", "patches"
STATISTICS = "statistics.safetensors"
EXEMPLARS = "exemplars.safetensors"
RELATIONS = "relations.safetensors"
PATCH_INDEX = "patches"
TEXT_ALIGNED_INDEX = "text_aligned"
DESCRIPTIONS = "descriptions.jsonl"
DELETED = "deleted.npy"
MATCHES = "matches"
