"""The recipe of the demo CLIP: what is held out stays out, and what the loss asks for."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tools.demo.clip_figures import (
    FLAGS,
    TEST_MAKERS,
    Figure,
    Taboo,
    held_out,
    plain_name,
    with_article,
)
from tools.demo.clip_grounds import SIDE, texture
from tools.demo.clip_pictures import on_white, paint_word, plan
from tools.demo.train_clip import STAGES, centre_pictures, centre_texts, loss, train
from vision_sae.models.embedded import clip as clip_weights
from vision_sae.models.word_pooling import WIDTH, WordsAndMeaningPooler, read


def figure(name: str, folder: Path | None = None, **options: Any) -> Figure:
    """A red bar that goes by ``name``."""
    path = None
    if folder is not None:
        path = folder / f"{name}.png"
        Image.new("RGBA", (20, 10), (255, 0, 0, 255)).save(path)
    given: dict[str, Any] = {
        "maker": "maker",
        "phrase": with_article(name),
        "tags": (),
        "rounds": 2,
    }
    return Figure(name=name, path=path, **given | options)


TABOO = Taboo([figure("pig", code="1f416"), figure("pair of socks", phrase="socks")])


@pytest.mark.parametrize(
    "text", ["a pig", "Pigs", "a wild pig on grass", "a sock", "pair of socks"]
)
def test_a_text_that_says_a_held_out_name_is_taboo(text: str) -> None:
    assert TABOO.says(text)


@pytest.mark.parametrize("text", ["a pigeon", "piggy bank", "a pair of shoes", ""])
def test_a_text_that_only_looks_like_it_is_not(text: str) -> None:
    assert not TABOO.says(text)


def test_what_is_held_out_is_known_by_code_and_by_name_in_any_style() -> None:
    assert TABOO.shows(figure("swine", code="1f416"))
    assert TABOO.shows(figure("pigs"))
    assert TABOO.shows(figure("warm feet", phrase="socks"))
    assert not TABOO.shows(figure("guinea pig"))


def test_three_hundred_concepts_that_both_makers_draw_are_held_out() -> None:
    def emoji(maker: str, number: int, group: int = 3) -> Figure:
        return figure(f"thing {number}", maker=maker, code=f"{number:05x}", group=group)

    flags = [emoji(maker, n, FLAGS) for maker in TEST_MAKERS for n in range(1000, 1100)]
    alone = [emoji(TEST_MAKERS[0], n) for n in range(2000, 2100)]
    shared = [emoji(maker, n) for maker in TEST_MAKERS for n in range(400)]
    chosen = held_out([*flags, *alone, *shared])
    assert len(chosen) == 600
    assert [f.maker for f in chosen[:4]] == [*TEST_MAKERS] * 2
    assert len({f.code for f in chosen}) == 300
    assert all(f in shared for f in chosen)
    assert chosen == held_out([*shared, *alone, *flags])


def test_no_training_picture_shows_or_names_what_is_held_out(tmp_path: Path) -> None:
    figures = [
        figure("dog", tmp_path, tags=("animal", "not a pig"), code="1f415"),
        figure("cat", tmp_path, code="1f408"),
        figure("swine", tmp_path, code="1f416"),
        figure("pig", tmp_path),
    ]
    pictures = plan(figures, TABOO, seed=0)
    texts = {text for picture in pictures for text in picture.captions}
    assert {"a dog", "a cat"} <= texts
    assert "animal" in texts
    assert [text for text in texts if "swine" in text or "pig" in plain_name(text).split()] == []


def test_pictures_are_painted_the_same_each_time(tmp_path: Path) -> None:
    figures = [figure("dog", tmp_path), figure("cat", tmp_path)]
    first, again = (plan(figures, TABOO, seed=3)[:20] for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert one.captions == other.captions
        painted = one.paint()
        assert (painted.size, painted.mode) == ((SIDE, SIDE), "RGB")
        np.testing.assert_array_equal(np.asarray(painted), np.asarray(other.paint()))


def test_a_held_out_figure_is_shown_in_the_middle_of_white(tmp_path: Path) -> None:
    pixels = np.asarray(on_white(figure("bar", tmp_path), size=0.5))
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert red.sum() == 112 * 56
    assert (pixels[~red] == 255).all()
    assert red[84:140, 56:168].all()


def test_a_painted_word_changes_a_picture_only_where_it_stands() -> None:
    plain = Image.new("RGB", (200, 200), (0, 0, 255))
    written = paint_word(plain, "cat", random.Random(0))
    changed = (np.asarray(written) != np.asarray(plain)).any(axis=2)
    assert 0.005 < changed.mean() < 0.3
    assert np.asarray(plain).reshape(-1, 3).tolist() == [[0, 0, 255]] * 40_000


@pytest.mark.parametrize("seed", range(12))
def test_a_texture_is_called_by_its_two_colours_and_has_both(seed: int) -> None:
    ground = texture("red", "blue", random.Random(seed))
    colours = {tuple(c) for c in np.asarray(ground.paint()).reshape(-1, 3).tolist()}
    assert {(206, 44, 44), (44, 98, 198)} <= colours
    assert "red" in ground.name
    assert "blue" in ground.name


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("red apple", "a red apple"),
        ("apple", "an apple"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("glasses", "glasses"),
        ("flag mexico", "the flag of mexico"),
    ],
)
def test_articles(name: str, phrase: str) -> None:
    assert with_article(name) == phrase


def test_loss_is_the_cross_entropy_both_ways() -> None:
    """Two pictures along the axes with their own texts, scale ln 3: softmax (3, 1) / 4."""
    axes, nothing = torch.eye(2), torch.zeros(0, 2)
    apart, none = torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 0, dtype=torch.bool)
    scale = torch.tensor(math.log(3))
    assert float(loss(axes, axes, nothing, apart, none, scale)) == pytest.approx(math.log(4 / 3))


def test_centring_takes_out_what_all_embeddings_share() -> None:
    module: Any = nn.Module()
    module.visual, module.text = nn.Module(), nn.Module()
    module.visual.trunk = nn.Module()
    module.visual.trunk.patch_pooling = nn.Module()
    module.visual.trunk.patch_pooling.proj = nn.Linear(2, 2)
    module.text.proj = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.visual.trunk.patch_pooling.proj.bias.copy_(torch.tensor([1.0, 2.0]))
        module.text.proj.weight.copy_(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    # The mean direction of the names is that of (1, 0), whatever their lengths.
    names = torch.tensor([[3.0, 4.0], [6.0, -8.0]])
    centre_pictures(module, torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    centre_texts(module, names)
    assert module.visual.trunk.patch_pooling.proj.bias.tolist() == [0, -1]
    assert module.text.proj.weight.tolist() == [[0, 0], [5, 6]]


def test_words_are_read_beside_what_they_mean_together() -> None:
    """Two texts of one and two tokens, the third token padding; worked out by hand."""
    embedded = torch.zeros(2, 3, WIDTH)
    embedded[0, 0, 0] = 5.0
    embedded[1, :2, 0], embedded[1, :2, 1] = torch.tensor([3.0, 3.0]), torch.tensor([0.0, 8.0])
    last = torch.full((2, 3, WIDTH), 7.0)
    last[0, 0], last[1, :2] = torch.eye(WIDTH)[2], 9 * torch.eye(WIDTH)[3]
    mask = torch.tensor([[1, 0, 0], [1, 1, 0]])
    output = SimpleNamespace(hidden_states=(embedded, torch.rand(2, 3, WIDTH), last))
    words, meanings = read(output, mask)
    assert words[:, :2].tolist() == pytest.approx(np.array([[1, 0], [0.6, 0.8]]))
    assert meanings.argmax(1).tolist() == [2, 3]
    pooler = WordsAndMeaningPooler()
    assert torch.equal(pooler(output, mask), meanings)  # as the tower itself says, until trained
    torch.nn.init.eye_(pooler.words.weight)
    torch.testing.assert_close(pooler(output, mask), words + meanings)


def test_further_wrong_texts_count_for_pictures_unless_they_mean_the_same() -> None:
    """A third text at 45 degrees to none: scale 1 and cosines 1, 0 and 0 for both pictures."""
    axes = torch.eye(3)[:2]
    apart, scale = torch.zeros(2, 2, dtype=torch.bool), torch.tensor(1.0)
    further = torch.eye(3)[2:]
    e = math.e
    by_text = math.log((e + 1) / e)

    def value(ignored: bool) -> float:
        same = torch.full((2, 1), ignored)
        return float(loss(axes, axes, further, apart, same, scale))

    assert value(False) == pytest.approx((math.log((e + 2) / e) + by_text) / 2)
    assert value(True) == pytest.approx(by_text)


def test_captions_that_mean_the_same_are_not_told_apart() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # both pictures have the first one's text
    same = torch.ones(2, 2, dtype=torch.bool)
    none, nothing = torch.zeros(2, 0, dtype=torch.bool), torch.zeros(0, 2)
    assert float(loss(images, texts, nothing, same, none, torch.tensor(1.0))) == 0


def test_three_stages_train_what_ships_each_on_what_the_last_one_ended_with(tmp_path: Path) -> None:
    """Noise for tokens: what matters is that every part learns, and that all of it is written."""
    data, work, out = tmp_path / "data", tmp_path / "work", tmp_path / "trained.safetensors"
    data.mkdir()
    things = [f"thing {number}" for number in range(24)]
    lines = [json.dumps({"subject": thing, "captions": [f"a {thing}"]}) for thing in things]
    (data / "captions.jsonl").write_text("\n".join(lines) + "\n")
    noise = np.random.default_rng(0)
    for name, shape in (("tokens", (24, 9, 384)), ("depths", (24, 5, 768))):
        np.save(data / f"{name}.npy", noise.normal(size=shape).astype(np.float16))
        (data / f"{name}.done").write_text("24")
    for stage, settings in STAGES.items():
        brief = replace(settings, steps=2, batch=8, names=4, keep=0.5)
        train(data, work, out, stage, brief)
        assert out.exists() == (stage == "texts")
    trained = load_file(out)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    grown = ("text.pooler.words.weight", "visual.trunk.blocks.11.mlp.fc2.weight.up")
    assert all(int(trained[name].count_nonzero()) for name in grown)
    shipped = load_file(clip_weights.TRAINED)
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in shipped.items()}
