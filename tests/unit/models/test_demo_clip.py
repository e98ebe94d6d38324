"""The demo CLIP: that it loads from wheels and this repository, knows what it was not shown, and
tells where things are."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from tools.demo import clip_evaluation
from tools.demo.clip_evaluation import NamedPicture, class_name, held_out_pictures, ranks
from vision_sae.models.clip import ClipModel
from vision_sae.models.embedded import clip as clip_weights
from vision_sae.models.embedded import low_rank
from vision_sae.models.loading import load_model
from vision_sae.models.protocol import ContrastiveModel
from vision_sae.models.vit import VitModel


@cache
def demo() -> ClipModel:
    model = load_model("demo:clip")
    assert isinstance(model, ClipModel)
    return model


def picture(name: str, maker: str = "fluent") -> Image.Image:
    """A held-out drawing on white."""
    (found,) = [p for p in held_out_pictures() if (p.name, p.maker) == (name, maker)]
    return Image.open(found.path).convert("RGB")


def side_by_side(left: str, right: str) -> Image.Image:
    both = Image.new("RGB", (256, 256), "white")
    both.paste(picture(left), (0, 64))
    both.paste(picture(right), (128, 64))
    return both


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return normalize(a, dim=-1) @ normalize(b, dim=-1).T


def test_it_is_a_contrastive_model_with_the_grid_of_the_demo_vit() -> None:
    model = demo()
    assert isinstance(model, ContrastiveModel)
    assert (model.kind, model.name) == ("clip", "demo:clip")
    assert (model.grid.rows, model.grid.cols, model.grid.special) == (16, 16, 1)
    assert model.preprocessing == load_model("demo:dinov2-s", dtype="float32").preprocessing
    assert len(model.sites) == 12 * 4


def test_a_picture_is_nearest_to_its_own_caption() -> None:
    model = demo()
    texts = model.embed_texts(["a strawberry", "a violin", "a tiger", "a rose"])
    names = ["a strawberry", "a violin", "a tiger", "a rose"]
    images = torch.stack([model.preprocess(picture(name)) for name in names])
    with torch.inference_mode():
        scores = cosine(model.forward(images).embedding, texts)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_its_texts_are_read_by_their_words_too() -> None:
    """Without what was learned of words, names are elsewhere; the wheel's tower alone has none."""
    module = clip_weights.demo_clip()
    texts = clip_weights.tokenizer()(["a fire engine", "a violin"])
    with torch.inference_mode():
        read = module.encode_text(texts)  # type: ignore[operator]
        torch.nn.init.zeros_(module.text.pooler.words.weight)  # type: ignore[union-attr]
        without = module.encode_text(texts)  # type: ignore[operator]
    assert float(torch.cosine_similarity(read, without).max()) < 0.95
    assert int(clip_weights.untrained_clip().text.pooler.words.weight.count_nonzero()) == 0  # type: ignore[union-attr]


def test_the_right_name_of_things_never_seen_is_among_the_first_ten_of_three_hundred() -> None:
    """A sample of the benchmark's pictures against all of its names; chance is 3 %."""
    model, pictures = demo(), held_out_pictures()
    names = sorted({p.name for p in pictures})
    sample = pictures[:: len(pictures) // 48]
    texts = model.embed_texts(names)
    scores = clip_evaluation.embed_pictures(model, (p.path for p in sample)) @ texts.T
    right = torch.tensor([names.index(p.name) for p in sample])
    found = (scores > scores.gather(1, right[:, None])).sum(dim=1)
    assert len(names) == 300
    assert float((found < 10).float().mean()) >= 0.6


def test_all_patches_together_are_the_image_but_for_its_class_token() -> None:
    model = load_model("demo:clip", dtype="float32")
    assert isinstance(model, ClipModel)
    image = model.preprocess(side_by_side("a tiger", "a violin"))[None]
    with torch.inference_mode():
        vectors, weights, whole = model.embed_patches(image)
        embedding = model.forward(image).embedding
    assert whole is not None
    torch.testing.assert_close(whole, embedding, rtol=1e-3, atol=1e-3)
    # The patches make up all of it but what the class token adds.
    pooling = model.backbone.module.visual.trunk.patch_pooling  # type: ignore[union-attr]
    torch.nn.init.zeros_(pooling.whole.weight)
    torch.nn.init.zeros_(pooling.whole.bias)
    with torch.inference_mode():
        without = model.forward(image).embedding
    together = (weights[..., None] * vectors).sum(dim=1)
    torch.testing.assert_close(together, without, rtol=1e-3, atol=1e-3)


PAIRS = [
    ("a strawberry", "a violin"),
    ("a banana", "a tiger"),
    ("a dolphin", "broccoli"),
    ("an owl", "a rose"),
    ("a pineapple", "a police car"),
    ("a scorpion", "a doughnut"),
]


def test_a_name_is_nearest_to_the_half_that_shows_it() -> None:
    """Two things side by side, neither ever trained on: chance is 6 of 12."""
    model = demo()
    images = torch.stack([model.preprocess(side_by_side(*pair)) for pair in PAIRS])
    with torch.inference_mode():
        embedded = model.embed_patches(images)
    parts = (embedded.weights[..., None] * embedded.vectors).unflatten(1, (16, 16))
    halves = torch.stack([parts[:, :, :8].sum((1, 2)), parts[:, :, 8:].sum((1, 2))], dim=1)
    right = 0
    for pair, half in zip(PAIRS, halves, strict=True):
        left, other = cosine(model.embed_texts(pair), half).argmax(dim=1).tolist()
        right += int(left == 0) + int(other == 1)
    assert right >= 9


def test_its_last_blocks_are_its_own() -> None:
    clip = demo().backbone.module.visual.trunk.blocks
    vit = load_model("demo:dinov2-s", dtype="float32")
    assert isinstance(vit, VitModel)
    same = [
        torch.equal(ours.mlp.fc1.weight, theirs.mlp.fc1.weight)
        for ours, theirs in zip(clip, vit.backbone.module.blocks, strict=True)
    ]
    assert same == [True] * 9 + [False] * 3


def test_the_trained_part_is_small_and_bound_in_the_identity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    assert clip_weights.TRAINED.stat().st_size < 6e6
    merged = low_rank.merged

    def changed(state: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
        return merged(state, trained | {"logit_scale": trained["logit_scale"] + 0.125})

    monkeypatch.setattr(low_rank, "merged", changed)
    other = load_model("demo:clip").identity()["weights_sha256"]
    assert other != demo().identity()["weights_sha256"]


def test_merging_gives_the_same_bits_in_any_order() -> None:
    """Half-precision factors: their products add up exactly in float64."""
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(6, 32, generator=generator).half()
    down = torch.randn(32, 5, generator=generator).half()
    state = {"a.weight": torch.randn(6, 5, generator=generator), "b.bias": torch.zeros(3)}
    trained = {"a.weight.up": up, "a.weight.down": down, "b.bias": torch.ones(3).half()}
    order = torch.randperm(32, generator=generator)
    shuffled = trained | {"a.weight.up": up[:, order], "a.weight.down": down[order]}
    result = low_rank.merged(state, trained)
    assert torch.equal(result["a.weight"], low_rank.merged(state, shuffled)["a.weight"])
    torch.testing.assert_close(result["a.weight"], state["a.weight"] + up.float() @ down.float())
    assert set(result) == {"a.weight", "b.bias"}
    assert torch.equal(result["b.bias"], torch.ones(3))


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("a green and brown frog on a yellow background", "frog"),
        ("a red, green and black candy cane on a white background", "candy cane"),
        ("a lion lying down on a white background", "lion"),
        ("a grazing sheep on a light green background", "sheep"),
        ("an emperor penguin", "emperor penguin"),
    ],
)
def test_a_class_is_what_a_caption_shows(caption: str, name: str) -> None:
    assert class_name(caption) == name


def test_ranks_count_the_names_that_are_nearer() -> None:
    """Embeddings by hand: pictures (1, 0), (0, 1); texts a (1, 0), b (0.6, 0.8)."""

    class Stub:
        def preprocess(self, image: Image.Image) -> Tensor:
            return torch.zeros(1)

        def forward(self, images: Tensor) -> object:
            return type("Out", (), {"embedding": torch.eye(2)})()

        def embed_texts(self, texts: list[str]) -> Tensor:
            return torch.tensor([{"a": [1.0, 0.0], "b": [0.6, 0.8]}[text] for text in texts])

    path = held_out_pictures()[0].path
    pictures = [NamedPicture(path, "b"), NamedPicture(path, "a")]
    assert ranks(Stub(), pictures).tolist() == [1, 1]  # type: ignore[arg-type]
