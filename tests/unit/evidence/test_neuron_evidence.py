"""Evidence of raw neurons, collected in one pass that can be interrupted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worlds.tiny import picture_folder, tiny_model
from vision_sae.config import NeuronConfig
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.evidence.neuron_pass import collect_neurons
from vision_sae.evidence.neurons import Neurons, matching_sites
from vision_sae.files import write_json
from vision_sae.models.vit import VitModel
from vision_sae.pictures.folder import Picture, image_folder
from vision_sae.pictures.reading import Reading

CONFIG = NeuronConfig(sites=("blocks.0.mlp", "blocks.2.mlp"), batch_size=4, checkpoint_batches=1)


@pytest.fixture
def model() -> VitModel:
    return tiny_model()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return image_folder(picture_folder(tmp_path / "pictures", 10))


def collect(model: VitModel, pictures: list[Picture], directory: Path) -> Neurons:
    return collect_neurons(model, pictures, directory, CONFIG, progress=False)


def test_peaks_and_maps_are_those_of_the_model(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    evidence = collect(model, pictures, tmp_path / "n").evidence("blocks.2.mlp")
    images = torch.stack([model.preprocess(p.load()) for p in pictures])
    with torch.inference_mode(), model.capture(["blocks.2.mlp"]) as captured:
        embedding = model.forward(images).embedding
    values = captured["blocks.2.mlp"][:, 1:].numpy()  # without CLS
    assert evidence.width == 128
    np.testing.assert_allclose(evidence.peaks(5), values[:, :, 5].max(1).clip(0), atol=1e-3)
    strongest = evidence.firings(5)[0]
    assert strongest.image == values[:, :, 5].max(1).argmax()
    np.testing.assert_allclose(
        strongest.map.ravel(), values[strongest.image, :, 5].clip(0), atol=1e-3
    )
    np.testing.assert_allclose(evidence.embeddings, embedding.numpy(), atol=1e-4)


def test_files_that_cannot_be_read_are_listed_and_told(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    pictures[3].path.write_bytes(b"")
    for _ in range(2):  # made, and found again
        reading = Reading()
        found = collect_neurons(
            model, pictures, tmp_path / "n", CONFIG, reading=reading, progress=False
        )
        assert [(one.id, one.reason) for one in found.skipped] == [(pictures[3].id, "broken")]
        assert reading.summary() == "9 pictures read, 1 skipped: 1 broken"
    with pytest.raises(InvalidInputError, match=rf"{pictures[3].id}: the image is empty"):
        collect_neurons(model, pictures, tmp_path / "m", CONFIG, reading=Reading(strict=True))


def test_names_pictures_and_thumbnails(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    first, last = collect(model, pictures, tmp_path / "n")
    assert (first.name, last.name) == (
        "models/tiny/sites/blocks.0.mlp",
        "models/tiny/sites/blocks.2.mlp",
    )
    assert [image.id for image in first.images] == [p.id for p in pictures]
    assert first.thumbnail(9).startswith(b"\xff\xd8")
    assert first.identity != last.identity


class Killed(BaseException):
    """Stands for the end of the process."""


def test_interrupted_pass_goes_on_and_finds_the_same_bits(
    model: VitModel, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(model, pictures, tmp_path / "whole")
    forward, passes = model.forward, []

    def dies_in_the_second_batch(images: torch.Tensor) -> object:
        passes.append(len(images))
        if len(passes) == 2:
            raise Killed
        return forward(images)

    monkeypatch.setattr(model, "forward", dies_in_the_second_batch)
    with pytest.raises(Killed):
        collect(model, pictures, tmp_path / "resumed")
    assert not (tmp_path / "resumed").exists()
    resumed = collect(model, pictures, tmp_path / "resumed")
    assert passes == [4, 4, 4, 2]  # the first batch was not run again
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert not list(tmp_path.glob(".resumed*"))


def test_finished_evidence_is_not_collected_again(
    model: VitModel, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(model, pictures, tmp_path / "n")
    monkeypatch.setattr(model, "forward", lambda _images: pytest.fail("ran the model"))
    collect(model, pictures, tmp_path / "n")


def test_unreadable_pictures_are_passed_over(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    pictures[3].path.write_text("not a picture")
    evidence = collect(model, pictures, tmp_path / "n").evidence("blocks.0.mlp")
    assert len(evidence.images) == 9
    assert len(evidence.peaks(0)) == 9


def test_without_any_readable_picture_it_says_so(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    pictures[0].path.write_text("not a picture")
    with pytest.raises(InvalidInputError, match="none of the 1 pictures"):
        collect(model, pictures[:1], tmp_path / "n")
    with pytest.raises(InvalidInputError, match="no pictures"):
        collect(model, [], tmp_path / "n")


def test_patterns_choose_sites_in_the_order_of_the_model(model: VitModel) -> None:
    assert matching_sites(model, ["blocks.2.mlp", "blocks.*.mlp"]) == [
        f"blocks.{i}.mlp" for i in range(3)
    ]
    with pytest.raises(NotFoundError, match=r"blocks\.7"):
        matching_sites(model, ["blocks.*.mlp", "blocks.7.*"])


def test_changed_file_is_refused_by_name(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    made = collect(model, pictures, tmp_path / "n")
    with (made.path / "blocks.0.mlp" / "maps.npy").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(CorruptArtifactError, match=r"maps\.npy"):
        Neurons(tmp_path / "n")


def test_evidence_of_another_version_is_refused(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    made = collect(model, pictures, tmp_path / "n")
    write_json(made.path / "manifest.json", made.manifest | {"version": 2})
    with pytest.raises(CorruptArtifactError, match="version 1"):
        Neurons(tmp_path / "n")


def test_unknown_site_and_missing_directory(
    model: VitModel, pictures: list[Picture], tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match=r"blocks\.1\.mlp"):
        collect(model, pictures, tmp_path / "n").evidence("blocks.1.mlp")
    with pytest.raises(NotFoundError, match="label"):
        Neurons(tmp_path / "nothing")
