"""The command line on a tiny model from a local directory."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from typer.testing import CliRunner, Result

import vision_sae
from tests.worlds.tiny import picture_folder
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.read import read_bundle
from vision_sae.cli import app
from vision_sae.config import DescribeConfig, ServeConfig
from vision_sae.models.loading import load_model

SIZES = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
COMMANDS = (
    *("harvest", "train", "sweep", "import", "export", "build", "evaluate"),
    *("describe", "label", "score", "export-labels", "export-exemplars"),
    *("audit", "analyse", "edit", "serve", "demo", "dictionaries", "fetch", "doctor"),
)


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def succeed(*args: object) -> Result:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``model`` and ``pictures``, run through all four commands."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", **(SIZES | {"patch_size": 8}))
    save_for_hf(
        module, root / "model", model_args=SIZES | {"patch_size": 8}, safe_serialization=True
    )
    picture_folder(root / "pictures", 12)
    (root / "pictures" / "bad.png").write_bytes(b"not a picture")
    config = root / "config.yaml"
    config.write_text(
        "train: {expansion: 2, k: 4, steps: 4, batch_size: 64}\n"
        "describe: {describer: caption-pmi, metrics: []}\n"
    )
    harvest = ["harvest", root / "pictures", root / "store", "--model", root / "model"]
    (root / "harvest.txt").write_text(succeed(*harvest, "--site", "blocks.1.update").output)
    held = ["--heldout", root / "store", "--config", config]
    (root / "train.txt").write_text(succeed("train", root / "store", root / "d", *held).output)
    made = succeed("build", root / "store", root / "d", root / "bundle")
    (root / "build.txt").write_text(made.output)
    (root / "describe.txt").write_text(
        succeed("describe", root / "bundle", "--config", config).output
    )
    return root


def test_help_lists_the_commands() -> None:
    output = succeed("--help").output
    assert all(command in output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert "Usage" in succeed(command, "--help").output


def test_version() -> None:
    assert succeed("--version").output.strip() == vision_sae.__version__


def test_harvest_counts_pictures_and_names_those_skipped(world: Path) -> None:
    output = (world / "harvest.txt").read_text()
    assert "12 images, 192 patches" in output
    assert "12 pictures read, 1 skipped: 1 broken" in output
    assert "skipped bad.png: the bytes are not" in output


def test_harvest_says_what_captions_and_folders_hold_beside_pictures(
    world: Path, tmp_path: Path
) -> None:
    picture_folder(tmp_path / "p", 2)
    (tmp_path / "p" / "notes.txt").touch()
    (tmp_path / "p" / "captions.jsonl").write_text('{"file": "gone.png", "caption": "a cat"}')
    harvest = ["harvest", tmp_path / "p", tmp_path / "s", "--model", world / "model"]
    refused = run(*harvest, "--site", "blocks.1.update", "--strict")
    assert refused.exit_code == 2
    assert "notes.txt" in refused.output
    for _ in range(2):  # of a store that is there already, the same is said
        output = succeed(*harvest, "--site", "blocks.1.update").output
        assert "2 pictures read, 1 skipped: 1 of another kind" in output
        assert "match no picture: 1 (line 1: 'gone.png')" in output


def test_strict_ends_at_a_broken_picture_and_names_it(world: Path, tmp_path: Path) -> None:
    pictures = world / "pictures"
    of_model = ["--model", world / "model", "--site", "blocks.1.update"]
    steps = ["--config", world / "config.yaml", "--steps", 1]
    for command in (
        ["harvest", pictures, tmp_path / "s", *of_model],
        ["harvest", pictures, world / "store", *of_model],  # made already, without it
        ["train", world / "store", tmp_path / "d", *steps, "--end-to-end", 1, "--images", pictures],
        ["evaluate", "dictionary", world / "d", "--store", world / "store", "--images", pictures],
        ["evaluate", "attribution", world / "bundle", "--images", pictures],
    ):
        refused = run(*command, "--strict")
        assert (refused.exit_code, "bad.png: the bytes" in refused.output) == (2, True)
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "d").exists()


def test_end_to_end_training_skips_a_broken_picture_and_says_so(
    world: Path, tmp_path: Path
) -> None:
    output = succeed(
        *("train", world / "store", tmp_path / "d", "--config", world / "config.yaml"),
        *("--steps", 1, "--end-to-end", 1, "--images", world / "pictures"),
    ).output
    assert output.count("12 pictures read, 1 skipped: 1 broken") == 2  # before and after
    assert "skipped bad.png: the bytes are" in output


def test_broken_captions_are_one_line_that_names_theirs(world: Path, tmp_path: Path) -> None:
    picture_folder(tmp_path / "p", 2)
    row = b'{"file":"0.png","caption":"a cat"}\n'
    (tmp_path / "p" / "captions.jsonl").write_bytes(row * 30_000 + row.replace(b"cat", b"c\xe9t"))
    refused = run("harvest", tmp_path / "p", tmp_path / "s", "--model", world / "model")
    assert refused.exit_code == 2
    assert "captions.jsonl, line 30001: byte 0xe9 is no text" in refused.output
    assert len(refused.output) < 400


def test_train_prints_the_metrics_of_the_held_out_store(world: Path) -> None:
    assert re.search(r"heldout: .*explained_variance 0\.\d+", (world / "train.txt").read_text())


def test_flags_of_train_go_before_its_file(world: Path, tmp_path: Path) -> None:
    from vision_sae.dictionaries.artifact import load_dictionary

    options = ["--config", world / "config.yaml", "--k", 5, "--steps", 1]
    succeed("train", world / "store", tmp_path / "d", *options)
    _, manifest = load_dictionary(tmp_path / "d")
    assert (manifest["dictionary"]["k"], manifest["dictionary"]["width"]) == (5, 64)


def test_build_prints_rows_recall_and_explained_variance(world: Path) -> None:
    output = (world / "build.txt").read_text()
    assert "192 patches in Flat, recall@10 1.000, EV" in output


def test_describe_prints_labelled_and_abstained(world: Path) -> None:
    # The pictures have no captions, so every one of the 64 features abstains.
    assert "0 labelled, 64 abstained" in (world / "describe.txt").read_text()


def test_published_bundle_opens(world: Path) -> None:
    bundle = read_bundle(world / "bundle")
    assert bundle.manifest["model"]["name"] == str(world / "model")
    assert len(bundle.descriptions) == 64


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("harvest", "{w}/nowhere", "{t}/s"), "nowhere"),
        (("harvest", "{w}/pictures", "{t}/s", "--model", "no_such_model"), "no_such_model"),
        (("harvest", "{w}/pictures", "{t}/s", "--store-dtype", "int8"), "harvest.dtype"),
        (
            ("harvest", "{w}/pictures", "{t}/s", "--model", "{w}/model", "--site", "blocks.9.mlp"),
            "blocks.9.mlp",
        ),
        (("train", "{w}/nowhere", "{t}/d"), "nowhere"),
        (("train", "{w}/store", "{t}/d", "--site", "blocks.0.mlp"), "blocks.0.mlp"),
        (("train", "{w}/store", "{t}/d", "--k", "0"), "train.k"),
        (("train", "{w}/store", "{t}/d", "--batch-size", "1000000"), "--batch-size"),
        (("train", "{w}/store", "{t}/d", "--config", "{w}/nowhere.yaml"), "nowhere.yaml"),
        (("build", "{w}/store", "{w}/nowhere", "{t}/b"), "nowhere"),
        (("describe", "{w}/nowhere"), "nowhere"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_bad_argument_is_one_line_and_status_2(
    world: Path, tmp_path: Path, args: tuple[str, ...], names: str
) -> None:
    result = run(*(arg.format(w=world, t=tmp_path) for arg in args))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("vision-sae: ")
    assert names in line


def test_option_that_does_not_exist_is_status_2() -> None:
    result = run("train", "a", "b", "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr


def test_serve_hands_over_how_labels_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision_sae_server import start as server

    given: list[object] = []

    def run_(bundles: object, serve: object, describe: object, **_: object) -> None:
        given.extend((bundles, serve, describe))

    monkeypatch.setattr(server, "run", run_)
    config = tmp_path / "config.yaml"
    config.write_text("describe: {describer: milan, milan: {beam: 7}}\nserve: {port: 0}\n")
    succeed("serve", tmp_path, "--clip", "demo:clip", "--config", config)
    bundles, serve, describe = given
    assert bundles == [tmp_path]
    assert isinstance(serve, ServeConfig)
    assert (serve.port, serve.clip) == (0, "demo:clip")
    assert isinstance(describe, DescribeConfig)
    assert (describe.describer, describe.milan.beam) == ("milan", 7)


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_serve_tells_its_steps_and_listens_in_both_families(world: Path, host: str) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host.strip("[]"), 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine cannot bind {host}: {error}")
    command = [sys.executable, "-m", "vision_sae.cli", "serve", "bundle", "--host", host]
    with subprocess.Popen(
        [*command, "--port", "0", "--metrics-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=world,
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        asked = subprocess.run(
            [sys.executable, "-m", "vision_sae_server.health", address], check=False
        )
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    assert (asked.returncode, server.returncode) == (0, 0)
    assert address.startswith(f"{host}:")
    steps = re.findall(r"INFO vision_sae_server: \[ *\d+\.\d s\] (.*)", log)
    assert [step.split()[0] for step in steps] == [
        *(address, "metrics", "importing", "reading", "loading", "measuring", "taking"),
        *("computing", "serving"),
    ]
    assert "Traceback" not in log


def test_a_harvest_on_several_devices_makes_the_store_of_one(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = ["--model", world / "model", "--site", "blocks.1.update", "--batch-size", 3]
    succeed("harvest", world / "pictures", tmp_path / "alone", *passes)
    loaded: list[str] = []

    def load(name: str, *, device: str) -> object:
        loaded.append(device)
        return load_model(name, device="cpu")

    monkeypatch.setattr("vision_sae.devices.several", lambda: ("cpu", "cuda:0"))
    monkeypatch.setattr("vision_sae.models.loading.load_model", load)
    succeed("harvest", world / "pictures", tmp_path / "together", *passes)
    assert loaded == ["cpu", "cuda:0"]
    alone, together = (ActivationStore(tmp_path / name) for name in ("alone", "together"))
    assert together.manifest["files"] == alone.manifest["files"]
