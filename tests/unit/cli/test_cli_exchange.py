"""The commands import and export, on a store of known vectors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.worlds.foreign import saev_header, write_saev
from tests.worlds.tiny import SITE, write_store
from vision_sae.activations.store import ActivationStore
from vision_sae.cli import app
from vision_sae.dictionaries.artifact import load_dictionary
from vision_sae.dictionaries.interop.conversion import export_sae, import_sae
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.metrics import evaluate

DIM, WIDTH = 6, 16


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def succeed(*args: object) -> Result:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def sae(dim: int = DIM) -> TopKSae:
    g = torch.Generator().manual_seed(0)
    shapes = {"w_enc": (WIDTH, dim), "b_enc": (WIDTH,), "w_dec": (WIDTH, dim), "b_dec": (dim,)}
    return TopKSae(k=3, **{name: torch.randn(s, generator=g) for name, s in shapes.items()})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, a foreign checkpoint, and the dictionary that the command made of it."""
    root = tmp_path_factory.mktemp("world")
    vectors = np.random.default_rng(0).normal(size=(8, 4, DIM))
    write_store(root / "store", [vectors])
    export_sae(sae(), root / "source")
    (root / "source/manifest.json").unlink()  # the source's own files only
    made = succeed("import", root / "source", root / "d", "--store", root / "store")
    (root / "import.txt").write_text(made.output)
    return root


@pytest.mark.parametrize("command", ["import", "export"])
def test_commands_are_listed_and_have_help(command: str) -> None:
    assert re.search(rf"^\W*{command}\b", succeed("--help").output, re.MULTILINE)
    assert "Usage" in succeed(command, "--help").output


def test_imported_dictionary_belongs_to_the_stores_model_and_site(world: Path) -> None:
    dictionary, manifest = load_dictionary(world / "d")
    store = ActivationStore(world / "store")
    assert torch.equal(dictionary.decoder, sae().decoder)
    assert (manifest["model"], manifest["site"]) == (store.manifest["model"], SITE)
    assert manifest["data_sha256"] == store.manifest["data_sha256"]


def test_manifest_says_where_it_came_from(world: Path) -> None:
    training = load_dictionary(world / "d")[1]["training"]
    assert training["imported_from"] == "saelens"
    assert training["settings"] == json.loads((world / "source/cfg.json").read_text())


def test_metrics_are_measured_on_the_store(world: Path) -> None:
    metrics = load_dictionary(world / "d")[1]["metrics"]["store"]
    expected = evaluate(sae(), ActivationStore(world / "store").batches(SITE, 7))
    assert metrics["explained_variance"] == pytest.approx(expected.explained_variance, abs=1e-5)
    assert metrics["rows"] == 32


def test_import_prints_features_source_and_metrics(world: Path) -> None:
    output = (world / "import.txt").read_text()
    assert re.search(r"16 features from saelens, topk, .*explained_variance -?\d", output)


def test_imported_dictionary_can_be_built_into_a_bundle(world: Path, tmp_path: Path) -> None:
    output = succeed("build", world / "store", world / "d", tmp_path / "bundle").output
    assert "32 patches" in output


def test_export_comes_back_with_model_and_site(world: Path, tmp_path: Path) -> None:
    succeed("export", world / "d", tmp_path / "out", "--format", "saelens")
    dictionary, said = import_sae(tmp_path / "out")
    assert torch.equal(dictionary.decoder, sae().decoder)
    assert said["metadata"]["model_name"] == "tiny"
    assert said["metadata"]["hook_name"] == SITE


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("import", "{w}/nowhere", "{t}/d", "--store", "{w}/store"), "nowhere"),
        (("import", "{w}/source", "{t}/d", "--store", "{w}/nowhere"), "nowhere"),
        (("import", "{w}/store", "{t}/d", "--store", "{w}/store"), "no known format"),
        (
            ("import", "{w}/source", "{t}/d", "--store", "{w}/store", "--site", "blocks.9.mlp"),
            "blocks.9.mlp",
        ),
        (
            ("import", "{w}/source", "{t}/d", "--store", "{w}/store", "--format", "sparsify"),
            "sae.safetensors",
        ),
        (("export", "{w}/nowhere", "{t}/out"), "nowhere"),
        (("export", "{w}/d", "{w}/source"), "source holds"),
        (("export", "{w}/d", "{t}/out", "--format", "onnx"), "onnx"),
    ],
    ids=["source", "store", "format", "site", "named-format", "dictionary", "out", "export-format"],
)
def test_bad_argument_is_one_line_and_status_2(
    world: Path, tmp_path: Path, args: tuple[str, ...], names: str
) -> None:
    result = run(*(arg.format(w=world, t=tmp_path) for arg in args))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("vision-sae: ")
    assert names in line


def with_setting(source: Path, path: Path, name: str) -> Path:
    """A copy of a checkpoint that says one thing more."""
    shutil.copytree(source, path)
    settings = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(settings | {name: 1}))
    return path


def test_unknown_setting_stops_the_import_until_it_is_ignored(world: Path, tmp_path: Path) -> None:
    source = with_setting(world / "source", tmp_path / "source", "sharpness")
    arguments = ("import", source, tmp_path / "d", "--store", world / "store")
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--ignore-setting sharpness" in refused.stderr
    assert not (tmp_path / "d").exists()
    succeed(*arguments, "--ignore-setting", "sharpness")
    dictionary, manifest = load_dictionary(tmp_path / "d")
    assert manifest["training"]["ignored_settings"] == ["sharpness"]
    assert torch.equal(dictionary.decoder, sae().decoder)


@pytest.mark.parametrize("name", ["sharpness", "d_in"])
def test_only_unknown_settings_can_be_ignored(world: Path, tmp_path: Path, name: str) -> None:
    arguments = ("import", world / "source", tmp_path / "d", "--store", world / "store")
    result = run(*arguments, "--ignore-setting", name)
    assert result.exit_code == 2
    assert f"no unknown setting {name!r}" in result.stderr


def test_vectors_that_saev_reconstructs_otherwise_are_counted(world: Path, tmp_path: Path) -> None:
    # Of three features one has a positive bias and no weights: one is positive in every vector.
    tensors = {"W_enc": torch.zeros(DIM, 3), "b_enc": torch.tensor([1.0, -1.0, -1.0])}
    tensors |= {"W_dec": torch.ones(3, DIM), "b_dec": torch.zeros(DIM)}
    header = saev_header(5, "TopK", top_k=2)
    header["cfg"] |= {"d_model": DIM, "d_sae": 3}
    write_saev(tmp_path / "sae.pt", header, **tensors)
    source = tmp_path / "sae.pt"
    output = succeed("import", source, tmp_path / "d", "--store", world / "store").output
    assert "32 vectors have fewer positive features than k" in output
    assert load_dictionary(tmp_path / "d")[1]["training"]["vectors_short_of_k"] == 32


def test_dictionary_of_other_dimensions_is_refused(world: Path, tmp_path: Path) -> None:
    export_sae(sae(DIM + 1), tmp_path / "other")
    result = run("import", tmp_path / "other", tmp_path / "d", "--store", world / "store")
    assert result.exit_code == 2
    assert f"7 dimensions, site {SITE} has 6" in result.stderr
    assert not (tmp_path / "d").exists()
