"""Vocabularies: from a file, from captions, and as vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worlds.contrastive import PlantedClip
from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.words.attributes import ATTRIBUTES, PARTS
from vision_sae.descriptions.words.vocabulary import Vocabulary, embed_vocabulary
from vision_sae.errors import InvalidInputError, NotFoundError


def images(*captions: str, tags: tuple[str, ...] = (), sources: str = "") -> list[ImageRecord]:
    return [
        ImageRecord(str(i), 8, 8, caption, tags, sources[i : i + 1])
        for i, caption in enumerate(captions)
    ]


def own_words(vocabulary: Vocabulary) -> set[str]:
    return set(vocabulary.words) - set(ATTRIBUTES) - set(PARTS)


def test_file_gives_one_word_or_phrase_a_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# animals\nGolden Retriever\n\n cat \ncat\nred\n")
    vocabulary = Vocabulary.read(path)
    assert vocabulary.words[:3] == ("Golden Retriever", "cat", "red")
    assert len(set(vocabulary.words)) == len(vocabulary.words)


def test_every_vocabulary_has_attributes_and_parts(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(["cat"])
    assert {"red", "striped", "wooden", "round", "eye"} <= set(vocabulary.words)


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"\xff\xfe\x00"])
def test_file_without_words_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as refusal:
        Vocabulary.read(path)
    assert refusal.value.field == "vocabulary"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"none\.txt"):
        Vocabulary.read(tmp_path / "none.txt")


def test_captions_give_words_without_function_words_and_numbers() -> None:
    captions = ["A cat on the mat, 5 o'clock"] * 3
    found = own_words(Vocabulary.of_captions(images(*captions), nouns=False))
    assert {word for word in found if " " not in word} == {"cat", "mat", "o'clock"}


def test_tags_speak_for_pictures_without_a_caption() -> None:
    said, unsaid = ["a cat"] * 3, [""] * 3
    tags = ("T-shirt", "7")
    assert own_words(Vocabulary.of_captions(images(*said, tags=tags), nouns=False)) == {"cat"}
    assert own_words(Vocabulary.of_captions(images(*unsaid, tags=tags), nouns=False)) == {"t-shirt"}


def test_phrases_need_three_independent_pictures_and_no_word_between() -> None:
    captions = ["a fire truck and a red fire truck"] * 3
    found = own_words(Vocabulary.of_captions(images(*captions), nouns=False))
    assert found == {"fire", "truck", "fire truck", "red fire", "red fire truck"}
    crops = images(*captions, sources="aab")  # two of them are crops of one photograph
    assert own_words(Vocabulary.of_captions(crops, nouns=False)) == {"fire", "truck"}


def test_words_need_two_independent_pictures() -> None:
    captions = ["a fire truck"] * 2
    assert own_words(Vocabulary.of_captions(images(*captions), nouns=False)) == {"fire", "truck"}
    crops = images(*captions, sources="aa")
    assert own_words(Vocabulary.of_captions(crops, nouns=False)) == set()


def test_of_the_packages_nouns_those_that_captions_say_are_added_where_they_say_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nouns = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
    monkeypatch.setattr("vision_sae.descriptions.words.vocabulary._visual_nouns", lambda: nouns)
    assert own_words(Vocabulary.of_captions(images("a cat", "a dog"))) == {"cat", "dog"}
    assert own_words(Vocabulary.of_captions(images("a cat"))) == set(nouns)


def test_phrases_do_not_cross_commas() -> None:
    found = Vocabulary.of_captions(images(*["fire, truck"] * 3), nouns=False)
    assert own_words(found) == {"fire", "truck"}


def test_packages_nouns_are_added() -> None:
    found = own_words(Vocabulary.of_captions(images(*["xyzzy"] * 3)))
    assert {"xyzzy", "dog", "airplane"} <= found
    assert not {"jejunum", "gambling house"} & found
    assert len(found) > 1300
    assert not [word for word in found if "#" in word or not word.strip()]


def test_identity_is_of_the_words_in_their_order() -> None:
    a, b = Vocabulary.of(["cat", "dog"]), Vocabulary.of(["cat", "dog"])
    assert a.identity == b.identity
    assert Vocabulary.of(["dog", "cat"]).identity != a.identity


def test_attributes_are_not_things() -> None:
    vocabulary = Vocabulary.of(["cat"])
    thing = dict(zip(vocabulary.words, vocabulary.is_thing.tolist(), strict=True))
    assert (thing["cat"], thing["eye"], thing["red"]) == (True, True, False)


def test_words_are_embedded_once_for_a_model_and_a_vocabulary(tmp_path: Path) -> None:
    model, vocabulary = PlantedClip(["cat"]), Vocabulary.of(["cat", "dog"])
    words = embed_vocabulary(model, vocabulary, tmp_path / "texts")
    assert torch.equal(words, model.embed_texts(vocabulary.words))
    before = model.texts_embedded
    assert torch.equal(embed_vocabulary(model, vocabulary, tmp_path / "texts"), words)
    assert model.texts_embedded == before
    embed_vocabulary(PlantedClip(["dog"]), vocabulary, tmp_path / "texts")
    embed_vocabulary(model, Vocabulary.of(["egg"]), tmp_path / "texts")
    assert len(list((tmp_path / "texts").iterdir())) == 3


def test_words_are_embedded_in_batches_that_stay_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = PlantedClip(["cat"]), []
    embed = model.embed_texts

    def counted(texts: tuple[str, ...]) -> torch.Tensor:
        sizes.append(len(texts))
        return embed(texts)

    monkeypatch.setattr(model, "embed_texts", counted)
    vocabulary = Vocabulary(tuple(f"w{i}" for i in range(600)))
    assert embed_vocabulary(model, vocabulary, tmp_path).shape == (600, 256)
    assert sizes == [256, 256, 88]
