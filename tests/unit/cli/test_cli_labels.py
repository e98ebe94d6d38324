"""From a model to labels of all its neurons, and what they are used for, on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from tests.unit.cli.test_cli import SIZES, run, succeed
from tests.worlds.contrastive import PlantedClip
from tests.worlds.labels import made
from vision_sae.descriptions.protocol import Description
from vision_sae.labels.entries import Unit
from vision_sae.labels.files.annotations import read_annotations
from vision_sae.labels.jobs.queue import LabelJobs
from vision_sae.labels.store import LabelStore

PICTURES = 40
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``, pictures in one folder a colour, and ``labels.sqlite`` of every neuron."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    sizes = SIZES | {"patch_size": 8}
    module = timm.create_model("vit_tiny_patch16_224", **sizes)
    save_for_hf(module, root / "model", model_args=sizes, safe_serialization=True)
    random = np.random.default_rng(0)
    lines = []
    for i in range(PICTURES):
        colour = list(COLOURS)[i % 2]
        pixels = np.array(COLOURS[colour]) + random.integers(-25, 25, (32, 32, 3))
        file = f"{colour}/{i:02}.png"
        (root / "pictures" / colour).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / "pictures" / file)
        lines.append(json.dumps({"file": file, "caption": f"a {colour} wall"}))
    (root / "pictures" / "captions.jsonl").write_text("\n".join(lines))
    (root / "config.yaml").write_text("describe: {describer: caption-pmi, metrics: []}\n")
    (root / "label.txt").write_text(label(root))
    return root


def label(root: Path, *more: object) -> str:
    return succeed(
        *("label", root / "model", "--images", root / "pictures", "--site", "blocks.*.mlp"),
        *("--labels", root / "labels.sqlite", "--work", root / "work"),
        *("--config", root / "config.yaml", *more),
    ).output


@pytest.fixture(scope="module")
def exemplars(world: Path) -> Path:
    """The exemplars of every neuron in MILAN's layout."""
    succeed("export-exemplars", neurons(world), world / "milan")
    return world / "milan"


def neurons(root: Path) -> Path:
    (found,) = (path for path in (root / "work").iterdir() if (path / "manifest.json").is_file())
    return found


def used(root: Path, command: str, *more: object) -> str:
    """The output of a command that uses the labels, whether a judge has confirmed them or not."""
    out = ["--labels", root / "labels.sqlite", "--guesses", "--out", root / f"{command}.json"]
    return succeed(command, neurons(root), *more, *out).output


def test_label_labels_every_neuron_of_the_matching_sites(world: Path) -> None:
    # Two blocks of 4 x 32 neurons.
    output = (world / "label.txt").read_text()
    assert "succeeded" in output
    assert "0 failed of 256" in output


def test_label_given_again_has_nothing_to_do(world: Path) -> None:
    assert label(world).splitlines()[-1] == (world / "label.txt").read_text().splitlines()[-1]


def test_neurons_of_a_model_need_pictures(world: Path) -> None:
    refused = run("label", world / "model", "--labels", world / "l.sqlite", "--work", world / "w")
    assert refused.exit_code == 2
    assert "--images" in refused.output


def test_audit_finds_neurons_by_their_labels(world: Path) -> None:
    output = used(world, "audit", "red")
    findings = json.loads((world / "audit.json").read_text())
    assert findings
    for finding in findings:
        assert "red" in finding["text"].split(", ")
        assert finding["captions"].count("a red wall") >= 6
    assert f"{len(findings)} of" in output
    assert output.count(" (guess)") == sum(not finding["judged_by"] for finding in findings)
    assert "labels confirmed by an independent judge, and" in output


def test_analyse_reports_what_kinds_of_neuron_are_worth(world: Path) -> None:
    output = used(world, "analyse", "--images", world / "pictures", "--draws", 2)
    made = json.loads((world / "analyse.json").read_text())
    assert made["accuracy"] == 1  # the colours are easily told apart
    assert made["pictures"] == PICTURES // 2
    colour = next(effect for effect in made["effects"] if effect["kind"] == "colour")
    assert colour["units"] > 0
    assert 0 <= colour["guesses"] <= colour["units"]
    assert "units of colour" in output


def test_edit_reports_robustness_against_painted_words(world: Path) -> None:
    output = used(world, "edit", "--images", world / "pictures", "--remove", "blue", "--draws", 1)
    made = json.loads((world / "edit.json").read_text())
    assert made["before"]["plain"] == 1
    assert made["units"] > 0
    assert 0 <= made["guesses"] <= made["units"]
    assert "recovered" in output


def test_broken_pictures_are_skipped_and_told_or_end_the_command(
    world: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(world / "pictures", pictures)
    (pictures / "red" / "05.png").write_bytes((pictures / "red" / "04.png").read_bytes()[:200])
    using = ["--images", pictures, "--labels", world / "labels.sqlite", "--guesses", "--draws", 1]
    new = ["--labels", tmp_path / "labels.sqlite", "--work", tmp_path / "work"]
    new += ["--config", world / "config.yaml"]
    for command in (
        ["label", world / "model", "--images", pictures, "--site", "blocks.0.mlp", *new],
        ["analyse", neurons(world), *using],
        ["edit", neurons(world), *using, "--remove", "blue"],
    ):
        refused = run(*command, "--strict")
        assert (refused.exit_code, "red/05.png: the image is broken" in refused.output) == (2, True)
        output = succeed(*command).output
        assert "40 pictures read, 1 skipped: 1 broken" in output
        assert "skipped red/05.png: the image is broken or truncated" in output


def test_guesses_are_used_only_when_asked_for(world: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.sqlite"
    store = LabelStore(labels)
    parent = LabelStore(world / "labels.sqlite").parents()[0]
    texts = ["a red wall", "a blue wall", "a red door", None]
    store.add(parent, [made(unit, text) for unit, text in enumerate(texts)], identity="")
    pictures = ("--images", world / "pictures")
    for command, *more in (("audit", "red"), ("analyse", *pictures), ("edit", *pictures)):
        refused = run(command, neurons(world), *more, "--labels", labels)
        assert refused.exit_code == 2
        said = " ".join(refused.output.split())
        assert "3 have a guess, and --guesses uses these" in said
    store.edit(Unit(parent, 2), "a red door")
    out = tmp_path / "audit.json"
    options = ("--labels", labels, "--out", out)
    output = succeed("audit", neurons(world), "red", *options).output
    (finding,) = json.loads(out.read_text())
    assert (finding["index"], finding["judged_by"]) == (2, "person")
    assert "1 labels confirmed by an independent judge; " in output
    assert "2 guesses are left out (--guesses uses them)" in output
    assert "(guess)" not in output
    output = succeed("audit", neurons(world), "red", *options, "--guesses", "--overwrite").output
    assert "1 labels confirmed by an independent judge, and 2 guesses\n" in output
    assert "0: a red wall (guess)" in output
    found = {each["index"]: each["judged_by"] for each in json.loads(out.read_text())}
    assert found == {0: "", 2: "person"}


def test_units_without_labels_are_refused(world: Path) -> None:
    LabelStore(world / "empty.sqlite").close()
    refused = run("audit", neurons(world), "red", "--labels", world / "empty.sqlite")
    assert refused.exit_code == 2
    assert "no unit" in refused.output


def test_folder_without_evidence_is_refused(world: Path) -> None:
    refused = run("audit", world / "pictures", "red")
    assert refused.exit_code == 2
    assert "is neither a bundle, nor evidence" in refused.output


def test_exemplars_of_an_unknown_model_are_refused(world: Path, exemplars: Path) -> None:
    refused = run("audit", exemplars, "red", "--labels", world / "labels.sqlite")
    assert refused.exit_code == 2
    assert "do not say of what model" in " ".join(refused.output.split())


def test_pictures_of_one_class_are_refused(world: Path) -> None:
    refused = run(
        *("analyse", neurons(world), "--images", world / "pictures" / "red"),
        *("--labels", world / "labels.sqlite", "--guesses"),
    )
    assert refused.exit_code == 2
    assert "two classes" in refused.output


def test_labels_are_exported_with_who_made_them(world: Path) -> None:
    out = world / "labels.jsonl"
    succeed("export-labels", world / "labels.sqlite", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 256
    assert {row["describer"] for row in rows} == {"caption-pmi"}
    assert [row["judged_by"] for row in rows if row["text"]] == [
        row["details"].get("judged_by", "") for row in rows if row["text"]
    ]
    assert {row["unit"].rpartition("/units/")[0].rpartition("/")[2] for row in rows} == {
        "blocks.0.mlp",
        "blocks.1.mlp",
    }
    some = succeed(
        *("export-labels", world / "labels.sqlite", world / "one.csv"),
        *("--units", rows[0]["unit"].rpartition("/units/")[0]),
    )
    assert "128 labels" in some.output


def test_exemplars_are_exported_in_milans_layout(exemplars: Path) -> None:
    images = np.load(exemplars / "blocks.1.mlp" / "images.npy", mmap_mode="r")
    assert images.shape[1:] == (15, 3, 224, 224)
    assert images.dtype == np.uint8


def test_exemplars_in_milans_layout_are_labelled_and_scored(
    exemplars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = PlantedClip(("red", "blue"), cells=4)
    for module in ("descriptions.toolbox", "labels.batch"):
        monkeypatch.setattr(f"vision_sae.{module}.load_model", lambda _name, **_: clip)
    (tmp_path / "words.txt").write_text("red\nblue\n")
    (tmp_path / "settings.yaml").write_text(
        f"describe:\n  contrastive:\n    vocabulary: {tmp_path / 'words.txt'}\n"
    )
    options = ("--work", tmp_path / "work", "--config", tmp_path / "settings.yaml")
    labels = tmp_path / "labels.sqlite"
    made = succeed(
        "label", exemplars, "--labels", labels, "--describer", "contrastive", *options
    ).output
    sites = np.unique([path.parent.name for path in exemplars.glob("*/images.npy")])
    assert f"failed of {LabelJobs(LabelStore(labels)).all()[0].total}" in made
    parents = LabelStore(labels).parents()
    assert parents == [f"models/milan/sites/{site}" for site in sites]
    (tmp_path / "labels.csv").write_text(
        f"layer,unit,description\n{sites[0]},0,red\n{sites[0]},1,blue\n"
    )
    output = succeed("score", exemplars, tmp_path / "labels.csv", *options).output
    assert f"models/milan/sites/{sites[0]}: 2 labels" in output


def scored(
    world: Path, folder: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[dict[str, Any]]]:
    """What `score` prints and writes of neurons 0 to 19 of block 0, said to be red and blue in
    turn, and of what ``table`` adds. Its first line names the columns."""
    clip = PlantedClip(("red", "blue"), cells=4)
    monkeypatch.setattr("vision_sae.descriptions.toolbox.load_model", lambda _name, **_: clip)
    head, *more = table.splitlines(keepends=True)
    words = [f"blocks.0.mlp,{unit},{('red', 'blue')[unit % 2]}\n" for unit in range(20)]
    (folder / "labels.csv").write_text("".join([head, *words, *more]))
    output = succeed(
        *("score", neurons(world), folder / "labels.csv", "--work", folder / "probes"),
        *("--out", folder / "scores.jsonl"),
    ).output
    lines = (folder / "scores.jsonl").read_text().splitlines()
    return output, [json.loads(line) for line in lines]


def test_labels_of_others_are_scored(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows = scored(world, tmp_path, "layer,unit,description\n", monkeypatch)
    assert "blocks.0.mlp: 20 labels" in output
    assert "has no label for blocks.1.mlp" in output
    assert [row["unit"].rpartition("/units/")[2] for row in rows] == [str(i) for i in range(20)]
    assert [row["text"] for row in rows] == ["red", "blue"] * 10
    share = sum(not row["abstained"] for row in rows) / 20
    assert f"{share:.1%} better than chance" in output
    assert "detection_auc" in {score["metric"] for row in rows for score in row["scores"]}


def test_the_words_of_several_people_are_scored_each(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "layer,unit,summary\nblocks.0.mlp,4,blue\nblocks.0.mlp,5,red\n"
    output, rows = scored(world, tmp_path, table, monkeypatch)
    assert "blocks.0.mlp, text 1 of a unit: 20 labels" in output
    assert "blocks.0.mlp, text 2 of a unit: 2 labels" in output
    assert [row["text"] for row in rows if row["unit"].endswith("/units/4")] == ["red", "blue"]


def test_scores_go_to_a_file_whose_format_is_known_before_they_are_made(
    world: Path, tmp_path: Path
) -> None:
    refused = run("score", neurons(world), tmp_path / "labels.csv", "--out", tmp_path / "s.txt")
    assert refused.exit_code == 2
    assert "has an unknown format" in refused.output


def test_layers_of_one_name_do_not_go_into_one_milan_table(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "labels.sqlite")
    for model in "ab":
        made = [Description(0, "a dog", "", "caption-pmi", 1)]
        store.add(f"models/{model}/sites/blocks.0.mlp", made, identity="")
    store.close()
    refused = run("export-labels", tmp_path / "labels.sqlite", tmp_path / "m.csv", "--milan")
    assert refused.exit_code == 2
    assert "--units" in refused.output
    assert not (tmp_path / "m.csv").exists()


def test_labels_go_into_milans_table_and_are_read_from_it(world: Path) -> None:
    out = world / "milan.csv"
    said = succeed("export-labels", world / "labels.sqlite", out, "--milan").output
    store = LabelStore(world / "labels.sqlite")
    texts = {parent.rpartition("/")[2]: store.texts(parent) for parent in store.parents()}
    assert read_annotations(out) == {layer: [found] for layer, found in texts.items() if found}
    assert f"{sum(map(len, texts.values()))} labels" in said
