"""A classifier of what composed scenes show: an eye on generated ones that knows no generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vision_sae.evaluation.planted_scenes import VALUES, draw, random_attributes

SIDE = 64
"""Pixels of the pictures it looks at."""
_SEED = 909
_SCENES = 16_000
_EPOCHS = 10
_BATCH = 64
_RATE = 4e-3
_WIDTHS = (16, 32, 64, 96, 128)


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures -> (N, 3, SIDE, SIDE), from -1 to 1."""
    sized = [p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for p in pictures]
    arrays = np.stack([np.asarray(p) for p in sized])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


class AttributeClassifier(nn.Module):
    """A convolution of every pixel, four strided ones, and a head for each attribute of `VALUES`;
    batch normalisation, without which textures take many times as long."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((3, *_WIDTHS), _WIDTHS, (1, 2, 2, 2, 2), strict=False):
            conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.GELU()]
        corner = _WIDTHS[-1] * (SIDE // 2 ** (len(_WIDTHS) - 1)) ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(corner, 256), nn.GELU())
        self.head = nn.Linear(256, sum(map(len, VALUES.values())))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, SIDE, SIDE) -> the logits (N, values) of each attribute."""
        logits: Tensor = self.head(self.body(images))
        return list(logits.split([len(values) for values in VALUES.values()], dim=1))

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        """{attribute: (N, values)}"""
        parts = [self(pixels(pictures[at : at + _BATCH])) for at in range(0, len(pictures), _BATCH)]
        return {
            name: torch.cat([part[i] for part in parts]).softmax(1) for i, name in enumerate(VALUES)
        }

    def accuracy(
        self, pictures: Sequence[Image.Image], shown: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        """Share of pictures whose attribute is seen as it should be; ``shown`` holds the numbers
        of the values, `Attributes.numbers` of each picture."""
        truth = torch.tensor(np.array(shown))
        return {
            name: float((found.argmax(1) == truth[:, i]).float().mean())
            for i, (name, found) in enumerate(self.probabilities(pictures).items())
        }


def train_classifier(
    scenes: int = _SCENES, epochs: int = _EPOCHS, *, progress: bool = True
) -> AttributeClassifier:
    """Train on real scenes without words; they are blurred and noised a little at random, so that
    a picture is not refused for being soft."""
    torch.manual_seed(_SEED)
    made, shown = [], []
    for i in range(scenes):
        random = np.random.default_rng([_SEED, i])
        attributes = replace(random_attributes(random), word=None)
        made.append(draw(attributes, side=SIDE, seed=int(random.integers(2**32))).image)
        shown.append(attributes.numbers)
    images, truth = pixels(made), torch.tensor(shown)
    model = AttributeClassifier()
    steps = epochs * (len(images) // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    for step in tqdm(range(steps), desc="attributes", disable=not progress):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(images))
        rows = order[(step % (steps // epochs)) * _BATCH :][:_BATCH]
        logits = model(_softened(images[rows]))
        errors = [F.cross_entropy(seen, truth[rows, i]) for i, seen in enumerate(logits)]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(errors).mean().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _softened(images: Tensor) -> Tensor:
    """Half of the pictures blurred, all with a little noise."""
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(chosen, blurred, images) + 0.05 * torch.randn_like(images)
