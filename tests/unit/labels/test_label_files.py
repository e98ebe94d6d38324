"""Labels and evidence in others' files, against files written here from their description."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.worlds.contrastive import PlantedClip, random_cells
from tests.worlds.contrastive import evidence_of as evidence_of_cells
from tests.worlds.tiny import tiny_model
from vision_sae.activations.store import ImageRecord
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.descriptions.scoring.many import score_many
from vision_sae.descriptions.scoring.scorer import Scorer
from vision_sae.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from vision_sae.evidence.arrays import ArrayEvidence
from vision_sae.evidence.probe_pass import make_probe
from vision_sae.evidence.protocol import split
from vision_sae.labels.files.annotations import (
    lists_of,
    read_annotations,
    write_descriptions,
)
from vision_sae.labels.files.export import export
from vision_sae.labels.files.milan import MilanLayer, layers, write_exemplars
from vision_sae.labels.files.milan_evidence import read_evidence
from vision_sae.models.grid import PatchGrid, Preprocessing
from vision_sae.pictures.decode import decode_image

# MILAN's exemplars, as its own program writes them. Two units of three pictures of 28 x 28 pixels.
# Pictures 5 and 9 are exemplars of both units.

SIZE = 28
UNITS = (4, 17)
IDS = [[5, 9, 2], [9, 7, 5]]
ACTIVATIONS = [[3.0, 2.0, 1.0], [8.0, 6.0, 4.0]]


def picture(number: int) -> np.ndarray:
    """Smooth, so that JPEG changes little; another one for each number (3, SIZE, SIZE)."""
    across = np.linspace(0, 20 * number, SIZE, dtype=np.float32)
    return np.broadcast_to(across, (3, SIZE, SIZE)).astype(np.uint8)


def milan_layer(
    root: Path, layer: str = "3", *, units: bool = True, tables: bool = True, **masks: Any
) -> Path:
    """A layer in MILAN's layout; each mask is the left half unless given by ``masks``."""
    directory = root / layer
    directory.mkdir(parents=True)
    images = np.array([[picture(number) for number in row] for row in IDS])
    np.save(directory / "images.npy", images)
    left = np.zeros((2, 3, 1, SIZE, SIZE), dtype=np.uint8)
    left[..., : SIZE // 2] = 1
    np.save(directory / "masks.npy", masks.get("masks", left))
    if units:
        np.save(directory / "units.npy", np.array(UNITS))
    if tables:
        np.savetxt(directory / "activations.csv", np.array(ACTIVATIONS), "%.5e", delimiter=",")
        np.savetxt(directory / "ids.csv", np.array(IDS), "%i", delimiter=",")
    return directory


def test_units_are_found_by_their_number_and_not_by_their_place(tmp_path: Path) -> None:
    layer = MilanLayer(milan_layer(tmp_path))
    assert layer.units.tolist() == [4, 17]
    found = layer.unit(17)
    assert found.ids.tolist() == [9, 7, 5]
    assert found.activations.tolist() == [8, 6, 4]
    assert np.array_equal(found.images[1], picture(7))
    assert found.masks.shape == (3, SIZE, SIZE)
    assert found.masks[:, :, : SIZE // 2].all()
    assert not found.masks[:, :, SIZE // 2 :].any()
    with pytest.raises(NotFoundError, match="no unit 1"):
        layer.unit(1)  # there is a second row, but no unit 1


def test_layer_without_numbers_and_tables(tmp_path: Path) -> None:
    layer = MilanLayer(milan_layer(tmp_path, units=False, tables=False))
    assert layer.units.tolist() == [0, 1]
    assert layer.unit(1).ids.tolist() == [3, 4, 5]
    assert layer.unit(1).activations.tolist() == [1, 1, 1]


def test_layers_are_strings(tmp_path: Path) -> None:
    for name in ("10", "2", "conv1"):
        milan_layer(tmp_path, name)
    (tmp_path / ".2.staging").mkdir()
    (tmp_path / ".2.staging" / "images.npy").touch()  # left by a writer that was killed
    (tmp_path / "viz").mkdir()
    assert layers(tmp_path) == ["10", "2", "conv1"]
    assert MilanLayer(tmp_path / "2").layer == "2"
    with pytest.raises(NotFoundError, match="no layer"):
        layers(tmp_path / "viz")


def test_exemplars_become_evidence(tmp_path: Path) -> None:
    evidence = read_evidence(milan_layer(tmp_path / "resnet"), tiny_model(), side=4)
    assert evidence.name == "models/resnet/sites/3"
    assert evidence.width == 18
    assert [record.id for record in evidence.images] == ["2", "5", "7", "9"]
    # Picture 9 is the second of unit 4 and the first of unit 17.
    assert evidence.peaks(4).tolist() == [1, 3, 0, 2]
    assert evidence.peaks(17).tolist() == [0, 4, 6, 8]
    firings = evidence.firings(17)
    assert [(f.image, f.activation) for f in firings] == [(3, 8), (2, 6), (1, 4)]
    assert firings[1].map.tolist() == [[6, 6, 0, 0]] * 4
    assert firings[1].mask.tolist() == [[True, True, False, False]] * 4
    assert evidence.firings(5) == []
    shown = np.asarray(decode_image(evidence.thumbnail(2)), dtype=int).transpose(2, 0, 1)
    assert np.abs(shown - picture(7)).max() <= 3
    # A patch lies where its pixels do: the picture is both the original and the model's input.
    assert evidence.grid.boxes(evidence.geometry(2))[5].tolist() == [7, 7, 14, 14]
    assert evidence.embeddings.shape == (4, 32)
    assert not np.allclose(evidence.embeddings[0], evidence.embeddings[2], atol=1e-3)


def test_mask_smaller_than_half_a_patch_and_no_mask_at_all(tmp_path: Path) -> None:
    masks = np.zeros((2, 3, 1, SIZE, SIZE), dtype=np.uint8)
    masks[0, 0, 0, 8, 8] = 255
    evidence = read_evidence(milan_layer(tmp_path, masks=masks), tiny_model(), side=4)
    small, none, _ = evidence.firings(4)
    assert np.argwhere(small.mask).tolist() == [[1, 1]]
    assert none.mask.all()


def test_evidence_changes_its_identity_with_its_files(tmp_path: Path) -> None:
    model = tiny_model()
    one = read_evidence(milan_layer(tmp_path / "a"), model, side=4)
    same = read_evidence(milan_layer(tmp_path / "b"), model, side=4)
    masks = np.ones((2, 3, 1, SIZE, SIZE), dtype=np.uint8)
    other = read_evidence(milan_layer(tmp_path / "c", masks=masks), model, side=4)
    assert one.identity == same.identity != other.identity
    assert one.data_sha256 == other.data_sha256


@pytest.mark.parametrize(
    ("name", "array", "says"),
    [
        ("images.npy", np.zeros((2, 3, 3, SIZE, SIZE)), "not uint8"),
        ("images.npy", np.zeros((2, 3, SIZE, SIZE), np.uint8), "not uint8"),
        ("masks.npy", np.zeros((2, 2, 1, SIZE, SIZE)), r"not \(2, 3, 1, 28, 28\)"),
        ("units.npy", np.array([4]), "each of the 2 units"),
        ("units.npy", np.array([4, 4]), "each of the 2 units"),
        ("units.npy", np.array([-1, 4]), "units from -1 to 4"),
        ("units.npy", np.array([0, 10**12]), "units from 0 to 1000000000000"),
        ("units.npy", np.array([3.0, 5.0]), "holds float64, not integers"),
        ("units.npy", np.array(["3", "5"]), "holds <U1, not integers"),
        ("units.npy", np.array([3, None], dtype=object), "not a NumPy array"),
        ("masks.npy", np.full((2, 3, 1, SIZE, SIZE), "x"), "holds <U1, not numbers"),
    ],
)
def test_arrays_of_wrong_shapes_are_refused(
    tmp_path: Path, name: str, array: np.ndarray, says: str
) -> None:
    directory = milan_layer(tmp_path)
    np.save(directory / name, array)
    with pytest.raises(CorruptArtifactError, match=f"{name}.*{says}"):
        MilanLayer(directory)


@pytest.mark.parametrize("text", ["1,2,3\n", "1,2\n3,4\n", "a,b,c\nd,e,f\n"])
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, text: str) -> None:
    directory = milan_layer(tmp_path)
    (directory / "ids.csv").write_text(text)
    with pytest.raises(CorruptArtifactError, match="ids.csv"):
        MilanLayer(directory)


def test_missing_files_and_grids_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    directory = milan_layer(tmp_path)
    with pytest.raises(InvalidInputError, match="do not divide into 5 x 5"):
        read_evidence(directory, tiny_model(), side=5)
    (directory / "masks.npy").unlink()
    with pytest.raises(NotFoundError, match=r"masks.npy is missing"):
        MilanLayer(directory)


# Evidence written as exemplars: unit 1 fires in the top left patch of picture 0, less so in all
# of picture 2, and so on; unit 0 never fires.

GRID = PatchGrid(rows=2, cols=2, special=1, patch_height=8, patch_width=8)


def gradient(width: int, height: int) -> bytes:
    """JPEG: red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
    return jpeg.getvalue()


def evidence_of(units: int = 2) -> ArrayEvidence:
    maps = np.zeros((units, 4, 4), dtype=np.float32)
    maps[1] = [[9, 0, 0, 0], [8, 8, 8, 8], [0, 7, 0, 0], [0, 0, 6, 0]]
    peaks = np.zeros((units, 5), dtype=np.float32)
    peaks[1] = [9, 0, 8, 7, 6]
    images = np.full((units, 4), -1)
    images[1] = [0, 2, 3, 4]
    return ArrayEvidence(
        name="models/tiny/sites/blocks.0.mlp",
        identity="i" * 64,
        data_sha256="d" * 64,
        site="blocks.0.mlp",
        images=[ImageRecord(f"{i}.png", 64, 32, "", ()) for i in range(5)],
        grid=GRID,
        preprocessing=Preprocessing(height=16, width=16),
        thumbnails=[gradient(64, 32)] * 5,
        embeddings=np.eye(5, dtype=np.float32),
        all_peaks=peaks,
        firing_images=images,
        maps=maps,
        thresholds=np.full(units, 0.5),
    )


def test_written_exemplars_are_what_describers_may_see(tmp_path: Path) -> None:
    evidence = evidence_of()
    directory = write_exemplars(evidence, tmp_path, [1, 0], exemplars=3, size=SIZE)
    layer = MilanLayer(directory)
    assert layer.layer == "blocks.0.mlp"
    assert layer.images.shape == (2, 3, 3, SIZE, SIZE)
    described = [f.image for f in split(evidence, 1).describe]
    found = layer.unit(1)
    assert described == [0, 3]
    assert found.ids.tolist() == [0, 3, -1]
    assert found.activations.tolist() == [9, 7, 0]
    half = SIZE // 2
    assert found.masks[0, :half, :half].all()
    assert found.masks[0].sum() == half * half
    assert found.masks[1, :half, half:].all()
    assert not found.masks[2].any()
    assert not found.images[2].any()
    assert layer.unit(0).ids.tolist() == [-1, -1, -1]
    # MILAN's own program reads the tables like this.
    assert np.loadtxt(directory / "ids.csv", delimiter=",").tolist() == [[-1] * 3, [0, 3, -1]]


def test_written_picture_is_what_the_model_was_shown(tmp_path: Path) -> None:
    # Of 64 x 32 pixels the model saw the middle 32 x 32: red from 1/4 to 3/4 of its range.
    directory = write_exemplars(evidence_of(), tmp_path, [1], layer="7", size=SIZE)
    red, green, blue = MilanLayer(directory).unit(1).images[0].astype(int)
    assert red[:, 0].mean() == pytest.approx(64, abs=8)
    assert red[:, -1].mean() == pytest.approx(191, abs=8)
    assert green[0].mean() == pytest.approx(0, abs=8)
    assert green[-1].mean() == pytest.approx(255, abs=8)
    assert blue.mean() == pytest.approx(0, abs=8)


def test_exemplars_survive_the_way_there_and_back(tmp_path: Path) -> None:
    evidence = evidence_of()
    directory = write_exemplars(evidence, tmp_path, [0, 1], size=SIZE)
    back = read_evidence(directory, tiny_model(), side=2)
    described = split(evidence, 1).describe
    assert [back.images[f.image].id for f in back.firings(1)] == [str(f.image) for f in described]
    for there, here in zip(back.firings(1), described, strict=True):
        assert there.activation == here.activation
        assert np.array_equal(there.mask, here.mask)
    assert back.firings(0) == []


def test_labels_of_somebody_elses_exemplars_are_scored(tmp_path: Path) -> None:
    things = ["apple", "pear", "oak", "wolf", "train", "tower", "road", "sand"]
    evidence = evidence_of_cells(random_cells(300, 8, cells=2), [[thing] for thing in range(8)])
    model = PlantedClip(things, cells=2)
    directory = write_exemplars(evidence, tmp_path, range(8), size=16)
    back = read_evidence(directory, model, side=2)
    scorer = Scorer(model, make_probe(model, back, tmp_path / "probe", progress=False))
    right = score_many(scorer, back, dict(enumerate(things)), progress=False)
    assert right.summary.share_labelled > 0.8
    wrong = {unit: things[(unit + 3) % 8] for unit in range(8)}
    assert score_many(scorer, back, wrong, progress=False).summary.share_labelled < 0.2


@pytest.mark.parametrize("layer", ["a/b", "..", ".hidden"])
def test_layers_that_are_no_directory_names_are_refused(tmp_path: Path, layer: str) -> None:
    with pytest.raises(InvalidInputError, match="cannot be named"):
        write_exemplars(evidence_of(), tmp_path, [1], layer=layer)


@pytest.mark.parametrize("units", [[], [1, 1]])
def test_units_are_written_once_and_one_at_least(tmp_path: Path, units: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="each unit once"):
        write_exemplars(evidence_of(), tmp_path, units)


def memory_of(work: Callable[[], object]) -> int:
    """Bytes that Python and NumPy hold at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_layers_are_neither_written_nor_read_whole(tmp_path: Path) -> None:
    units = 40  # of 15 pictures: 90 MB
    evidence = evidence_of(units)

    def write() -> None:
        write_exemplars(evidence, tmp_path, range(units), layer="big")

    assert memory_of(write) < 10e6
    assert (tmp_path / "big" / "images.npy").stat().st_size > 90e6
    model = tiny_model()
    assert memory_of(lambda: read_evidence(tmp_path / "big", model)) < 10e6
    assert memory_of(lambda: MilanLayer(tmp_path / "big").unit(3)) < 5e6


# Tables


def test_annotations_have_several_rows_a_unit(tmp_path: Path) -> None:
    path = tmp_path / "annotations.csv"
    path.write_text(
        'layer,unit,summary,worker\n1,0,"dogs, mostly",a\n1,3,,a\n1,0,animals,b\n1,2,cats,b\n'
        "conv1,12,text,a\n"
    )
    assert read_annotations(path) == {
        "1": [{0: "dogs, mostly", 2: "cats"}, {0: "animals"}],
        "conv1": [{12: "text"}],
    }


def test_descriptions_survive_the_way_there_and_back(tmp_path: Path) -> None:
    rows = [("1", 0, 'a "red", striped thing'), ("1", 7, "Hände"), ("blocks.3.mlp", 0, "sky")]
    write_descriptions(tmp_path / "d.csv", rows)
    assert read_annotations(tmp_path / "d.csv") == {
        "1": [{0: rows[0][2], 7: "Hände"}],
        "blocks.3.mlp": [{0: "sky"}],
    }
    table = pd.read_csv(tmp_path / "d.csv", dtype={"layer": str})
    assert list(table.columns) == ["layer", "unit", "description"]
    assert table.loc[0, "description"] == rows[0][2]


def test_a_layer_is_called_as_its_site_or_as_its_dictionary() -> None:
    tables = {"blocks.3.update": [{0: "sky"}], "birds": [{1: "wing"}]}
    assert lists_of(tables, "blocks.3.update", "dictionaries/birds") == [{0: "sky"}]
    assert lists_of(tables, "blocks.4.update", "dictionaries/birds") == [{1: "wing"}]
    assert lists_of(tables, "blocks.4.update", "dictionaries/cars") == []


def test_table_from_a_spreadsheet_with_a_text_left_out(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("layer,unit,description\r\n1,0,dog\r\n1,1,\r\n", encoding="utf-8-sig")
    assert read_annotations(path) == {"1": [{0: "dog"}]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("layer,unit\n1,0\n", "no column 'description'"),
        ("layer,unit,description\n1,x,dog\n", "line 2"),
        ("layer,unit,description\n1,0,dog\n1,-1,cat\n", "line 3"),
        ("layer,unit,description\n1,0\n", "line 2"),
        ("layer,description,unit\n1,x\n", "line 2: .* 2 fields for 3 columns"),
        (f"layer,unit,description\n1,{'9' * 5000},dog\n", "line 2"),
        ('layer,unit,description\n1,0,dog\n1,1,"cat\n1,2,x\n', "line 3: a quote is never closed"),
        ("layer,unit,unit,description\n1,0,1,dog\n", "2 column 'unit'"),
        ("layer,unit,description\n1,0,dog\n1,0,cat\n", "line 3: unit 0 of layer 1 has a text"),
        ("", "no column 'layer'"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_by_line(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=says) as refused:
        read_annotations(path)
    assert refused.value.field == "labels"


def test_missing_and_binary_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no .*d.csv"):
        read_annotations(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_bytes(b"layer,unit,description\n\x81")
    with pytest.raises(InvalidInputError, match=r"d\.csv, line 2: byte 0x81"):
        read_annotations(tmp_path / "d.csv")


# Export

CREATED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def exported_rows() -> list[tuple[str, dict[str, Any]]]:
    labelled = Description(
        3,
        'red, "striped"\nthings',
        "",
        "contrastive",
        2,
        scores=(
            Score("detection_auc", 0.9, 20, 0.8, 0.95, 0.5, "random"),
            Score("detection_auc", 0.7, 20, None, None, None, "hard"),
            Score("fuzzing_auc", 0.75, 18, 0.6, 0.8),
            Score("precision", 0.5, 20, judge="pixels"),
            Score("precision", 0.875, 20, judge="captions"),
        ),
        evidence=(512, 7),
        details={"words": ["red"], "judged_by": "captions"},
        candidates=(("red", 1.5), ("striped", 1.25)),
    )
    abstained = Description(4, None, "score interval covers the control", "contrastive", 2)
    by_person = Description(5, "Hände", "", "", 0, details={"judged_by": "person"})
    how = {"origin": "describer", "author": "", "create_time": CREATED}
    person = {"origin": "person", "author": "ada", "create_time": None}
    return [
        ("dictionaries/a/features/3", asdict(labelled) | how),
        ("dictionaries/a/features/4", asdict(abstained) | how),
        ("dictionaries/a/features/5", asdict(by_person) | person),
    ]


def test_csv_has_a_column_for_each_score(tmp_path: Path) -> None:
    assert export(tmp_path / "labels.csv", iter(exported_rows())) == 3
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8") as file:
        labelled, abstained, by_person = csv.DictReader(file)
    assert labelled["unit"] == "dictionaries/a/features/3"
    assert labelled["text"] == 'red, "striped"\nthings'
    assert labelled["create_time"] == "2026-01-02T03:04:05+00:00"
    assert float(labelled["detection_auc_random"]) == 0.9
    assert float(labelled["detection_auc_hard"]) == 0.7
    assert float(labelled["fuzzing_auc"]) == 0.75
    assert labelled["cosy_auc"] == ""
    assert float(labelled["precision"]) == 0.875  # by the judge who confirmed the text
    judges = [made["judged_by"] for made in (labelled, abstained, by_person)]
    assert judges == ["captions", "", "person"]
    assert json.loads(labelled["scores"])[0]["control"] == 0.5
    assert (abstained["text"], abstained["abstained"]) == ("", "score interval covers the control")
    assert (by_person["author"], by_person["origin"]) == ("ada", "person")
    assert by_person["create_time"] == ""


def test_jsonl_holds_everything(tmp_path: Path) -> None:
    export(tmp_path / "labels.jsonl", iter(exported_rows()))
    lines = (tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    labelled, abstained, by_person = map(json.loads, lines)
    assert labelled["scores"] == json.loads(json.dumps(exported_rows()[0][1]["scores"]))
    assert labelled["candidates"][1] == {"text": "striped", "value": 1.25}
    assert labelled["details"] == {"words": ["red"], "judged_by": "captions"}
    assert (labelled["judged_by"], abstained["judged_by"]) == ("captions", "")
    assert labelled["evidence"] == [512, 7]
    assert abstained["text"] is None
    assert (by_person["text"], by_person["create_time"]) == ("Hände", None)


def test_parquet_holds_everything_with_types(tmp_path: Path) -> None:
    export(tmp_path / "labels.parquet", iter(exported_rows()))
    labelled, abstained, by_person = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert labelled["create_time"] == CREATED
    assert labelled["evidence"] == [512, 7]
    assert labelled["scores"] == list(map(dict, exported_rows()[0][1]["scores"]))
    assert json.loads(labelled["details"])["words"] == ["red"]
    assert (labelled["judged_by"], by_person["judged_by"]) == ("captions", "person")
    assert (abstained["text"], abstained["scores"]) == (None, [])
    assert by_person["text"] == "Hände"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_export_of_nothing_is_a_file_that_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    assert export(path, []) == 0
    readers = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda p: p.read_text()}
    assert len(readers[suffix](path)) == 0


def test_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("before")

    def rows() -> Any:
        yield exported_rows()[0]
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        export(path, rows(), overwrite=True)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_export_streams(tmp_path: Path) -> None:
    unit, made = exported_rows()[0]
    for suffix in ("csv", "jsonl"):
        rows = ((unit, made | {"text": f"{i:04}" * 2500}) for i in range(500))  # 5 MB of text
        assert memory_of(lambda r=rows, s=suffix: export(tmp_path / f"l.{s}", r)) < 1e6


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\.csv, \.jsonl, \.parquet"):
        export(tmp_path / "labels.xlsx", [])
