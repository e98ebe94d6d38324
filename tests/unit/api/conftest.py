"""A tiny model, and a bundle that the API itself made of it: 12 pictures of 16 patches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import vision_sae as vs
from tests.worlds import tiny as worlds
from vision_sae.models.vit import VitModel

SITE, LATER = "blocks.1.update", "blocks.2.update"


@dataclass(frozen=True)
class World:
    root: Path
    model: VitModel
    pictures: Path
    store: vs.ActivationStore
    dictionary: vs.LoadedDictionary
    bundle: vs.Bundle
    """Described by captions."""

    @property
    def picture(self) -> Path:
        return self.pictures / "003.png"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("api")
    pictures = worlds.picture_folder(root / "pictures", 12)
    captions = [
        {"file": f"{i:03}.png", "caption": f"a {'cat' if i % 2 else 'dog'}"} for i in range(12)
    ]
    (pictures / "captions.jsonl").write_text("".join(json.dumps(c) + "\n" for c in captions))
    model = worlds.tiny_model()
    store = vs.harvest(
        pictures, root / "store", model=model, site=[SITE, LATER], batch_size=4, progress=False
    )
    dictionary = vs.train(
        store,
        root / "dictionary",
        site=SITE,
        expansion=2,
        k=4,
        steps=10,
        batch_size=64,
        heldout=store,
        progress=False,
    )
    bundle = vs.build(store, root / "dictionary", root / "bundle", recall_floor=0, progress=False)
    labels = vs.describe(bundle, describer="caption-pmi", metrics=(), progress=False)
    assert labels.bundle is not None
    return World(root, model, pictures, store, dictionary, labels.bundle)


@pytest.fixture(autouse=True)
def small(one_thread: int) -> None:
    """Every test here computes with one thread; see `tests.worlds.fixtures`."""
