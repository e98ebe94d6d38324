"""Released dictionaries: rounded weights, labels and a card, found by name."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import asdict
from email.message import Message
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from typer.testing import CliRunner

import vision_sae
from tests.worlds.tiny import SITE, random_sae, write_dictionary, write_store
from tools.demo.release_dictionaries import release_demo_dictionary
from vision_sae.activations.store import ActivationStore
from vision_sae.bundles.build import build, current_bundle
from vision_sae.bundles.read import Bundle, read_bundle
from vision_sae.cli import app
from vision_sae.config import BuildConfig
from vision_sae.descriptions.protocol import Description, Score
from vision_sae.dictionaries.artifact import load_dictionary as load_published
from vision_sae.dictionaries.artifact import save_dictionary
from vision_sae.dictionaries.ensemble import Bagging
from vision_sae.dictionaries.kinds.pca import Pca
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.dictionaries.metrics import evaluate
from vision_sae.dictionaries.protocol import Dictionary
from vision_sae.dictionaries.released import fetching, lookup
from vision_sae.dictionaries.released.cards import CARD, Notes
from vision_sae.dictionaries.released.fetching import fetch, read_index
from vision_sae.dictionaries.released.labels import LABELS
from vision_sae.dictionaries.released.lookup import (
    INDEX,
    IndexEntry,
    LoadedDictionary,
    add_to_index,
    cached,
    load_dictionary,
    locate,
    parse_index,
)
from vision_sae.dictionaries.released.names import folder_of, is_name, name_of
from vision_sae.dictionaries.released.release import release
from vision_sae.dictionaries.weights import WEIGHTS
from vision_sae.errors import (
    AlreadyExistsError,
    CorruptArtifactError,
    InvalidInputError,
    MismatchError,
    NotFoundError,
    RemoteServerError,
)
from vision_sae.files import MANIFEST, read_json, sha256_file, write_json
from vision_sae.labels.entries import description_from_json

NAME = f"demo:tiny/{SITE}"
DIM, WIDTH = 6, 16
CONFIG = BuildConfig(exemplars=2, quantile_exemplars=1)
NOTES = Notes(
    about="A dictionary for tests.",
    data="Noise.",
    labels="Written by hand.",
    licence="Apache-2.0",
    limits=("It knows nothing.", "It is small."),
)
LABELLED = Description(
    feature=3,
    text="red background",
    abstained="",
    describer="by-hand",
    describer_version=1,
    scores=(Score("precision", 0.9, 20, lower=0.8, judge="captions"),),
    evidence=(4, 7),
    details={"judged_by": "captions"},
    candidates=(("red", 0.5), ("background", 0.4)),
)
ABSTAINED = Description(5, None, "says nothing", "by-hand", 1)
ROWS = [json.loads(json.dumps(asdict(made))) for made in (ABSTAINED, LABELLED)]


def vectors() -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.normal(size=(6, 4, DIM)).astype(np.float16)).float()


def sae() -> TopKSae:
    return random_sae(DIM, WIDTH, 3, bias=0.1)


def rounded_by_hand(made: TopKSae) -> TopKSae:
    tensors = {"w_enc": made.w_enc, "b_enc": made.b_enc, "w_dec": made.w_dec, "b_dec": made.b_dec}
    return TopKSae(k=made.k, **{name: t.half().float() for name, t in tensors.items()})


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return write_store(tmp_path / "store", [vectors().numpy()])


@pytest.fixture
def trained(tmp_path: Path, store: ActivationStore) -> Path:
    return write_dictionary(tmp_path / "trained", sae(), store)


@pytest.fixture
def elsewhere(tmp_path: Path, trained: Path) -> Path:
    """A folder with an index of one released dictionary."""
    folder = tmp_path / "elsewhere"
    release(folder / "tiny" / SITE, trained, NAME, NOTES, labels=ROWS)
    add_to_index(folder / INDEX, IndexEntry.of(folder / "tiny" / SITE, f"tiny/{SITE}"))
    return folder


@pytest.fixture
def released(elsewhere: Path) -> Path:
    return elsewhere / "tiny" / SITE


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing ships and nothing was fetched; gives the cache's folder."""
    monkeypatch.setattr(lookup, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv(lookup.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "dictionaries"


@pytest.fixture
def shipped(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if the package had the dictionary; gives its folder."""
    monkeypatch.setattr(lookup, "PACKAGED", elsewhere)
    monkeypatch.setattr(fetching, "PACKAGED", elsewhere)
    return elsewhere / "tiny" / SITE


def spoil(path: Path) -> None:
    """Change one bit at the end of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


# Rounding


def test_loaded_dictionary_is_that_of_weights_rounded_by_hand(released: Path) -> None:
    found, expected = load_dictionary(released).dictionary, rounded_by_hand(sae())
    rows = vectors().reshape(-1, DIM)
    codes, by_hand = found.encode(rows), expected.encode(rows)
    assert found.decoder.dtype == torch.float32
    assert torch.equal(found.decoder, expected.decoder)
    assert torch.equal(codes.indices, by_hand.indices)
    assert torch.equal(codes.values, by_hand.values)
    assert torch.equal(found.decode(codes), expected.decode(by_hand))
    assert not torch.equal(found.decoder, sae().decoder)  # rounding did something


def test_weights_take_half_the_room_and_the_manifest_says_so(released: Path, trained: Path) -> None:
    # 2 x 6 x 16 + 6 + 16 numbers, two bytes less each.
    assert read_json(released / MANIFEST)["dictionary"]["dtype"] == "float16"
    saved = (trained / WEIGHTS).stat().st_size - (released / WEIGHTS).stat().st_size
    assert abs(saved - 2 * 214) < 16


@pytest.mark.parametrize("kind", ["bagging", "pca"])
def test_other_kinds_are_rounded_too(kind: str, store: ActivationStore, tmp_path: Path) -> None:
    made: Dictionary = (
        Bagging([sae(), random_sae(DIM, 8, 2)])
        if kind == "bagging"
        else Pca.fit([vectors().reshape(-1, DIM)])
    )
    source = write_dictionary(tmp_path / "other", made, store)
    release(tmp_path / "out", source, NAME, NOTES)
    found = load_dictionary(tmp_path / "out").dictionary
    assert found.width == made.width
    # Unit rows: half precision is within 2^-11 of each number.
    assert torch.allclose(found.decoder, made.decoder, atol=2**-11)


def test_weights_that_half_precision_cannot_hold_are_refused(
    store: ActivationStore, tmp_path: Path
) -> None:
    huge = sae()
    huge.b_dec = torch.full((DIM,), 1e5)
    source = write_dictionary(tmp_path / "huge", huge, store)
    with pytest.raises(InvalidInputError, match="b_dec holds values that float16 cannot hold"):
        release(tmp_path / "out", source, NAME, NOTES)
    assert not (tmp_path / "out").exists()


def test_metrics_are_measured_again_where_a_store_is_given(
    trained: Path, store: ActivationStore, tmp_path: Path
) -> None:
    manifest = release(tmp_path / "out", trained, NAME, NOTES, evaluation={"heldout": store})
    expected = evaluate(rounded_by_hand(sae()), store.batches(SITE, 24))._asdict()
    assert manifest["metrics"]["heldout"] == pytest.approx(expected)
    assert manifest["released"]["measured_rounded"] == ["heldout"]
    assert IndexEntry.of(tmp_path / "out", "out").explained_variance == pytest.approx(
        expected["explained_variance"]
    )


def test_store_of_another_model_cannot_measure_it(trained: Path, tmp_path: Path) -> None:
    other = write_store(tmp_path / "other", [vectors().numpy()], weights_sha256="x" * 64)
    with pytest.raises(MismatchError, match="x" * 64):
        release(tmp_path / "out", trained, NAME, NOTES, evaluation={"heldout": other})


# Labels and card


def test_labels_come_back_without_what_depends_on_the_pictures(released: Path) -> None:
    found = load_dictionary(released).descriptions
    expected = asdict(LABELLED) | {"evidence": (), "candidates": ()}
    assert list(found) == [3, 5]
    assert asdict(description_from_json(found[3])) == expected
    assert found[5]["abstained"] == "says nothing"


def test_dictionary_without_labels_has_no_file_of_them(trained: Path, tmp_path: Path) -> None:
    release(tmp_path / "out", trained, NAME, NOTES)
    assert not (tmp_path / "out" / LABELS).exists()
    assert load_dictionary(tmp_path / "out").descriptions == {}


@pytest.mark.parametrize(
    "changed",
    [
        [{"feature": WIDTH}],
        [{"feature": "3"}],
        [{"text": None}],
        [{"abstained": "both"}],
        [{}, {}],
    ],
    ids=["feature outside", "no number", "neither", "both", "twice"],
)
def test_rows_that_are_no_descriptions_are_refused(
    changed: list[dict[str, Any]], trained: Path, tmp_path: Path
) -> None:
    rows = [ROWS[1] | change for change in changed]
    with pytest.raises(InvalidInputError, match="labels: feature"):
        release(tmp_path / "out", trained, NAME, NOTES, labels=rows)


def test_same_release_has_the_same_bytes(released: Path, trained: Path, tmp_path: Path) -> None:
    release(tmp_path / "again", trained, NAME, NOTES, labels=reversed(ROWS))
    assert sha256_file(tmp_path / "again" / MANIFEST) == sha256_file(released / MANIFEST)


def test_card_says_what_it_is_and_how_far_to_trust_it(
    trained: Path, store: ActivationStore, tmp_path: Path
) -> None:
    release(tmp_path / "out", trained, NAME, NOTES, labels=ROWS, evaluation={"heldout": store})
    card = load_dictionary(tmp_path / "out").card
    assert card.startswith(f"# {NAME}\n")
    for said in (*NOTES.limits, NOTES.about, NOTES.data, NOTES.labels, NOTES.licence):
        assert said in card
    assert "1 of 16 features have a label; 1 abstain. Confirmed by: captions 1." in card
    assert "| metric | heldout |\n|---|---|\n| explained_variance |" in card


def test_notes_are_complete_or_refused(tmp_path: Path) -> None:
    said = asdict(NOTES)
    write_json(tmp_path / "notes.json", said)
    assert Notes.read(tmp_path / "notes.json") == NOTES
    for wrong in ({"licence": ""}, {"further": "x"}, {"limits": "none"}, {"about": 3}):
        write_json(tmp_path / "notes.json", said | wrong)
        with pytest.raises(InvalidInputError, match="notes"):
            Notes.read(tmp_path / "notes.json")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("../tiny/blocks.1.update", InvalidInputError),
        ("blocks.1.update", InvalidInputError),
        ("demo:tiny/../blocks.1.update", InvalidInputError),
        ("demo:tiny/blocks.11.update", MismatchError),
        ("demo:blocks.1.update", MismatchError),
    ],
)
def test_name_has_to_name_model_and_site(
    name: str, error: type[Exception], trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(error):
        release(tmp_path / "out", trained, name, NOTES)


# Looking up


def test_folder_of_a_name_leads_back_to_it() -> None:
    for name in (NAME, "hf-hub:org/name", "hf-hub:org/name/a/b", "demo:x"):
        assert name_of(folder_of(name)) == name
        assert "/" not in folder_of(name)
    assert not is_name("runs/dictionary")
    assert not is_name("C:\\runs")


def test_shipped_dictionary_is_loaded_by_its_name(shipped: Path) -> None:
    found: LoadedDictionary = vision_sae.load_dictionary(NAME)
    assert found.dictionary.width == WIDTH
    assert found.descriptions[3]["text"] == "red background"
    assert found.card == (shipped / CARD).read_text()
    assert found.manifest["site"] == SITE


def test_trained_dictionary_is_loaded_by_its_path(trained: Path) -> None:
    for path in (trained, str(trained)):
        found = load_dictionary(path)
        assert torch.equal(found.dictionary.decoder, sae().decoder)
        assert (found.descriptions, found.card, found.released) == ({}, "", None)


@pytest.mark.parametrize("name", [NAME, "hf-hub:org/name/folder"])
def test_name_that_is_not_here_says_how_to_fetch_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_copy", lambda *_, **__: pytest.fail("fetched unasked"))
    with pytest.raises(NotFoundError, match=f"vision-sae fetch {name}"):
        load_dictionary(name)


def test_path_that_is_not_here_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="vision-sae train"):
        load_dictionary(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("file", [WEIGHTS, LABELS, CARD])
def test_changed_file_is_refused_by_name(file: str, shipped: Path) -> None:
    spoil(shipped / file)
    with pytest.raises(CorruptArtifactError, match=file):
        load_dictionary(NAME)


def test_another_dictionary_in_the_place_of_a_shipped_one_is_refused(
    shipped: Path, store: ActivationStore
) -> None:
    write_dictionary(shipped, random_sae(DIM, 8, 2), store)
    with pytest.raises(CorruptArtifactError, match="is not the dictionary"):
        load_dictionary(NAME)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[3]",
        "[{}]",
        '{"name": 3}',
        *(
            json.dumps(
                [
                    {"name": NAME, "path": "x", "sha256": "", "bytes": 1, "width": 1, "k": None}
                    | {"card": "", "explained_variance": None, "labelled": 0}
                    | wrong
                ]
            )
            for wrong in ({"path": "../x"}, {"path": "/x"}, {"path": ""}, {"name": "x"})
        ),
        json.dumps([{"name": 3}]),
    ],
)
def test_index_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CorruptArtifactError, match="here"):
        parse_index(text, "here")


def test_index_replaces_an_entry_of_the_same_name_and_ignores_further_keys(elsewhere: Path) -> None:
    (entry,) = read_index(str(elsewhere))
    add_to_index(elsewhere / INDEX, entry)
    rows = read_json(elsewhere / INDEX)
    assert rows == [asdict(entry)]
    write_json(elsewhere / INDEX, [rows[0] | {"from_the_future": 1}])
    assert read_index(str(elsewhere)) == [entry]
    assert entry.labelled == 1
    assert entry.bytes == sum(p.stat().st_size for p in (elsewhere / entry.path).iterdir())


def test_importing_the_package_and_fetching_take_no_torch() -> None:
    script = (
        "import sys, vision_sae, vision_sae.dictionaries.released.fetching;"
        "assert 'load_dictionary' in dir(vision_sae);"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = vision_sae.no_such_name


# Fetching


@pytest.mark.parametrize("how", ["folder", "file", "url"])
def test_fetched_dictionary_is_loaded_by_its_name(
    how: str, elsewhere: Path, released: Path, nothing_here: Path
) -> None:
    file = elsewhere / INDEX
    index = {"folder": str(elsewhere), "file": str(file), "url": file.as_uri()}[how]
    place = fetch(NAME, index=index, progress=False)
    assert place == nothing_here / f"demo@tiny@{SITE}"
    assert locate(NAME) == place
    assert load_dictionary(NAME).descriptions[3]["text"] == "red background"
    assert sha256_file(place / MANIFEST) == sha256_file(released / MANIFEST)


def test_fetch_verifies_what_is_there_and_copies_it_anew_where_it_changed(elsewhere: Path) -> None:
    place = fetch(NAME, index=str(elsewhere), progress=False)
    before = (place / WEIGHTS).stat().st_mtime_ns
    fetch(NAME, index=str(elsewhere), progress=False)
    assert (place / WEIGHTS).stat().st_mtime_ns == before
    spoil(place / WEIGHTS)
    fetch(NAME, index=str(elsewhere), progress=False)
    assert load_dictionary(NAME).dictionary.width == WIDTH


@pytest.mark.parametrize("file", [WEIGHTS, LABELS, MANIFEST])
def test_file_that_was_changed_on_its_way_is_refused(
    file: str, elsewhere: Path, released: Path
) -> None:
    spoil(released / file)
    with pytest.raises(CorruptArtifactError, match="SHA-256"):
        fetch(NAME, index=str(elsewhere), progress=False)
    with pytest.raises(NotFoundError):
        load_dictionary(NAME)


def test_manifest_cannot_lead_out_of_the_folder(elsewhere: Path, released: Path) -> None:
    (elsewhere / "evil").write_text("x")
    manifest = read_json(released / MANIFEST)
    manifest["files"]["../../evil"] = {"bytes": 1, "sha256": sha256_file(elsewhere / "evil")}
    write_json(released / MANIFEST, manifest)
    add_to_index(elsewhere / INDEX, IndexEntry.of(released, f"tiny/{SITE}"))
    with pytest.raises(CorruptArtifactError, match="no manifest"):
        fetch(NAME, index=str(elsewhere), progress=False)


def test_dictionary_of_another_name_is_refused(elsewhere: Path, released: Path) -> None:
    entry = IndexEntry.of(released, f"tiny/{SITE}", "demo:other/blocks.1.update")
    add_to_index(elsewhere / INDEX, entry)
    with pytest.raises(MismatchError, match=NAME):
        fetch(entry.name, index=str(elsewhere), progress=False)


def test_fetch_killed_half_way_leaves_nothing_half(elsewhere: Path, nothing_here: Path) -> None:
    # Killed while it writes the second of three files.
    script = (
        "import os, sys\n"
        "from vision_sae.dictionaries.released import fetching\n"
        "download, calls = fetching._download, []\n"
        "def dying(url, path, expected):\n"
        "    calls.append(url)\n"
        "    if len(calls) == 2:\n"
        "        fetching._blocks = lambda *_: iter([b'half', os.kill(os.getpid(), 9)])\n"
        "    download(url, path, expected)\n"
        "fetching._download = dying\n"
        "fetching.fetch(sys.argv[1], index=sys.argv[2], progress=False)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, NAME, str(elsewhere)])
    assert run.returncode == -9
    assert not cached(NAME).exists()
    assert list(lookup.fetched()) == []
    with pytest.raises(NotFoundError):
        load_dictionary(NAME)
    staging = nothing_here / f".demo@tiny@{SITE}.staging"
    complete = staging / CARD
    before = complete.stat().st_mtime_ns
    place = fetch(NAME, index=str(elsewhere), progress=False)
    assert (place / CARD).stat().st_mtime_ns == before  # complete files are kept
    assert not staging.exists()
    assert {p.name for p in place.iterdir()} == {CARD, LABELS, WEIGHTS, MANIFEST}


def test_unknown_name_says_what_the_index_has(elsewhere: Path) -> None:
    with pytest.raises(NotFoundError, match=f"no demo:tiny/blocks.2.update; it has {NAME}"):
        fetch("demo:tiny/blocks.2.update", index=str(elsewhere))
    with pytest.raises(NotFoundError, match="--index"):
        fetch(NAME)
    with pytest.raises(NotFoundError, match="cannot be read"):
        fetch(NAME, index=str(elsewhere / "nowhere.json"))


@pytest.mark.parametrize("url", ["http://127.0.0.1/index.json", "https://127.0.0.1:1/index.json"])
def test_index_is_read_from_encrypted_or_local_places_only(url: str) -> None:
    with pytest.raises((InvalidInputError, RemoteServerError), match="127"):
        fetch(NAME, index=url)


class Served(io.BytesIO):
    """What a server answers: a file, under the address at which it was found in the end."""

    def __init__(self, url: str, data: bytes) -> None:
        super().__init__(data)
        self.url = url


@pytest.fixture
def web(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception | str]:
    """As if https://example.org had the index's folder; gives {file name: what happens instead}."""
    troubles: dict[str, Exception | str] = {}

    def urlopen(url: str, timeout: float) -> Served:
        assert timeout > 0
        path = elsewhere / url.removeprefix("https://example.org/")
        trouble = troubles.get(path.name)
        if isinstance(trouble, Exception):
            raise trouble
        return Served(trouble or url, path.read_bytes())

    monkeypatch.setattr(fetching, "urlopen", urlopen)
    return troubles


def test_dictionary_is_fetched_from_the_web(web: dict[str, Exception | str]) -> None:
    fetch(NAME, index="https://example.org/index.json", progress=False)
    assert load_dictionary(NAME).descriptions[3]["text"] == "red background"


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (HTTPError("u", 404, "Not Found", Message(), None), NotFoundError),
        (HTTPError("u", 503, "Busy", Message(), None), RemoteServerError),
        (TimeoutError("timed out"), RemoteServerError),
        ("http://example.org/moved", InvalidInputError),
    ],
    ids=["missing", "busy", "silent", "led elsewhere"],
)
def test_web_that_fails_half_way_is_an_error_and_can_be_tried_again(
    trouble: Exception | str, error: type[Exception], web: dict[str, Exception | str]
) -> None:
    web[WEIGHTS] = trouble
    with pytest.raises(error, match=WEIGHTS):
        fetch(NAME, index="https://example.org/index.json", progress=False)
    assert not cached(NAME).exists()
    del web[WEIGHTS]
    fetch(NAME, index="https://example.org/index.json", progress=False)
    assert load_dictionary(NAME).dictionary.width == WIDTH


def test_answer_that_breaks_off_says_so(
    web: dict[str, Exception | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_served: Served, _size: int) -> bytes:
        raise IncompleteRead(b"half")

    monkeypatch.setattr(Served, "read", broken)
    with pytest.raises(RemoteServerError, match="broke off after 0 bytes"):
        fetch(NAME, index="https://example.org/index.json", progress=False)


def test_other_folders_are_not_replaced(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    place = fetch(NAME, index=str(elsewhere), to=tmp_path / "mine", progress=False)  # it is empty
    fetch(NAME, index=str(elsewhere), to=place, progress=False)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("one")
    with pytest.raises(AlreadyExistsError, match="thesis"):
        fetch(NAME, index=str(elsewhere), to=tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").read_text() == "one"


def test_shipped_dictionary_is_not_copied_unless_to_a_folder(shipped: Path, tmp_path: Path) -> None:
    assert fetch(NAME) == shipped
    assert not cached(NAME).exists()
    copy = fetch(NAME, to=tmp_path / "copy", progress=False)
    assert load_dictionary(copy).released == load_dictionary(NAME).released


def test_dictionary_of_a_hub_is_fetched_when_asked_for(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []

    def snapshot_download(repository: str, *, allow_patterns: object) -> str:
        asked.append((repository, allow_patterns))
        return str(released.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    name = f"hf-hub:org/name/{SITE}"
    found = load_dictionary(name, allow_downloads=True)
    assert asked == [("org/name", [f"{SITE}/*"])]
    assert found.released == load_dictionary(released).released
    load_dictionary(name)
    assert len(asked) == 1


def test_hub_that_cannot_be_reached_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(NotFoundError, match="HF_HUB_OFFLINE"):
        fetch("hf-hub:org/name")
    with pytest.raises(InvalidInputError, match="hf-hub:ORG/NAME"):
        fetch("hf-hub:org")


# Bundles


def test_bundle_carries_the_labels_of_its_release(
    shipped: Path, store: ActivationStore, tmp_path: Path
) -> None:
    bundle = build(store, NAME, tmp_path / "bundle", CONFIG, progress=False)
    digest = sha256_file(shipped / MANIFEST)
    assert torch.equal(bundle.dictionary.decoder, rounded_by_hand(sae()).decoder)
    assert "dtype" not in bundle.manifest["dictionary"]
    assert bundle.descriptions == load_dictionary(NAME).descriptions
    assert bundle.manifest["released"] == {"name": NAME, "manifest_sha256": digest}
    assert bundle.manifest["describe"] == {
        "released": NAME,
        "identity": sha256_file(shipped / LABELS),
        "labelled": 1,
        "abstained": 1,
    }


def test_bundle_of_a_trained_dictionary_says_nothing_of_a_release(
    trained: Path, store: ActivationStore, tmp_path: Path
) -> None:
    bundle = build(store, trained, tmp_path / "bundle", CONFIG, progress=False)
    assert not {"released", "describe"} & bundle.manifest.keys()


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"weights_sha256": "x" * 64}, "weights_sha256"), ({"site": "blocks.2.update"}, SITE)],
)
def test_release_for_another_model_or_site_is_refused_by_name(
    changes: dict[str, Any], says: str, shipped: Path, tmp_path: Path
) -> None:
    other = write_store(tmp_path / "other", [vectors().numpy()], **changes)
    with pytest.raises(MismatchError, match=says):
        build(other, NAME, tmp_path / "bundle", CONFIG, progress=False)
    assert not (tmp_path / "bundle").exists()


def test_bundle_is_current_until_another_release(
    shipped: Path, elsewhere: Path, trained: Path, store: ActivationStore, tmp_path: Path
) -> None:
    path = build(store, NAME, tmp_path / "bundle", CONFIG, progress=False).path
    assert current_bundle(path, store, NAME, CONFIG)
    assert current_bundle(path, store, shipped, CONFIG)
    assert not current_bundle(path, store, trained, CONFIG)
    release(shipped, trained, NAME, NOTES, overwrite=True)  # the same weights, without labels
    add_to_index(elsewhere / INDEX, IndexEntry.of(shipped, f"tiny/{SITE}"))
    assert not current_bundle(path, store, NAME, CONFIG)
    by_hand = write_dictionary(tmp_path / "rounded", rounded_by_hand(sae()), store)
    assert not current_bundle(path, store, by_hand, CONFIG)  # the same weights, never released


# Commands and tools


def succeed(*args: object) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


def test_commands_list_fetch_and_build(
    elsewhere: Path, store: ActivationStore, tmp_path: Path
) -> None:
    assert "no dictionaries" in succeed("dictionaries")
    assert NAME in succeed("dictionaries", "--index", elsewhere)
    assert str(cached(NAME)) in succeed("fetch", NAME, "--index", elsewhere)
    header, line = succeed("dictionaries").splitlines()
    assert header.split() == ["name", "width", "k", "EV", "labels"]
    assert line.split() == [NAME, "16", "3", "-", "1", "fetched"]
    said = succeed("build", store.path, NAME, tmp_path / "bundle")
    assert f"1 labels of {NAME}" in said
    assert read_bundle(tmp_path / "bundle").descriptions[3]["text"] == "red background"


def test_command_says_where_a_shipped_dictionary_is(shipped: Path) -> None:
    assert f"{NAME} ships with the package: {shipped}" in succeed("fetch", NAME)
    assert "ships" in succeed("dictionaries")


@pytest.mark.parametrize("rounded", [False, True], ids=["trained", "rounded"])
def test_tool_takes_the_labels_of_a_bundle_of_the_dictionary(
    rounded: bool, trained: Path, released: Path, store: ActivationStore, tmp_path: Path
) -> None:
    source = released if rounded else trained
    bundle = build(store, source, tmp_path / "bundle", CONFIG, progress=False)
    labels = bundle.path / "descriptions.jsonl"
    labels.write_text(json.dumps(ROWS[1]) + "\n")
    folder = tmp_path / "demo"
    write_json(bundle.path / MANIFEST, _with_file(bundle, labels))
    entry = release_demo_dictionary(trained, NAME, NOTES, labels=labels, folder=folder)
    assert (entry.path, entry.labelled) == (f"tiny/{SITE}", 1)
    assert read_index(str(folder)) == [entry]
    assert load_published(folder / entry.path)[0].width == WIDTH


def _with_file(bundle: Bundle, file: Path) -> dict[str, Any]:
    entry = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    return bundle.manifest | {"files": bundle.manifest["files"] | {file.name: entry}}


def test_tool_refuses_labels_of_another_dictionary(
    trained: Path, store: ActivationStore, tmp_path: Path
) -> None:
    other = TopKSae(
        w_enc=sae().w_enc, b_enc=sae().b_enc, w_dec=-sae().w_dec, b_dec=sae().b_dec, k=3
    )
    save_dictionary(tmp_path / "other", other, load_dictionary(trained).manifest, {})
    bundle = build(store, tmp_path / "other", tmp_path / "bundle", CONFIG, progress=False)
    with pytest.raises(MismatchError, match="describes another dictionary"):
        release_demo_dictionary(
            trained, NAME, NOTES, labels=bundle.path / "descriptions.jsonl", folder=tmp_path / "d"
        )
