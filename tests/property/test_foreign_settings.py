"""Whatever a foreign checkpoint's settings are changed to, it is refused by name, or imported
right: for the files that each library writes, with every setting of its own."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worlds.foreign_settings import (
    CHECKPOINTS,
    MEANINGFUL,
    Checkpoint,
    changed,
    places,
    right,
    strange,
)
from vision_sae.dictionaries.interop.conversion import import_sae
from vision_sae.errors import VisionSaeError

each_checkpoint = pytest.mark.parametrize("checkpoint", CHECKPOINTS.values(), ids=CHECKPOINTS)


def directory(parent: Path, number: int) -> Path:
    path = parent / str(number)
    path.mkdir()
    return path


@each_checkpoint
def test_what_the_library_writes_is_imported(tmp_path: Path, checkpoint: Checkpoint) -> None:
    assert right(checkpoint.write(tmp_path, checkpoint.settings), checkpoint.expected)


# Objects that say where a checkpoint is from, of any content.
DESCRIPTIONS = ("metadata", "sparsity", "model_from_pretrained_kwargs")


@each_checkpoint
def test_unknown_setting_anywhere_is_refused_by_name_unless_it_is_ignored(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    for number, place in enumerate(places(checkpoint.settings)):
        settings = changed(checkpoint.settings, place, "strange_key", True)
        path = checkpoint.write(directory(tmp_path, number), settings)
        name = ".".join((*place, "strange_key"))
        if set(place) & set(DESCRIPTIONS):
            assert right(path, checkpoint.expected)
            continue
        with pytest.raises(VisionSaeError, match=f"knows the setting {name}, here True"):
            import_sae(path)
        assert right(path, checkpoint.expected, (name,))


@each_checkpoint
def test_strange_value_of_any_setting_is_refused_by_name_or_changes_nothing(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    for number, (key, value, settings) in enumerate(strange(checkpoint)):
        path = checkpoint.write(directory(tmp_path, number), settings)
        try:
            imported = right(path, checkpoint.expected)
        except VisionSaeError as error:
            said = str(error).replace(str(tmp_path), "")
            assert re.search(rf"\b{key}\b", said) or repr(value) in said, said
            continue
        assert imported or (key, value) in MEANINGFUL, f"{key} {value!r} in silence"


def add_tensor(path: Path) -> None:
    """Write a further tensor beside those of a checkpoint."""
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.p*t*")]
    file = next(f for f in files if f.name not in ("mean.pt", "std.pt"))
    if file.suffix == ".safetensors":
        save_file(load_file(file) | {"strange_tensor": torch.zeros(1)}, file)
        return
    content = file.read_bytes()
    header, archive = content.split(b"\n", 1) if content.startswith(b"{") else (b"", content)
    stored = torch.load(io.BytesIO(archive), weights_only=True)
    stored.get("state_dict", stored.get("model", stored))["strange_tensor"] = torch.zeros(1)
    with file.open("wb") as stream:
        stream.write(header + b"\n" if header else b"")
        torch.save(stored, stream)


@each_checkpoint
def test_tensor_that_nobody_reads_is_refused_by_name(
    tmp_path: Path, checkpoint: Checkpoint
) -> None:
    path = checkpoint.write(tmp_path, checkpoint.settings)
    add_tensor(path)
    with pytest.raises(VisionSaeError, match="also holds strange_tensor"):
        import_sae(path)
