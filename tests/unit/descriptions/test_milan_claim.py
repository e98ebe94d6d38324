"""MILAN's claim on the planted world: without the prior labels are general, with it particular.

People who caption a unit of red things write "a thing" more often than "a red thing". A captioner
learns that from captions, so its likeliest text is the general one for every unit. The general text
is also what is written of all other units, so it says less.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from tests.worlds.milan import (
    END,
    encoder_decoder,
    evidence_of,
    gpt2_config,
    processor,
    save,
    word_tokenizer,
)
from vision_sae.descriptions.describers.milan import MilanConfig, MilanDescriber
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.pictures.scenes import Colour, Scene, scenes

SIDE, CELLS, WIDTH = 64, 8, 32
STEPS, BATCH = 300, 48
COLOURS: tuple[str, ...] = get_args(Colour)
GENERAL = 0.55
"""Share of captions that do not name the colour."""


def object_patches(scene: Scene) -> NDArray[np.bool_]:
    """The patches (8, 8) that are mostly object; at least the one that is so most."""
    share = scene.parts["object"].reshape(CELLS, 8, CELLS, 8).mean((1, 3))
    return np.asarray(share >= min(0.6, share.max()))


def surprise(logits: Tensor, ids: Tensor, share: Tensor) -> Tensor:
    """Mean surprise of captions, by the share of people who write each of them."""
    loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    behind = (ids[:, 1:] == 0).cumsum(1) - (ids[:, 1:] == 0).long()  # the first end
    return ((loss * (behind == 0)).sum(1) * share).sum() / share.sum()


def train(tokenizer: Any) -> tuple[Any, Any]:
    """A captioner of regions and a language model, from the same captions."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    captioner = encoder_decoder(len(tokenizer), side=SIDE, width=WIDTH, layers=0).train()
    language_model = GPT2LMHeadModel(gpt2_config(len(tokenizer), width=WIDTH)).train()
    parameters = [*captioner.parameters(), *language_model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, weight_decay=0.01)
    seen = list(scenes(384, seed=1, side=SIDE))
    pixels = processor(SIDE)([s.image for s in seen], return_tensors="pt").pixel_values
    inside = [1 + np.flatnonzero(object_patches(scene)) for scene in seen]  # behind CLS
    share = torch.tensor([GENERAL] * BATCH + [1 - GENERAL] * BATCH)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1, (step + 1) / 20, 2 * (1 - step / STEPS))
        rows = random.choice(len(seen), BATCH, replace=False)
        shown = torch.from_numpy(np.stack([random.choice(inside[row], 6) for row in rows]))
        states = captioner.encoder(pixels[rows]).last_hidden_state
        memory = states[torch.arange(BATCH)[:, None], shown].repeat(2, 1, 1)
        colours = [seen[row].attributes.colour for row in rows]
        captions = ["a thing"] * BATCH + [f"a {colour} thing" for colour in colours]
        texts = [f"{END} {caption} {END}" for caption in captions]
        ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids
        decoded = captioner.decoder(input_ids=ids, encoder_hidden_states=memory).logits
        alone = language_model(input_ids=ids).logits
        loss = surprise(decoded, ids, share) + surprise(alone, ids, share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return captioner.eval(), language_model.eval()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    tokenizer = word_tokenizer(("a", "thing", *COLOURS))
    captioner, language_model = train(tokenizer)
    root: Path = tmp_path_factory.mktemp("models")
    return {
        "captioner": save(root / "captioner", captioner, tokenizer, side=SIDE),
        "language_model": save(root / "language", language_model, tokenizer),
    }


@pytest.fixture(scope="module")
def evidence() -> ArrayEvidence:
    """A unit for each colour: it fires on the objects of that colour in scenes never trained on."""
    shown = list(scenes(96, seed=2, side=SIDE))
    units = [
        [(i, object_patches(s)) for i, s in enumerate(shown) if s.attributes.colour == colour]
        for colour in COLOURS
    ]
    pictures: list[Image.Image] = [scene.image for scene in shown]
    return evidence_of(pictures, units)


def labels(directories: dict[str, str], evidence: ArrayEvidence, weight: float) -> list[str | None]:
    describer = MilanDescriber(MilanConfig(**directories, weight=weight, max_tokens=6))
    return [label.text for label in describer.describe(evidence, range(len(COLOURS)))]


PARTICULAR = [f"a {colour} thing" for colour in COLOURS]
"""What the label of each unit should be once the prior counts."""


def test_without_the_prior_labels_are_general_and_with_it_particular(
    directories: dict[str, str], evidence: ArrayEvidence
) -> None:
    """By hand: log .55 > log .45; yet log .55 - .2 log .55 = -.48 < log .45 - .2 log(.45/8) = -.22.

    A captioner trained for seconds has these odds only roughly, so one unit may be off.
    """
    general = math.log(GENERAL) * (1 - 0.2)
    particular = math.log(1 - GENERAL) - 0.2 * math.log((1 - GENERAL) / len(COLOURS))
    assert particular > general + 0.2

    without = labels(directories, evidence, weight=0.0)
    assert without.count("a thing") >= len(COLOURS) - 1
    with_prior = labels(directories, evidence, weight=0.2)
    right = [label == wanted for label, wanted in zip(with_prior, PARTICULAR, strict=True)]
    assert sum(right) >= len(COLOURS) - 1
    assert set(with_prior) <= {"a thing", *PARTICULAR}


def test_with_more_weight_every_label_names_the_colour(
    directories: dict[str, str], evidence: ArrayEvidence
) -> None:
    """By hand at weight .4: -.36 against .35."""
    assert labels(directories, evidence, weight=0.4) == PARTICULAR
