"""A third party's distribution, installed beside the library, adds kinds to the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.worlds.plugin import vision_sae
from tests.worlds.tiny import write_store
from vision_sae.files import read_json


@pytest.mark.slow
def test_an_architecture_is_trained_loaded_and_built(plugin: Path, tmp_path: Path) -> None:
    assert "soft_threshold" in vision_sae(plugin, "train", "--help").stdout
    vectors = np.random.default_rng(0).normal(size=(30, 4, 6))
    write_store(tmp_path / "store", [vectors])
    store, dictionary = tmp_path / "store", tmp_path / "dictionary"
    chosen = ("--architecture", "soft_threshold", "--expansion", 2, "--k", 3, "--steps", 4)
    options = (*chosen, "--batch-size", 32, "--set", "shrinkage=0.25")

    refused = vision_sae(plugin, "train", store, dictionary, *options, "--set", "shrinkage=-1")
    assert refused.returncode == 2
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("vision-sae: configuration: train.soft_threshold.shrinkage: ")
    assert "Traceback" not in refused.stderr

    trained = vision_sae(plugin, "train", store, dictionary, *options, "--heldout", store)
    assert trained.returncode == 0, trained.stderr
    manifest = read_json(dictionary / "manifest.json")
    assert manifest["dictionary"]["architecture"] == "soft_threshold"
    assert manifest["training"]["soft_threshold"] == {"shrinkage": 0.25}

    built = vision_sae(
        plugin, "build", store, dictionary, tmp_path / "bundle", VISION_SAE_BUILD__RECALL_FLOOR="0"
    )
    assert built.returncode == 0, built.stderr
    bundle = read_json(tmp_path / "bundle" / "manifest.json")
    assert bundle["dictionary"]["architecture"] == "soft_threshold"


def test_without_the_plug_in_its_architecture_is_unknown(tmp_path: Path) -> None:
    refused = vision_sae(tmp_path, "train", "a", "b", "--architecture", "soft_threshold")
    assert refused.returncode == 2
    assert "train.architecture: there is no architecture" in " ".join(refused.stderr.split())
