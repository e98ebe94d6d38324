"""The demo's captioner and language model, and how they are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.worlds.milan import evidence_of
from tools.demo import train_captioner
from vision_sae.descriptions.captioning.captioner import load_captioner
from vision_sae.descriptions.captioning.language_model import load_language_model
from vision_sae.descriptions.describers.milan import MilanConfig, MilanDescriber
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import split
from vision_sae.models.embedded import captioner as demo
from vision_sae.models.embedded.dinov2 import dinov2_small
from vision_sae.pictures.scenes import Attributes, Colour, Shape, draw

SIDE = 160


def test_what_ships_is_small() -> None:
    folders = [demo.WEIGHTS / name for name in ("captioner", "language_model")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert 2**20 < sum(path.stat().st_size for path in files) < 6 * 2**20


def test_the_encoder_is_the_demos_vision_transformer() -> None:
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = dinov2_small().eval().forward_features(images)
        tokens = demo.encoder()(images).last_hidden_state
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-4)


def shown(*things: tuple[Shape, Colour]) -> ArrayEvidence:
    """One unit that fires on the objects of two scenes of each of these."""
    seen = [
        draw(Attributes(shape, colour, "plain", "large", "centre", ground), side=SIDE, seed=i)
        for i, (shape, colour) in enumerate(things)
        for ground in ("white", "black")
    ]
    masks = [s.parts["object"].reshape(20, 8, 20, 8).mean((1, 3)) > 0.5 for s in seen]
    return evidence_of([s.image for s in seen], [list(enumerate(masks))])


def test_a_saved_captioner_is_loaded_by_its_path_like_any_other(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    demo.captioner().save_pretrained(tmp_path)
    demo.image_processor().save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(demo.CAPTIONER).save_pretrained(tmp_path)
    evidence = shown(("star", "red"))
    exemplars = split(evidence, 0).describe
    told = [
        load_captioner(name).hypotheses(evidence, exemplars, beam=4, max_tokens=12)
        for name in ("demo:captioner", str(tmp_path))
    ]
    assert told[0] == told[1] != []


def test_the_language_model_prefers_what_people_write() -> None:
    model = load_language_model("demo:captions-lm")
    usual, unusual = model.log_probabilities(["a red background", "background red a"])
    assert usual > unusual + 5


@pytest.mark.slow
def test_units_are_mostly_called_what_their_exemplars_share() -> None:
    shapes, colours = get_args(Shape), get_args(Colour)

    def says(word: str, *things: tuple[Shape, Colour]) -> bool:
        (label,) = MilanDescriber(MilanConfig()).describe(shown(*things), [0])
        return word in (label.text or "")

    of_colours = [
        says(colour, *((shapes[(i + j) % 8], colour) for j in (0, 3, 5)))
        for i, colour in enumerate(colours)
    ]
    of_shapes = [
        says(shape, *((shape, colours[(i + j) % 8]) for j in (0, 3, 5)))
        for i, shape in enumerate(shapes)
    ]
    assert (len(of_colours), len(of_shapes)) == (8, 8)
    assert sum(of_colours) >= 5
    assert sum(of_shapes) >= 6


class Line(nn.Module):
    """y = w x, and a frozen part that is no concern of training's."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5]))
        self.frozen = nn.Parameter(torch.tensor([2.0]), requires_grad=False)


def loss_at(model: Any, step: int) -> Tensor:
    noise = torch.randn(())  # as dropout, from the seed of the step
    loss: Tensor = ((model.w * (step + 1) - 3 + 0.1 * noise) ** 2).sum()
    return loss


def test_interrupted_training_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_captioner, "STEPS", {"line": 7})
    monkeypatch.setattr(train_captioner, "CHECKPOINT", 2)

    def killed(model: Any, step: int) -> Tensor:
        if step == 5:
            raise KeyboardInterrupt
        return loss_at(model, step)

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = Line(), Line()
    train_captioner._fit(whole, "line", tmp_path / "whole", loss_at)
    with pytest.raises(KeyboardInterrupt):
        train_captioner._fit(Line(), "line", tmp_path / "parts", killed)
    train_captioner._fit(parts, "line", tmp_path / "parts", loss_at)
    assert parts.w.item() == whole.w.item() != 0.5
    log = (tmp_path / "parts" / "line.log.jsonl").read_text()
    assert log == (tmp_path / "whole" / "line.log.jsonl").read_text()
    assert [line.split(",")[0] for line in log.splitlines()] == [
        f'{{"step": {step}' for step in (2, 4, 6, 7)
    ]


def test_captions_of_any_length_are_spelled_between_their_begin_and_end() -> None:
    tokenizer = train_captioner.make_tokenizer(["a red star", "a red ring"] * 4)
    ids = train_captioner._spelled(tokenizer, ["a red star", "a " * 99])
    begin, end, pad = (tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>", "<pad>"))
    assert ids.shape == (2, train_captioner.LONGEST)
    assert ids[:, 0].tolist() == [begin, begin]
    first = ids[0].tolist()
    assert first[first.index(end) + 1 :] == [pad] * (len(first) - first.index(end) - 1)
    assert ids[1, -1] == end
    assert tokenizer.decode(first, skip_special_tokens=True).strip() == "a red star"
    assert "é" in tokenizer.decode(tokenizer("a red piñé").input_ids)  # bytes spell the rest


def test_patch_tokens_shown_lie_in_the_region() -> None:
    from tools.demo.caption_regions import Region

    inside = np.zeros(256, dtype=np.bool_)
    inside[[17, 18, 33, 200]] = True
    thing = Region(0, inside, "thing", ("a thing",), ())
    for seed in range(20):
        tokens = train_captioner._shown(thing, True, np.random.default_rng(seed))
        assert 1 <= len(tokens) <= 4
        assert inside[tokens].all()
