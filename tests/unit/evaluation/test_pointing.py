"""Where attributions point, on scenes whose objects are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from tests.worlds.tiny import tiny_model
from vision_sae.evaluation import pointing as module
from vision_sae.evaluation.pointing import (
    Heads,
    covered,
    heads,
    hits,
    mean_vector,
    pointed,
    pointing,
)
from vision_sae.evaluation.tasks import embeddings
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.models.vit import VitModel
from vision_sae.pictures.scenes import scenes

SITE = "blocks.1.resid"


@pytest.fixture(scope="module")
def model() -> VitModel:
    return tiny_model()


@pytest.mark.parametrize("tolerance", [0, 3])
def test_a_hit_is_a_patch_on_the_object_or_close_to_it(
    tolerance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, geometry = PatchGrid(4, 4, 1, 8, 8), Preprocessing(32, 32).geometry(32, 32)
    (scene,) = scenes(1, 8, side=32)
    shown = scene.parts["object"]
    monkeypatch.setattr(module, "_TOLERANCE", tolerance)
    near = binary_dilation(shown, np.ones((2 * tolerance + 1,) * 2))
    boxes = grid.boxes(geometry).astype(int)
    expected = [bool(near[y0:y1, x0:x1].any()) for x0, y0, x1, y1 in boxes]
    assert [hits(shown, grid, geometry, patch) for patch in range(16)] == expected
    assert set(expected) == {True, False}


def test_what_is_shown_covers_a_share_of_each_patch() -> None:
    grid, geometry = PatchGrid(2, 2, 1, 8, 8), Preprocessing(16, 16).geometry(16, 16)
    shown = np.zeros((16, 16), dtype=np.bool_)
    shown[:4, 8:] = True  # half of the second patch
    shown[8:, :8] = True  # all of the third
    assert covered(shown, grid, geometry).tolist() == [0, 0.5, 1, 0]


def test_the_mean_vector_is_that_of_all_patches(model: VitModel) -> None:
    images = torch.stack([model.preprocess(scene.image) for scene in scenes(3, 4, side=32)])
    with torch.inference_mode(), model.capture([SITE]) as captured:
        model.forward(images)
    expected = captured[SITE][:, model.grid.special :].flatten(0, 1).mean(0)
    torch.testing.assert_close(mean_vector(model, SITE, images), expected, rtol=1e-4, atol=1e-6)


def test_heads_tell_backgrounds(model: VitModel) -> None:
    drawn = list(scenes(60, 3, side=32))
    images = torch.stack([model.preprocess(scene.image) for scene in drawn])
    assert heads(embeddings(model, images).numpy(), drawn, "background").accuracy > 0.9


def test_the_strongest_patch_hits_and_what_speaks_for_the_value_is_energy(
    model: VitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scene,) = scenes(1, 8, side=32)
    contributed = torch.linspace(-1, 1, model.grid.patches)

    class Told:
        """The site vectors are 1 above the mean, 3, and each counts for what it contributes."""

        def __init__(self, *_: object) -> None:
            self.updates = {SITE: torch.full((model.grid.patches, 1), 4.0)}

        def gradient(self, site: str, start: torch.Tensor, nodes: int) -> torch.Tensor:
            assert (site, nodes, start.unique().tolist()) == (SITE, 8, [3.0])
            return contributed[:, None]

    monkeypatch.setattr(module, "Observation", Told)
    asked = Heads(torch.zeros(8, 32), torch.zeros(8), 1.0)
    hit, energy = pointed(model, SITE, torch.tensor([3.0]), scene, asked, "background")
    geometry = model.preprocessing.geometry(32, 32)
    shown = scene.parts["object"]
    speaking = contributed.clamp_min(0).numpy()
    inside = (speaking * covered(shown, model.grid, geometry)).sum()
    assert energy == pytest.approx(inside / speaking.sum())
    assert hit == hits(shown, model.grid, geometry, model.grid.patches - 1)


def test_the_figures_of_every_site_and_attribute(
    model: VitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FITTED", 40)
    found = pointing(model, [SITE, "blocks.1.update"], 4, progress=False)
    assert {site: set(of_site) for site, of_site in found.items()} == {
        SITE: {"colour", "shape"},
        "blocks.1.update": {"colour", "shape"},
    }
    for of_site in found.values():
        for figures in of_site.values():
            assert figures.hits in (0, 0.25, 0.5, 0.75, 1)
            assert 0 <= figures.energy <= 1
