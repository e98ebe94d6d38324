"""A classifier of the attributes of composed scenes, trained without any generated picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from vision_sae.pictures.scenes import VALUES, draw, random_attributes

SIDE = 64
"""The side in pixels of the classifier's input."""
_SEED = 909
_SCENES = 16_000
_EPOCHS = 10
_BATCH = 64
_RATE = 4e-3
_WIDTHS = (16, 32, 64, 96, 128)


def pixels(pictures: Sequence[Image.Image]) -> Float32[Tensor, "N C H W"]:
    """Pictures as model input of `SIDE` pixels, from -1 to 1."""
    sized = [p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for p in pictures]
    arrays = np.stack([np.asarray(p) for p in sized])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


class AttributeClassifier(nn.Module):
    """A convolution of stride 1, four of stride 2, and a head for each attribute of `VALUES`.

    Without batch normalisation, textures take many times as long to learn.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip((3, *_WIDTHS), _WIDTHS, (1, 2, 2, 2, 2), strict=False):
            conv = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.GELU()]
        corner = _WIDTHS[-1] * (SIDE // 2 ** (len(_WIDTHS) - 1)) ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(corner, 256), nn.GELU())
        self.head = nn.Linear(256, sum(map(len, VALUES.values())))

    def forward(self, images: Float[Tensor, "N C H W"]) -> list[Float[Tensor, "N _"]]:
        """The logits of the values of each attribute."""
        logits: Tensor = self.head(self.body(images))
        return list(logits.split([len(values) for values in VALUES.values()], dim=1))

    @torch.inference_mode()
    def probabilities(self, pictures: Sequence[Image.Image]) -> dict[str, Float[Tensor, "N _"]]:
        """{attribute: probabilities of its values}"""
        parts = [self(pixels(pictures[at : at + _BATCH])) for at in range(0, len(pictures), _BATCH)]
        return {
            name: torch.cat([part[i] for part in parts]).softmax(1) for i, name in enumerate(VALUES)
        }

    def accuracy(
        self, pictures: Sequence[Image.Image], shown: Sequence[Sequence[int]]
    ) -> dict[str, float]:
        """{attribute: share of pictures that are classified right}.

        ``shown`` holds the true values, `Attributes.numbers` of each picture.
        """
        truth = torch.tensor(np.array(shown))
        return {
            name: float((probabilities.argmax(1) == truth[:, i]).float().mean())
            for i, (name, probabilities) in enumerate(self.probabilities(pictures).items())
        }


def train_classifier(
    scenes: int = _SCENES, epochs: int = _EPOCHS, *, progress: bool = True
) -> AttributeClassifier:
    """Train on composed scenes without words. Random blur and noise make the classifier accept the
    softer pictures of generators."""
    torch.manual_seed(_SEED)
    pictures, shown = [], []
    for i in range(scenes):
        random = np.random.default_rng([_SEED, i])
        attributes = replace(random_attributes(random), word=None)
        pictures.append(draw(attributes, side=SIDE, seed=int(random.integers(2**32))).image)
        shown.append(attributes.numbers)
    images, truth = pixels(pictures), torch.tensor(shown)
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
