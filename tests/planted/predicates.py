"""Pictures whose captions and pixels are known, and units that fire on planted predicates.

A picture has a coloured ground and, at a random place, a thing: a disc of another colour, the lower
part of which is its underside. Its caption names the thing and the ground. A unit fires on the
patches that its predicate holds for, in nearly every picture where it holds, and on a few others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.predicates.looks import COLOURS
from vision_sae.descriptions.protocol import Description
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.protocol import Places
from vision_sae.models.grid import PatchGrid, Preprocessing

SIDE, PATCH = 128, 8
GRID = PatchGrid(SIDE // PATCH, SIDE // PATCH, 0, PATCH, PATCH)
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "horse", "cow", "sheep", "pig", "rabbit", "lion", "wolf", "mouse"),
    "fruit": ("apple", "banana", "pear", "cherry", "lemon", "grape", "peach", "melon"),
    "vehicle": ("car", "van", "truck", "tractor", "bicycle", "jeep", "ambulance", "taxi"),
    "musical instrument": ("guitar", "violin", "drum", "trumpet", "piano", "flute", "harp"),
    "furniture": ("chair", "table", "bed", "sofa", "desk", "wardrobe", "bench", "bookcase"),
    "building": ("house", "church", "castle", "factory", "hotel", "school", "temple", "barn"),
    "clothing": ("shirt", "coat", "dress", "jacket", "hat", "glove", "sock", "scarf"),
    "flower": ("daisy", "sunflower", "orchid", "poppy", "chrysanthemum", "marigold", "peony"),
    "weapon": ("sword", "spear", "rifle", "pistol", "dagger", "bow", "lance", "knife"),
}
"""Things by the kind whose name a unit that fires on all of them must get."""
THINGS = tuple(thing for things in KINDS.values() for thing in things)
CHILDREN = ("cat", "apple", "car", "guitar", "chair", "church", "daisy", "sword")
"""Things that are shown more often, and that units of their own fire on."""
PAINT = {
    "red": (206, 30, 40),
    "green": (40, 150, 60),
    "blue": (30, 80, 200),
    "yellow": (250, 222, 60),
    "white": (255, 255, 255),
    "black": (5, 5, 5),
    "purple": (120, 60, 170),
}
assert set(PAINT) <= set(COLOURS)
Sort = Literal["parent", "child", "attribute", "place", "conjunction", "noise"]


@dataclass(frozen=True)
class Planted:
    """A unit's predicate, and the words that its label must hold."""

    sort: Sort
    words: tuple[str, ...]
    fires: Callable[[World], NDArray[np.bool_]]
    """The patches (N, P) that fire it."""


@dataclass(frozen=True)
class World:
    """N pictures: their things, colours, and where the thing is."""

    things: NDArray[np.int64]
    grounds: NDArray[np.int64]
    inks: NDArray[np.int64]
    boxes: NDArray[np.int64]
    """(N, 3): left, top and diameter of the disc in pixels."""

    @classmethod
    def random(cls, count: int, seed: int) -> World:
        """``count`` pictures from a seed."""
        random = np.random.default_rng(seed)
        grounds = random.integers(len(PAINT), size=count)
        inks = (grounds + random.integers(1, len(PAINT), size=count)) % len(PAINT)
        diameter = random.integers(48, 80, size=count)
        corner = (random.random((count, 2)) * (SIDE - 2 * PATCH - diameter[:, None])) + PATCH
        boxes = np.column_stack([corner.astype(np.int64), diameter])
        often = np.where(np.isin(THINGS, CHILDREN), 3.0, 1.0)
        things = random.choice(len(THINGS), count, p=often / often.sum())
        return cls(things, grounds, inks, boxes)

    def picture(self, row: int) -> Image.Image:
        """What is shown."""
        names = list(PAINT)
        image = Image.new("RGB", (SIDE, SIDE), PAINT[names[self.grounds[row]]])
        left, top, size = self.boxes[row].tolist()
        disc = (left, top, left + size, top + size)
        ImageDraw.Draw(image).ellipse(disc, fill=PAINT[names[self.inks[row]]])
        return image

    @cached_property
    def inside(self) -> NDArray[np.bool_]:
        """The patches (N, P) that lie wholly in the disc."""
        centre = (np.arange(SIDE // PATCH) + 0.5) * PATCH
        left, top, size = self.boxes.T[:, :, None, None]
        x, y = centre[None, None, :], centre[None, :, None]
        reach = size / 2 - PATCH * 0.75
        far = np.hypot(x - left - size / 2, y - top - size / 2)
        return (far < reach).reshape(len(self.things), -1)

    @cached_property
    def outside(self) -> NDArray[np.bool_]:
        """The patches (N, P) that lie wholly in the ground."""
        centre = (np.arange(SIDE // PATCH) + 0.5) * PATCH
        left, top, size = self.boxes.T[:, :, None, None]
        x, y = centre[None, None, :], centre[None, :, None]
        far = np.hypot(x - left - size / 2, y - top - size / 2)
        return (far > size / 2 + PATCH * 0.75).reshape(len(self.things), -1)

    @cached_property
    def lower(self) -> NDArray[np.bool_]:
        """The patches (N, P) of the lowest quarter of the disc."""
        centre = (np.arange(SIDE // PATCH) + 0.5) * PATCH
        _, top, size = self.boxes.T[:, :, None, None]
        low = centre[None, :, None] > top + 0.72 * size
        return (np.broadcast_to(low, (len(self.things), 16, 16))).reshape(
            len(self.things), -1
        ) & self.inside

    def shows(self, things: Sequence[str]) -> NDArray[np.bool_]:
        """The pictures (N, 1) of one of ``things``."""
        return np.isin(self.things, [THINGS.index(t) for t in things])[:, None]


def units(noise: int, seed: int) -> list[Planted]:
    """Units of every sort, ``noise`` of them firing at random."""
    rows = np.arange(GRID.patches) // GRID.cols
    found = [
        Planted("parent", (kind,), lambda w, t=things: w.shows(t) & w.inside)
        for kind, things in KINDS.items()
    ]
    found += [
        Planted("child", (thing,), lambda w, t=thing: w.shows([t]) & w.inside) for thing in CHILDREN
    ]
    for number, colour in enumerate(PAINT):
        found.append(
            Planted(
                "attribute",
                (colour, "background"),
                lambda w, n=number: (w.grounds == n)[:, None] & w.outside,
            )
        )
    found.append(Planted("place", ("upper",), lambda w: np.tile(rows < 4, (len(w.things), 1))))
    found.append(Planted("place", ("lower",), lambda w: np.tile(rows > 11, (len(w.things), 1))))
    found.append(Planted("place", ("underside",), lambda w: w.lower))
    for kind, things in KINDS.items():
        found.append(
            Planted("conjunction", ("underside", kind), lambda w, t=things: w.shows(t) & w.lower)
        )
    for number, colour in list(enumerate(PAINT))[:3]:
        found.append(
            Planted(
                "conjunction",
                (colour, "animal"),
                lambda w, n=number: (w.inks == n)[:, None] & w.shows(KINDS["animal"]) & w.inside,
            )
        )
    for number in range(noise):
        found.append(Planted("noise", (), lambda w, n=number: _noise(w, seed + n)))
    return found


def _noise(world: World, seed: int) -> NDArray[np.bool_]:
    random = np.random.default_rng([seed, 7])
    count = len(world.things)
    pictures = random.random((count, 1)) < random.uniform(0.02, 0.15)
    return pictures & (random.random((count, GRID.patches)) < 0.05)


class PlantedEvidence(ArrayEvidence):
    """Evidence that also tells every patch that fires."""

    def places(self, unit: int) -> Places:
        """Every patch that fires the unit, strongest first."""
        values = self.activations[unit]
        (rows,) = np.nonzero(values)
        order = np.argsort(-values[rows], kind="stable")
        return Places(rows[order], values[rows[order]])

    activations: NDArray[np.float32]
    """(F, N * P)"""


def evidence(world: World, planted: Sequence[Planted], seed: int) -> PlantedEvidence:
    """What the units do in the world: they miss a tenth of what they should fire on."""
    random = np.random.default_rng(seed)
    count, names = len(world.things), list(PAINT)
    activations = np.zeros((len(planted), count * GRID.patches), dtype=np.float32)
    for row, unit in enumerate(planted):
        fires = unit.fires(world) & (random.random((count, 1)) > 0.1)
        strength = random.uniform(0.5, 1.5, (count, GRID.patches)).astype(np.float32)
        activations[row] = (fires * strength).ravel()
    maps = activations.reshape(len(planted), count, GRID.patches)
    peaks = maps.max(2)
    order = np.argsort(-peaks, axis=1, kind="stable")[:, :48]
    images = []
    for row in range(count):
        thing, ground = THINGS[world.things[row]], names[world.grounds[row]]
        caption = f"a {thing} on a {ground} background"
        images.append(ImageRecord(f"{row}.png", SIDE, SIDE, caption, (), f"photograph {row}"))
    found = PlantedEvidence(
        name="models/planted/sites/units",
        identity="0" * 64,
        data_sha256="1" * 64,
        site="units",
        images=images,
        grid=GRID,
        preprocessing=Preprocessing(SIDE, SIDE),
        thumbnails=[_png(world.picture(row)) for row in range(count)],
        embeddings=np.zeros((count, 2), np.float32),
        all_peaks=peaks,
        firing_images=order,
        maps=np.take_along_axis(maps, order[:, :, None], axis=1),
        thresholds=np.zeros(len(planted)),
    )
    object.__setattr__(found, "activations", activations)
    return found


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def accuracy(planted: Sequence[Planted], made: Sequence[Description]) -> dict[str, float]:
    """Share of the units of each sort whose label holds the planted words; of those that fire at
    random, the share that has no label."""
    names = {
        "parent": "parents",
        "child": "children",
        "attribute": "attributes",
        "place": "places",
        "conjunction": "conjunctions",
        "noise": "abstained_on_noise",
    }
    right: dict[str, list[bool]] = {name: [] for name in names.values()}
    for unit, description in zip(planted, made, strict=True):
        text = description.text
        said = text is not None and all(word in text for word in unit.words)
        right[names[unit.sort]].append(text is None if unit.sort == "noise" else said)
    return {name: round(float(np.mean(some)), 4) for name, some in right.items()}
