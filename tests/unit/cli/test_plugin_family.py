"""A family of models of another distribution: harvested with from the command line, and served."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.worlds import serving
from tests.worlds.plugin import vision_sae
from tests.worlds.tiny import picture_folder
from vision_sae.cli import app
from vision_sae.config import ServeConfig
from vision_sae.models.family import FAMILIES
from vision_sae.v1 import catalog_service_pb2 as catalog
from vision_sae.v1 import catalog_service_pb2_grpc, model_pb2

SITE = "blocks.1.update"


@pytest.fixture(scope="module")
def store(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line harvests with the plug-in's model."""
    root = tmp_path_factory.mktemp("plugin")
    pictures = picture_folder(root / "pictures", 4)
    made = vision_sae(
        plugin, "harvest", pictures, root / "store", "--model", "example:7", "--site", SITE
    )
    assert made.returncode == 0, made.stderr
    assert "4 images, 64 patches" in made.stdout
    return root / "store"


def test_what_the_family_refuses_is_told_before_anything_is_loaded(
    plugin: Path, tmp_path: Path
) -> None:
    pictures = picture_folder(tmp_path / "pictures", 1)
    for name, told in (
        ("example:seven", "example:seven names no seed"),
        ("example:", "names no model"),
    ):
        run = vision_sae(plugin, "harvest", pictures, tmp_path / "out", "--model", name)
        assert run.returncode != 0
        assert told in run.stderr
        assert "Traceback" not in run.stderr


def test_without_the_plug_in_the_message_lists_the_other_names(tmp_path: Path) -> None:
    pictures = picture_folder(tmp_path / "pictures", 1)
    run = CliRunner().invoke(
        app, ["harvest", str(pictures), str(tmp_path / "out"), "--model", "nowhere:7"]
    )
    assert run.exit_code != 0
    assert "demo:dinov2-s" in str(run.exception) + run.output


def test_the_catalogue_lists_a_model_of_a_kind_that_the_contract_lacks(
    plugin: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision_sae_server.loading import load_state

    monkeypatch.syspath_prepend(str(plugin))
    announced = {point.name: point for point in entry_points(group=FAMILIES.group)}
    monkeypatch.setattr(FAMILIES, "_announced", announced)
    monkeypatch.setattr(FAMILIES, "_registered", dict(FAMILIES._registered))
    dictionary, bundle = tmp_path / "d", tmp_path / "bundle"
    for words in (
        ("train", store, dictionary, "--architecture", "pca"),
        ("build", store, dictionary, bundle),
    ):
        made = CliRunner().invoke(app, [str(word) for word in words])
        assert made.exit_code == 0, made.output
    held = load_state([bundle], ServeConfig(port=0, drain_seconds=2), None)
    with serving.serving(held) as channel:
        stub = catalog_service_pb2_grpc.CatalogServiceStub(channel)
        (model,) = stub.ListModels(catalog.ListModelsRequest()).models
    assert (model.source, model.kind) == ("example:7", model_pb2.MODEL_KIND_UNSPECIFIED)
    assert SITE in {site.name.partition("/sites/")[2] for site in model.sites}
