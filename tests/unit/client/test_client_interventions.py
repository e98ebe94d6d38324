"""The client's interventions and attributions, against a real server over the zoo."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from vision_sae_client import AsyncClient, Client, targets
from vision_sae_client.cli import app
from vision_sae_client.edits import edit

from tests.worlds import serving
from tests.worlds import tiny as worlds
from vision_sae.errors import InvalidInputError
from vision_sae.labels.store import LabelStore
from vision_sae.v1 import ledger_pb2

FEATURE = f"{serving.DICTIONARY}/features/0"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = serving.zoo(tmp_path_factory.mktemp("interventions"))
    with serving.address(serving.state(bundle, LabelStore("sqlite://"))) as where:
        yield where


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = worlds.picture_folder(tmp_path_factory.mktemp("pictures"), 3)
    return sorted(folder.iterdir())


def run(*words: Any, address: str) -> Any:
    return CliRunner().invoke(app, [*map(str, words), "--address", address])


def test_effects_by_group(address: str, pictures: list[Path]) -> None:
    with Client(address) as client:
        answer = client.intervene(
            pictures,
            [edit(FEATURE, "add", 2.0)],
            {"three": targets.class_logit(3)},
            groups=["with", "with", "without"],
            control_count=4,
        )
        assert [outcome.id for outcome in answer.images] == ["0", "1", "2"]
        effects = [(e.id, e.group, e.count) for e in answer.summary.effects]
        assert effects == [("three", "with", 2), ("three", "without", 1)]
        (contrast,) = answer.summary.contrasts
        with_, without = (effect.mean for effect in answer.summary.effects)
        assert (contrast.group, contrast.other) == ("with", "without")
        assert contrast.difference == pytest.approx(with_ - without)
        assert not contrast.HasField("lower")  # one picture without says nothing of chance
        with pytest.raises(InvalidInputError, match="a group for each picture"):
            client.intervene(pictures, [edit(FEATURE, "add", 2.0)], {}, groups=["with"])


def test_any_number_of_pictures_in_one_call(address: str, pictures: list[Path]) -> None:
    many = pictures * 30
    groups = ["with" if i % 3 == 0 else "without" for i in range(len(many))]
    with Client(address) as client:
        answer = client.intervene(
            many, [edit(FEATURE, "add", 2.0)], {"three": targets.class_logit(3)}, groups=groups
        )
    assert [outcome.id for outcome in answer.images] == [str(i) for i in range(90)]
    assert answer.summary.succeeded == 90
    (contrast,) = answer.summary.contrasts
    # Each group holds the same pictures over and over.
    moved = [image.change.targets[0] for image in answer.images[:3]]
    one, two, three = (target.after - target.before for target in moved)
    assert contrast.difference == pytest.approx(one - (two + three) / 2, abs=1e-6)
    assert contrast.lower <= contrast.difference + 1e-9
    assert contrast.upper >= contrast.difference - 1e-9


async def test_the_async_client_does_the_same(address: str, pictures: list[Path]) -> None:
    asked = (pictures, [edit(FEATURE, "ablate")], {"one": targets.class_logit(1)})
    with Client(address) as client:
        expected = client.intervene(*asked)
    assert expected.summary.succeeded == len(pictures)
    async with AsyncClient(address) as client:
        assert await client.intervene(*asked) == expected


def test_attribution_from_another_picture_and_of_a_probe(
    address: str, pictures: list[Path]
) -> None:
    weight = np.zeros(serving.WIDTH, dtype=np.float32)
    weight[0] = 1
    with Client(address) as client:
        answer = client.attribute(
            pictures[0], targets.probe(weight), baseline=pictures[1], faithfulness=True
        )
        (site,) = answer.sites
        assert site.ledger.reference == ledger_pb2.REFERENCE_CODE_UNSPECIFIED
        assert len(site.faithfulness) == 4
        removed = client.attribute(
            pictures[0], targets.class_logit(1), baseline=ledger_pb2.REFERENCE_CODE_BLOCK_REMOVED
        )
        assert removed.sites[0].ledger.reference == ledger_pb2.REFERENCE_CODE_BLOCK_REMOVED


def test_intervene_in_the_terminal(address: str, pictures: list[Path]) -> None:
    done = run(
        "intervene", *pictures, "--add", "0=2", "--target", "class:3", "--target",
        "class:3 vs class:1", address=address,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for words in ("000.png", "class:3 vs class:1", "on average over 3 pictures", "random features"):
        assert words in done.output
    compared = run(
        *("intervene", *pictures[:2], "--without", pictures[2], "--add", "0=2"),
        *("--target", "class:3"),
        address=address,
    )
    assert "more with than without" in compared.output
    refused = run("intervene", pictures[0], "--add", "0", address=address)
    assert refused.exit_code == 2


def test_attribute_in_the_terminal_by_several_methods(address: str, pictures: list[Path]) -> None:
    for method in ("act-x-grad", "exact-ablation"):
        done = run(
            *("attribute", pictures[0], "--target", "class:3", "--method", method), address=address
        )
        assert done.exit_code == 0, done.output
    done = run(
        *("attribute", pictures[0], "--target", "class:3 vs class:1"),
        *("--baseline", pictures[1], "--faithfulness"),
        address=address,
    )
    assert done.exit_code == 0, done.output
    assert "deletion" in done.output


def test_each_picture_of_a_stream_is_attributed_or_says_why_not(
    address: str, pictures: list[Path]
) -> None:
    with Client(address) as client:
        asked = [pictures[0], b"no picture", pictures[1]]
        logit = targets.class_logit(3)
        first, broken, last = client.stream_attribute(asked, logit, top_k=2)
        alone = client.attribute(pictures[0], logit, top_k=2)
    assert [answer.id for answer in (first, broken, last)] == ["0", "1", "2"]
    assert first.response == alone
    assert broken.error.reason == "INVALID_IMAGE"
    assert last.HasField("response")


def test_the_command_says_which_class_leads(address: str, pictures: list[Path]) -> None:
    options = ["--add", "0=2", "--control", 0, "--target", "class:3"]
    done = run("intervene", pictures[0], *options, address=address)
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if "leads before" in line]
    assert line.startswith(f"{pictures[0].name}: class ")


def test_a_model_is_shown_with_its_classes(address: str) -> None:
    with Client(address) as client:
        model = client.model("tiny")
        assert model == client.model("models/tiny")
        (listed,) = client.models()
    assert model == listed  # which has no names of classes
    done = run("info", "--model", "tiny", address=address)
    assert done.exit_code == 0, done.output
    assert f"models/tiny: tiny, {model.parameters:,} parameters, 12 sites" in done.stdout
    assert "no classes with names" in done.stdout
