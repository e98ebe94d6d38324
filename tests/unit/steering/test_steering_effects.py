"""Figures of change, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vision_sae.models.sdxl import SdxlModel
from vision_sae.steering import effects


def test_difference_is_the_mean_over_colours() -> None:
    one, other = Image.new("RGB", (2, 1), (255, 0, 0)), Image.new("RGB", (2, 1), (0, 0, 51))
    other.putpixel((1, 0), (255, 0, 0))
    np.testing.assert_allclose(effects.difference(one, other), [[(1 + 0 + 0.2) / 3, 0]], atol=1e-6)


def test_change_inside_and_outside_of_a_region() -> None:
    map_ = np.array([[1.0, 0.5], [0.25, 0.25]], dtype=np.float32)
    region = np.array([[True, True], [False, False]])
    assert effects.change(map_, region) == (0.5, 0.75, 0.25)
    assert effects.change(map_, None) == (0.5, None, None)
    assert effects.change(map_, np.ones((2, 2), bool)) == (0.5, 0.5, None)


def test_the_union_of_regions_is_none_where_one_of_them_is_everywhere() -> None:
    left, top = np.array([[1, 0], [1, 0]], bool), np.array([[1, 1], [0, 0]], bool)
    joined = effects.union([left, top])
    assert joined is not None
    assert joined.tolist() == [[True, True], [True, False]]
    assert effects.union([left, None]) is None
    assert effects.union([]) is None


def test_patches_cover_their_pixels() -> None:
    patches = np.array([[True, False]])
    assert effects.pixels_of(patches, 2, 4).tolist() == [[True, True, False, False]] * 2


def test_perceptual_difference_is_lpips_with_unit_weights(tiny_generator: SdxlModel) -> None:
    random = np.random.default_rng(0)
    one, other = (
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2)
    )
    found = effects.perceptual_difference(tiny_generator, one, other)
    # The tiny autoencoder's decoding blocks, run by hand.
    vae = tiny_generator.pipeline.vae
    pixels = torch.from_numpy(np.stack([np.asarray(one), np.asarray(other)])).permute(0, 3, 1, 2)
    means = []
    with torch.inference_mode():
        sample = 3 * torch.tanh(vae.encode(pixels.float() / 127.5 - 1).latents / 3)
        for layer in vae.decoder.layers:
            sample = layer(sample)
            if type(layer).__name__ == "AutoencoderTinyBlock":
                unit = F.normalize(sample, dim=1)
                means.append(float((unit[0] - unit[1]).square().sum(0).mean()))
    assert len(means) == 3
    assert found.shape == (64, 64)
    assert found.mean() == pytest.approx(np.mean(means), rel=2e-3)
    assert effects.perceptual_difference(tiny_generator, one, one).max() == 0
