"""No command replaces, or puts anything into, what is not its own; and none works before it asks.

Every command that writes is run on places that are somebody's. Nothing loads a model on the way.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner
from vision_sae_client.cli import app as client_app

from tests.worlds.labels import IDENTITY, PARENT, made
from tests.worlds.tiny import picture_folder, random_sae, write_dictionary, write_store
from vision_sae.activations import store as store_layout
from vision_sae.bundles import layout as bundle_layout
from vision_sae.bundles.build import build
from vision_sae.cli import app
from vision_sae.config import BuildConfig
from vision_sae.dictionaries import artifact
from vision_sae.dictionaries.interop.conversion import export_sae
from vision_sae.files import publishing
from vision_sae.labels.store import LabelStore

FOLDERS: dict[str, str] = {
    "harvest": "harvest {w}/pictures OUT",
    "train": "train {w}/store OUT --k 2 --steps 1 --batch-size 16",
    "sweep": "sweep {w}/store OUT --config {w}/config.yaml --k 2",
    "import": "import {w}/source OUT --store {w}/store",
    "export": "export {w}/d OUT",
    "build": "build {w}/store {w}/d OUT",
    "fetch": "fetch demo:dinov2-s/blocks.10.update --to OUT",
    "export-exemplars": "export-exemplars {w}/bundle OUT",
    "review": "review {w}/bundle --out OUT",
    "blocks": "evaluate blocks {w}/bundle --prompts {w}/prompts.txt --out OUT",
    "demo": "demo --once --out OUT --work {w}/none",
    "demo work": "demo --once --out {w}/none --work OUT",
    "client encode": "encode {w}/pictures/000.png --out OUT",
    "client attribute": "attribute {w}/pictures/000.png --out OUT",
    "client steer": "steer --recipe {w}/prompts.txt --out OUT",
}
FILES: dict[str, str] = {
    "score": "score {w}/bundle {w}/labels.csv --out OUT",
    "export-labels": "export-labels {w}/labels.sqlite OUT",
    "export-labels milan": "export-labels {w}/labels.sqlite OUT --milan",
    "attribution": "evaluate attribution {w}/bundle --images {w}/pictures --out OUT",
    "edits": "evaluate edits {w}/bundle --out OUT",
    "audit": "audit {w}/bundle cat --out OUT",
    "analyse": "analyse {w}/bundle --images {w}/pictures --out OUT",
    "edit": "edit {w}/bundle --images {w}/pictures --out OUT",
}


def run(command: str, world: Path, out: Path) -> Result:
    words = [w.replace("{w}", str(world)).replace("OUT", str(out)) for w in command.split()]
    return CliRunner().invoke(app, words)


def asked(name: str, command: str, world: Path, out: Path) -> Result:
    words = [w.replace("{w}", str(world)).replace("OUT", str(out)) for w in command.split()]
    return CliRunner().invoke(client_app if name.startswith("client") else app, words)


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    picture_folder(root / "pictures", 3)
    vectors = np.random.default_rng(0).normal(size=(12, 4, 8))
    store = write_store(root / "store", [vectors])
    sae = random_sae(8, 16, 2)
    write_dictionary(root / "d", sae, store)
    build(store, root / "d", root / "bundle", BuildConfig(), progress=False)
    export_sae(sae, root / "source")
    (root / "prompts.txt").write_text("a cat\n")
    (root / "config.yaml").write_text("train: {batch_size: 16, steps: 1}\nbuild: {exemplars: 3}\n")
    (root / "labels.csv").write_text("layer,unit,description\nblocks.1.update,0,cat\n")
    labels = LabelStore(root / "labels.sqlite")
    labels.add(PARENT, [made(0, "a cat")], identity=IDENTITY)
    labels.close()
    return root


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model or asks a server before asking for the place fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    import_module("vision_sae.demo.both")  # keeps what it imports by name for all later tests

    monkeypatch.setattr("vision_sae.models.loading.load_model", refuse)
    monkeypatch.setattr("vision_sae.models.loading.load_generator", refuse)
    monkeypatch.setattr("vision_sae.steering.bundles.open_bundles", refuse)
    monkeypatch.setattr("vision_sae_client.client.Client.__init__", refuse)


def refused(result: Result, name: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("vision-sae")
    assert name in line


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["", "overwrite"])
@pytest.mark.parametrize("name", FOLDERS)
def test_folder_of_somebodys_stays_as_it_is(
    world: Path, tmp_path: Path, name: str, overwrite: list[str]
) -> None:
    home = tmp_path / "home"
    (home / "pictures of mine").mkdir(parents=True)
    (home / "pictures of mine" / "cat.png").write_bytes(b"a cat")
    (home / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(home)
    before = tree(tmp_path), tree(world)
    more = overwrite if "demo" not in name else []
    for place in ("home", "file", "link"):
        command = " ".join([FOLDERS[name], *more])
        refused(asked(name, command, world, tmp_path / place), place)
    assert (tree(tmp_path), tree(world)) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_that_is_an_input_or_the_working_directory_stays_as_it_is(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tree(world)
    for place in (Path("."), Path(".."), Path.home(), Path("/")):
        refused(asked(name, FOLDERS[name], world, place), str(place))
    for word in FOLDERS[name].split():
        given = Path(word.replace("{w}", str(world)))
        if word.startswith("{w}") and given.exists() and given.suffix != ".yaml":
            refused(asked(name, FOLDERS[name], world, given), given.name)
            if given.is_dir():
                refused(asked(name, FOLDERS[name], world, given / "new"), "new")
    assert tree(world) == before
    assert not list(tmp_path.iterdir())


KINDS = {
    "harvest": store_layout.FORMAT,
    "train": artifact.FORMAT,
    "import": artifact.FORMAT,
    "build": bundle_layout.FORMAT,
    "export": "saelens",
}


@pytest.mark.parametrize("name", KINDS)
def test_artifact_of_another_kind_stays_as_it_is(world: Path, tmp_path: Path, name: str) -> None:
    for other in {*KINDS.values(), "vision_sae.probe"} - {KINDS[name]}:
        with publishing(tmp_path / other) as (staging, manifest):
            (staging / "data").write_text("data")
            manifest["format"] = other
        before = tree(tmp_path)
        refused(run(f"{FOLDERS[name]} --overwrite", world, tmp_path / other), other)
        assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["train", "sweep", "import", "export", "build"])
def test_finished_artifact_is_replaced_only_when_asked_to(
    world: Path, tmp_path: Path, name: str
) -> None:
    place = tmp_path / "out"
    assert run(FOLDERS[name], world, place).exit_code == 0
    before = tree(tmp_path)
    other = {
        "train": " --seed 1",
        "sweep": " --steps 2",
        "build": " --config {w}/config.yaml",
    }.get(name, "")
    command = FOLDERS[name] + other
    refused(run(command, world, place), "--overwrite")
    assert tree(tmp_path) == before
    result = run(f"{command} --overwrite", world, place)
    assert result.exit_code == 0, result.output
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["train", "sweep", "build"])
def test_same_command_again_keeps_what_it_made(world: Path, tmp_path: Path, name: str) -> None:
    for _ in range(2):
        result = run(FOLDERS[name], world, tmp_path / "out")
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", FILES)
def test_file_of_somebodys_stays_as_it_is(world: Path, tmp_path: Path, name: str) -> None:
    path, folder = tmp_path / "mine.csv", tmp_path / "folder.csv"
    path.write_text("mine")
    folder.mkdir()
    before = tree(tmp_path), tree(world)
    refused(run(FILES[name], world, path), "--overwrite")
    for overwrite in ("", " --overwrite"):
        refused(run(FILES[name] + overwrite, world, folder), "folder.csv")
        for word in FILES[name].split():
            if word.startswith("{w}"):
                given = Path(word.replace("{w}", str(world)))
                result = run(FILES[name] + overwrite, world, given)
                assert result.exit_code == 2, result.output
                assert "Traceback" not in result.output
    assert (tree(tmp_path), tree(world)) == before


def test_files_are_replaced_when_asked_to(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("earlier")
    for name in ("export-labels", "export-labels milan"):
        result = run(f"{FILES[name]} --overwrite", world, path)
        assert result.exit_code == 0, result.output
        assert "a cat" in path.read_text()
