from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.worlds.tiny import identity_sae, write_dictionary, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.dictionaries.artifact import load_dictionary, read_weights
from vision_sae.errors import CorruptArtifactError, NotFoundError


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return write_store(tmp_path / "store", [torch.randn(4, 4, 3).numpy()])


def test_published_dictionary_comes_back(store: ActivationStore, tmp_path: Path) -> None:
    path = write_dictionary(tmp_path / "d", identity_sae(3, 2), store)
    dictionary, manifest = load_dictionary(path)
    assert torch.equal(dictionary.decoder, torch.eye(3))
    assert manifest["model"] == store.manifest["model"]


def test_changed_weights_are_refused_by_name(store: ActivationStore, tmp_path: Path) -> None:
    path = write_dictionary(tmp_path / "d", identity_sae(3, 2), store)
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=r"weights\.safetensors"):
        load_dictionary(path)


def test_missing_dictionary_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="vision-sae train"):
        load_dictionary(tmp_path / "nowhere")


def test_other_version_is_refused(store: ActivationStore, tmp_path: Path) -> None:
    path = write_dictionary(tmp_path / "d", identity_sae(3, 2), store)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(CorruptArtifactError, match="version"):
        load_dictionary(path)


def test_unknown_architecture_is_refused_and_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match=r"'quantum'.*topk"):
        read_weights(tmp_path, {"architecture": "quantum"})
