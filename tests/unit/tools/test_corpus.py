"""The demo corpus that ships in the repository: whole, small, captioned, and honestly split."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import tools.demo
from vision_sae.demo import CORPUS

CONCEPTS = Path(tools.demo.__file__).parent / "concepts.jsonl"
BUDGET = 9_000_000  # bytes
SPLITS = ("train", "heldout")
KEYS = {"file", "caption", "tags", "source", "license"}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def entries(split: str) -> list[dict]:
    return read(CORPUS / split / "captions.jsonl")


def sources(split: str) -> set[str]:
    """Originals of a split, one spelling per emoji: makers differ in the mark FE0F."""
    return {
        source.replace("-fe0f", "")
        for entry in entries(split)
        for source in entry["source"].split(" + ")
    }


def emoji_codes(split: str) -> set[str]:
    npm = ("@lobehub/", "emoji-datasource-google/")
    return {Path(source).stem for source in sources(split) if source.startswith(npm)}


def test_the_corpus_keeps_its_size_budget() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) <= BUDGET


@pytest.mark.parametrize("split", SPLITS)
def test_every_picture_has_one_line_and_every_line_a_picture(split: str) -> None:
    listed = [entry["file"] for entry in entries(split)]
    present = [str(file.relative_to(CORPUS / split)) for file in (CORPUS / split).rglob("*.webp")]
    assert listed == sorted(set(listed))
    assert listed == sorted(present)


@pytest.mark.parametrize("split", SPLITS)
def test_every_picture_opens_and_is_large_enough(split: str) -> None:
    for entry in entries(split):
        with Image.open(CORPUS / split / entry["file"]) as picture:
            picture.load()
            assert picture.mode == "RGB", entry["file"]
            assert min(picture.size) >= 200, entry["file"]
            assert max(picture.size) <= 400, entry["file"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_line_has_a_caption_a_source_and_a_licence_whose_text_ships(split: str) -> None:
    for entry in entries(split):
        assert set(entry) == KEYS
        assert re.fullmatch(r"\S.{3,160}\S", entry["caption"]), entry
        assert entry["source"], entry
        text = CORPUS / "licenses" / f"{entry['license']}.txt"
        assert entry["license"] == "LicenseRef-public-domain" or text.is_file(), entry


def test_both_splits_have_both_kinds_of_picture() -> None:
    counts = {
        (split, kind): len(list((CORPUS / split / kind).glob("*.webp")))
        for split in SPLITS
        for kind in ("drawn", "photographs")
    }
    assert counts["train", "drawn"] >= 1000
    assert counts["train", "photographs"] >= 450
    assert counts["heldout", "drawn"] >= 100
    assert counts["heldout", "photographs"] >= 60


def test_no_original_is_in_both_splits() -> None:
    assert sources("train").isdisjoint(sources("heldout"))


def test_no_emoji_is_in_both_splits_whoever_drew_it() -> None:
    assert emoji_codes("heldout")
    assert emoji_codes("train").isdisjoint(emoji_codes("heldout"))


def test_no_training_caption_names_a_held_out_concept() -> None:
    phrases = [c["phrase"] for c in read(CONCEPTS) if c["split"] == "heldout"]
    named = re.compile(r"\b(" + "|".join(map(re.escape, phrases)) + r")\b")
    assert not [entry["caption"] for entry in entries("train") if named.search(entry["caption"])]


def test_the_licence_file_names_every_package() -> None:
    text = (CORPUS / "LICENSES.md").read_text("utf-8")
    for split in SPLITS:
        for source in sources(split):
            parts = source.split("/")
            package = "/".join(parts[:2]) if source.startswith("@") else parts[0]
            assert f"`{package}`" in text
