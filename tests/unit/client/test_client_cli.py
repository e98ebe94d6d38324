"""What the command prints and writes, from answers made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from vision_sae_client import report
from vision_sae_client.cli import app
from vision_sae_client.cli.pictures import write_overlays
from vision_sae_client.client import Client
from vision_sae_client.errors import ClientError
from vision_sae_client.images import parse_box

from tests.conftest import ServedBundle
from tests.worlds import serving
from tests.worlds.labels import made
from tests.worlds.tiny import noise_image
from vision_sae.demo import CORPUS
from vision_sae.errors import InvalidInputError
from vision_sae.labels.store import LabelStore
from vision_sae.tensors import to_proto
from vision_sae.v1.description_pb2 import (
    DESCRIPTION_ORIGIN_PERSON,
    SCORE_METRIC_DETECTION_AUC,
    SCORE_METRIC_PMI,
    SCORE_NEGATIVES_HARD,
    Description,
    Score,
)
from vision_sae.v1.feature_pb2 import Feature
from vision_sae.v1.image_pb2 import Box, PatchGrid
from vision_sae.v1.intervention_service_pb2 import (
    ClassChange,
    ImageChange,
    ImageIntervention,
    InterveneResponse,
)
from vision_sae.v1.label_job_service_pb2 import LabelJob
from vision_sae.v1.ledger_pb2 import FeatureContribution, Ledger, SiteAttribution
from vision_sae.v1.measure_pb2 import Metric
from vision_sae.v1.model_pb2 import Model, Preprocessing
from vision_sae.version import build


def contribution(index: int, value: float, description: Description) -> FeatureContribution:
    return FeatureContribution(
        feature=Feature(
            name=f"dictionaries/a/features/{index}", index=index, description=description
        ),
        contribution=value,
        max_activation=2.5,
        heatmap=to_proto(np.eye(2, dtype=np.float16)),
    )


@pytest.fixture
def site() -> SiteAttribution:
    score = Score(metric=SCORE_METRIC_PMI, value=0.75, count=12)
    return SiteAttribution(
        dictionary="dictionaries/a",
        grid=PatchGrid(
            rows=2, cols=2, image_width=8, image_height=8, extent=Box(x0=0, y0=0, x1=8, y1=8)
        ),
        explained_variance=0.875,
        # 0.5 - 0.25 shown, 0.125 of the others, 0.0625 error: 0.4375 in all.
        ledger=Ledger(total=0.4375, remainder=0.125, remainder_count=3, sae_error=0.0625),
        features=[
            contribution(7, 0.5, Description(text="wheel", scores=[score])),
            contribution(3, -0.25, Description(abstained=True, abstention_reason="too few")),
        ],
    )


def test_the_table_says_what_fires_what_it_means_and_that_the_sum_checks(
    site: SiteAttribution,
) -> None:
    lines = report.attribution(site).splitlines()
    assert lines[0].split() == ["rank", "feature", "activation", "contribution", "label", "score"]
    assert lines[2].split() == [
        *("1", "dictionaries/a/features/7", "2.500", "+0.50000", "wheel", "(guess)", "pmi", "0.75")
    ]
    assert lines[3].split()[-2:] == ["(abstained)", "-"]
    assert "explained variance 0.875" in lines[5]
    assert "sum checks: shown +0.25000, remainder +0.12500 (3 features)" in lines[6]
    assert "= +0.43750; total +0.43750" in lines[6]


def test_labels_that_nobody_confirmed_are_marked_as_guesses() -> None:
    guess = Description(text="wheel")
    judged = Score(metric=SCORE_METRIC_DETECTION_AUC, value=0.75, count=9, judge="other-clip")
    confirmed = Description(text="wheel", judged_by="captions", scores=[judged])
    abstained = Description(abstained=True)
    assert [report.is_guess(made) for made in (guess, confirmed, abstained)] == [True, False, False]
    assert [report.label(made) for made in (guess, confirmed)] == ["wheel (guess)", "wheel"]
    said = report.description("7", confirmed).splitlines()
    assert said[:2] == ["7: wheel", "  confirmed by: captions"]
    assert said[2].endswith("(9 pictures), judged by other-clip")
    assert "confirmed" not in report.description("7", guess)


def test_a_model_is_shown_with_the_names_of_its_classes() -> None:
    size = Preprocessing(width=224, height=224, resize="resize shorter side to 256, crop centre")
    shown = Model(
        name="models/m",
        source="timm:vit",
        parameters=5_000_000,
        preprocessing=size,
        embedding_width=192,
        class_names=["tench", "goldfish"],
    )
    assert report.model(shown).splitlines() == [
        "models/m: timm:vit, 5,000,000 parameters, 0 sites",
        "  pictures of 224 x 224 pixels: resize shorter side to 256, crop centre",
        "  embeddings of 192 numbers",
        "  class 0: tench",
        "  class 1: goldfish",
    ]


def test_a_figure_of_a_feature_stands_beside_chance() -> None:
    figure = Metric(name="monosemanticity", value=0.5, lower=0.25, upper=0.75, control=0.125)
    said = report.statistics(Feature(metrics=[figure]))
    assert "  monosemanticity: 0.500, 95 % within 0.250 to 0.750, by chance 0.125" in said


def test_classes_that_lead_are_named() -> None:
    change = ImageChange(
        classes=[
            ClassChange(index=3, label="dog", logit_before=2, logit_after=1),
            ClassChange(index=5, logit_before=1, logit_after=2),
        ]
    )
    answer = InterveneResponse(images=[ImageIntervention(change=change)])
    said = report.intervention(answer, ["a.png"])
    assert "a.png: class 3 (dog) leads before, class 5 after" in said


def test_a_job_says_who_created_it() -> None:
    assert ", for ada" in report.job(LabelJob(name="labelJobs/a", creator="ada"))


def test_a_sum_that_does_not_check_is_said_so(site: SiteAttribution) -> None:
    site.ledger.total = 0.5
    assert "sum DOES NOT CHECK" in report.attribution(site)


def test_an_overlay_per_feature_is_written(site: SiteAttribution, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    overlays = write_overlays(tmp_path / "p.png", site.grid, site.features, tmp_path / "out")
    assert overlays == 2
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["01-feature-7.png", "02-feature-3.png"]
    with Image.open(tmp_path / "out" / written[0]) as overlay:
        assert overlay.size == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["encode", "good.png"], "good.png: "),
        (["intervene", "good.png", "good.png", "--add", "dictionaries/a/features/0=1"], ""),
        (["encode", "cut.png"], "cut.png: "),
        (["attribute", "good.png", "--target", "image:cut.png"], "cut.png: "),
        (["intervene", "good.png", "cut.png", "--add", "dictionaries/a/features/0=1"], "cut.png: "),
    ],
)
def test_a_picture_that_the_server_cannot_read_is_named(
    arguments: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    noise_image(8, 8).save("good.png")
    Path("cut.png").write_bytes(Path("good.png").read_bytes()[:60])

    def refuse(*_: object, **__: object) -> None:
        code = grpc.StatusCode.INVALID_ARGUMENT
        raise ClientError(code, "the image is broken", reason="INVALID_IMAGE", field="image")

    for call in ("encode", "attribute", "intervene"):
        monkeypatch.setattr(Client, call, refuse)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr == f"vision-sae-client: {named}the image is broken\n"


def test_a_missing_server_is_one_line_with_a_hint_and_exit_2() -> None:
    done = CliRunner().invoke(app, ["info", "--address", "127.0.0.1:1", "--timeout", "5"])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "vision-sae serve BUNDLE" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attribute", "nothing.png"], "nothing.png cannot be read"),
        (["attribute", "x.png", "--target", "dog"], "no target"),
        (["search"], "one of a text, a feature or an image"),
        (["search", "--image", "x.png", "--box", "1,2"], "'1,2' is no box"),
        (["search", "--text", "dog", "--image", "x.png"], "one of a text, a feature or an image"),
        (["describe", "a/features/1", "--text", "x", "--abstain", "y"], "give only one"),
        (["label", "--cancel"], "name the job"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, [*arguments, "--address", "127.0.0.1:1", "--dictionary", "a"])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_box_is_four_numbers() -> None:
    assert parse_box("1,2.5,3,4") == (1, 2.5, 3, 4)
    with pytest.raises(InvalidInputError):
        parse_box("1,2,3,x")


def test_scores_say_against_what_how_sure_and_what_other_texts_reach() -> None:
    score = Score(
        metric=SCORE_METRIC_DETECTION_AUC,
        negatives=SCORE_NEGATIVES_HARD,
        value=0.75,
        count=20,
        lower=0.5,
        upper=1,
        control=0.25,
    )
    made = Description(
        text="dog", origin=DESCRIPTION_ORIGIN_PERSON, scores=[score], judged_by="person"
    )
    assert report.description("dictionaries/a/features/1", made).splitlines() == [
        "dictionaries/a/features/1: dog",
        "  by: a person",
        "  detection_auc: 0.750 (20 pictures), hard negatives, 95 % within 0.500 to 1.000, "
        "other texts 0.250",
    ]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server over two features with guesses for labels; the option that names it."""
    from vision_sae_server import app as server

    monkeypatch.setattr(server, "_LAME_DUCK_SECONDS", 0)
    bundle, labels = serving.zoo(tmp_path, described=False), LabelStore("sqlite://")
    guesses = [made(0, "cat"), made(1, "dog"), *(made(i, None) for i in range(2, serving.WIDTH))]
    labels.add(serving.DICTIONARY, guesses, identity="")
    with serving.address(serving.state(bundle, labels)) as address:
        yield ["--address", address]


def run(command: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, [command, *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_label_is_read_written_withdrawn_and_found(zoo: list[str]) -> None:
    assert run("describe", "0", *zoo).startswith("dictionaries/zoo/features/0: cat (guess)\n")
    assert "labelled, 0 of them confirmed" in run("info", *zoo)
    assert "exemplar" in run("describe", "0", "--text", "a lynx", *zoo)
    assert "2 labelled, 1 of them confirmed" in run("info", *zoo)
    found = run("search", "--text", "lynx", *zoo).splitlines()
    assert found[2].split() == ["1", "0.000", "label", "dictionaries/zoo/features/0", "a", "lynx"]
    near = run("search", "--features", "--feature", "0", *zoo).splitlines()
    assert near[2].split()[2] == "direction"
    said = run("describe", "0", "--abstain", "mixed", *zoo)
    assert "(abstained)\n  why: mixed\n  by: a person" in said
    assert len(run("search", "--text", "lynx", *zoo).splitlines()) == 2


def test_a_job_is_made_followed_and_listed(zoo: list[str]) -> None:
    lines = run("label", "--filter", "count > 0", "--force", *zoo).splitlines()
    assert "queued, dictionaries/zoo by caption-pmi: 0 of 3" in lines[0]
    units = [line for line in lines if line.startswith("dictionaries/")]
    assert [line.removesuffix(" (guess)") for line in units] == [
        "dictionaries/zoo/features/0: cat",
        "dictionaries/zoo/features/1: dog",
        "dictionaries/zoo/features/2: (abstained)",
    ]
    assert "succeeded" in lines[-1]
    assert "3 of 3, 2 labelled, 1 abstained, 0 failed" in lines[-1]
    name = lines[0].split()[0]
    assert run("label", "--list", *zoo).split()[0] == name
    assert "succeeded" in run("label", name, "--cancel", *zoo)  # an ended job stays as it is
    final = json.loads(run("label", name, "--detach", "--json", *zoo))
    assert final["state"] == "LABEL_JOB_STATE_SUCCEEDED"


def test_a_picture_is_encoded_with_what_says_most_first(zoo: list[str], tmp_path: Path) -> None:
    noise_image(16, 16, seed=3).save(tmp_path / "p.png")
    picture, out = str(tmp_path / "p.png"), tmp_path / "out"
    whole = json.loads(run("encode", picture, "--json", "--top-k", "1000", *zoo))
    last = whole["features"][-1]["feature"]["name"]
    run("describe", last, "--text", "a lynx", *zoo)
    lines = run("encode", picture, "--top-k", "2", "--out", str(out), *zoo).splitlines()
    assert lines[0].split()[-3:] == ["label", "confirmed", "by"]
    assert lines[2].split()[:2] == ["1", last]
    assert lines[2].split()[-3:] == ["a", "lynx", "person"]
    assert lines[-1].startswith(f"2 of {whole['active_count']} features that fire")
    assert len(list(out.glob("*.png"))) == 2
    options = ["--json", "--order", "max-activation", "--top-k", "1000"]
    strongest = json.loads(run("encode", picture, *options, *zoo))["features"]
    found = [item["max_activation"] for item in strongest]
    assert found == sorted(found, reverse=True)
    fewer = json.loads(run("encode", picture, "--json", "--box", "0,0,8,8", *zoo))
    assert fewer["active_count"] < whole["active_count"]


@pytest.mark.slow
def test_attribute_on_a_real_server(served: ServedBundle, tmp_path: Path) -> None:
    picture = sorted((CORPUS / "heldout" / "photographs").glob("*.webp"))[0]
    arguments = [str(picture), "--address", served.address, "--top-k", "4"]
    done = CliRunner().invoke(app, ["attribute", *arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("dictionaries/tiny/features/") == 4
    assert "sum checks" in done.stdout
    assert len(list(tmp_path.glob("*.png"))) == 4
    whole = CliRunner().invoke(app, ["attribute", *arguments, "--json"])
    assert len(json.loads(whole.stdout)["features"]) == 4
    assert "special_tokens" not in json.loads(whole.stdout)
    everywhere = CliRunner().invoke(app, ["attribute", *arguments, "--json", "--special-tokens"])
    assert json.loads(everywhere.stdout)["special_tokens"] != 0


def test_the_command_tells_its_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, build())
