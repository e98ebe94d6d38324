"""What is missing, broken or out of reach is said by name, never by a library's traceback."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.models.test_clip import CONFIGS, save
from tests.unit.models.test_parity import saved
from vision_sae.errors import VisionSaeError
from vision_sae.models.embedded.generator import FOLDER
from vision_sae.models.loading import load_generator, load_model

Change = Callable[[Path], object]


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def made(path: Path) -> None:
        found = load_file(path)
        change(found)
        save_file(found, path)

    return made


def pickled(path: Path) -> None:
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


CUT: Change = lambda path: path.write_bytes(path.read_bytes()[:-100])  # noqa: E731
LACKING = tensors(lambda found: found.pop(max(found)))
OTHER_SHAPE = tensors(lambda found: found.update({key: torch.zeros(7) for key in found}))
NO_JSON: Change = lambda path: path.write_bytes(b"{")  # noqa: E731
NO_TEXT: Change = lambda path: path.write_bytes(b"\xff{}")  # noqa: E731
LIST: Change = lambda path: path.write_bytes(b"[]")  # noqa: E731
CONFIGURATION = "config.json"

BROKEN: list[tuple[str, str, Change, str, str]] = [
    # kind of folder, file, what is done to it, reason, the file that is named
    ("timm", "model.safetensors", Path.unlink, "NOT_FOUND", "weights"),
    ("timm", "model.safetensors", CUT, "CORRUPT_ARTIFACT", "model.safetensors"),
    ("timm", "model.safetensors", LACKING, "CORRUPT_ARTIFACT", CONFIGURATION),
    ("timm", "model.safetensors", OTHER_SHAPE, "CORRUPT_ARTIFACT", CONFIGURATION),
    ("timm", "model.safetensors", pickled, "INVALID_INPUT", "pytorch_model.bin is a pickle"),
    ("timm", "config.json", NO_JSON, "CORRUPT_ARTIFACT", CONFIGURATION),
    ("timm", "config.json", NO_TEXT, "CORRUPT_ARTIFACT", CONFIGURATION),
    ("timm", "config.json", LIST, "CORRUPT_ARTIFACT", CONFIGURATION),
    ("clip", "open_clip_model.safetensors", CUT, "CORRUPT_ARTIFACT", "open_clip_model.safetensors"),
    ("clip", "open_clip_model.safetensors", LACKING, "CORRUPT_ARTIFACT", "open_clip_config.json"),
    ("clip", "open_clip_model.safetensors", pickled, "INVALID_INPUT", "pytorch_model.bin"),
    ("clip", "open_clip_config.json", NO_JSON, "CORRUPT_ARTIFACT", "open_clip_config.json"),
    ("sdxl", "model_index.json", NO_JSON, "CORRUPT_ARTIFACT", "model_index.json"),
    ("sdxl", "unet", shutil.rmtree, "NOT_FOUND", "unet is missing"),
    ("sdxl", "unet/config.json", NO_JSON, "CORRUPT_ARTIFACT", "unet/config.json"),
    (
        "sdxl",
        "unet/diffusion_pytorch_model.safetensors",
        CUT,
        "CORRUPT_ARTIFACT",
        "unet/diffusion_pytorch_model.safetensors",
    ),
    ("sdxl", "unet/diffusion_pytorch_model.safetensors", pickled, "INVALID_INPUT", ".bin"),
    # transformers makes up what a file lacks
    ("sdxl", "text_encoder/model.safetensors", LACKING, "CORRUPT_ARTIFACT", "text_encoder lack"),
    ("sdxl", "scheduler/scheduler_config.json", NO_JSON, "CORRUPT_ARTIFACT", "scheduler_config"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = {kind: tmp_path_factory.mktemp(kind) for kind in ("timm", "clip")}
    saved(place["timm"])
    save(CONFIGS["clip"], place["clip"])
    return place | {"sdxl": FOLDER}


def load(kind: str, folder: Path) -> object:
    if kind == "sdxl":
        return load_generator(f"sdxl:{folder}", dtype="float32")
    return load_model(f"open_clip-dir:{folder}" if kind == "clip" else str(folder), dtype="float32")


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case[1]}-{case[4]}")
def test_a_broken_folder_is_refused_by_the_name_of_the_file(
    folders: dict[str, Path], tmp_path: Path, case: tuple[str, str, Change, str, str]
) -> None:
    kind, file, change, reason, named = case
    copy = shutil.copytree(folders[kind], tmp_path / "copy")
    change(copy / file)
    with pytest.raises(VisionSaeError) as caught:
        load(kind, copy)
    assert caught.value.reason == reason
    assert named in str(caught.value)
    assert str(copy) in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("change", [{"nonsense": 1}, {"depth": "two"}, {"num_heads": 5}])
def test_options_that_make_no_model_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    saved(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["model_args"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(VisionSaeError, match=r"config\.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_model, "timm:vit_tiny_patch16_224"),
        (load_model, "vit_tiny_patch16_224"),
        (load_model, "timm:hf-hub:nobody/nothing"),
        (load_model, "torchvision:vit_b_32"),
        (load_model, "open_clip:ViT-B-32/laion400m_e31"),
        (load_model, "hf-hub:nobody/nothing"),
        (load_generator, "sdxl:nobody/nothing"),
        (load_generator, "sdxl:/no/such/folder"),
    ],
)
def test_what_cannot_be_had_without_a_network_is_not_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Callable[[str], object], name: str
) -> None:
    def unreachable(*_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    def unopened(*_args: Any, **_options: Any) -> Any:
        raise URLError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("torch.hub.urlopen", unopened)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(VisionSaeError, match="look at the name and the network") as caught:
        load(name)
    assert caught.value.reason == "NOT_FOUND"
    assert name in str(caught.value)
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    "name", ["timm:vit_tiny_patch16_224.no_tag", "timm:vit_small_patch16_18x2_224"]
)
def test_weights_that_timm_never_had_are_not_found(name: str) -> None:
    with pytest.raises(VisionSaeError, match="no pretrained weights") as caught:
        load_model(name)
    assert caught.value.reason == "NOT_FOUND"
