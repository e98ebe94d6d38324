"""Foreign checkpoints in general: nothing in them runs, and what is wrong is named."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.worlds.foreign import DIM, WIDTH, K, W, check, top_k, write_msae
from vision_sae.dictionaries import interop
from vision_sae.dictionaries.interop.conversion import detect, export_sae, import_sae
from vision_sae.dictionaries.interop.format import FORMATS, Format, Sign, described
from vision_sae.dictionaries.kinds.topk import TopKSae
from vision_sae.errors import (
    CorruptArtifactError,
    InvalidInputError,
    NotFoundError,
    VisionSaeError,
)

MSAE = "12_5_ReLU_003_False_False_0.0_a.pth"


class Runs:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.makedirs, (self.marker, 0o777, True)


def configured(path: Path, weights: str, stored: Any, settings: dict[str, Any]) -> Path:
    """A directory with a configuration and a torch archive."""
    (path / "config.json").write_text(json.dumps(settings))
    torch.save(stored, path / weights)
    return path


def sdxl_unbox(path: Path, **changes: Tensor) -> Path:
    tensors = {
        "encoder.weight": W.W_enc.T.contiguous(),
        "decoder.weight": W.W_dec.T.contiguous(),
        "pre_bias": W.b_dec,
        "latent_bias": W.b_enc,
    }
    settings = {"n_dirs_local": WIDTH, "d_model": DIM, "k": K}
    return configured(path, "state_dict.pth", {"state_dict": tensors | changes}, settings)


TRAINER = {"trainer": {"dict_class": "AutoEncoder"}}


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        ("state_dict.pth", {"k": K}),
        ("ae.pt", TRAINER),
        ("weights.pt", {"d_in": DIM, "normalize_activations": "none"}),
        (MSAE, None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    tmp_path: Path, weights: str, settings: dict[str, Any] | None
) -> None:
    source, marker = tmp_path / "source", tmp_path / "ran"
    source.mkdir()
    stored = {"state_dict": Runs(marker), "model": Runs(marker)}
    configured(source, weights, stored, settings or {})
    if settings is None:
        (source / "config.json").unlink()
    with pytest.raises(InvalidInputError, match=r"os\.makedirs.*could run.*tensors alone"):
        import_sae(source)
    assert not marker.exists()
    torch.load(source / weights, weights_only=False)
    assert marker.exists(), "the code would have run"


def test_code_behind_a_saev_header_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with (tmp_path / "sae.pt").open("wb") as file:
        file.write(b'{"d_vit": 5}\n')
        torch.save({"W_enc": Runs(marker)}, file)
    with pytest.raises(InvalidInputError, match="could run code"):
        import_sae(tmp_path)
    assert not marker.exists()


def test_plain_pickle_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / MSAE).write_bytes(pickle.dumps({"model": Runs(marker)}, protocol=2))
    with pytest.raises(InvalidInputError, match="could run code"):
        import_sae(tmp_path)
    assert not marker.exists()


def test_pickled_module_of_overcomplete_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("overcomplete", "overcomplete.sae"):
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
    made = type("TopKSAE", (), {"__module__": "overcomplete.sae"})
    module.__dict__["TopKSAE"] = made
    torch.save(made(), tmp_path / "model.pth")
    assert detect(tmp_path) == "overcomplete"
    with pytest.raises(InvalidInputError, match=r"pickled module.*runs.*SAELens' layout"):
        import_sae(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_come_back_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    w = [t.to(dtype) for t in W[:4]]
    W_enc, b_enc, W_dec, b_dec = (t.float() for t in w)
    tensors = {"encoder.weight": w[0].T, "latent_bias": w[1], "decoder.weight": w[2].T}
    path = sdxl_unbox(tmp_path, **tensors, pre_bias=w[3])
    expected = top_k((W.x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec
    dictionary = check(path, W.x, expected)
    assert dictionary.decoder.dtype == dictionary.bias.dtype == torch.float32


def test_tensors_of_a_gpu_come_back_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:7")
    path = sdxl_unbox(tmp_path)
    with pytest.raises(RuntimeError, match=r"(?i)cuda"):
        torch.load(path / "state_dict.pth", weights_only=True)
    assert import_sae(path)[0].decoder.device.type == "cpu"


def test_what_the_source_says_is_returned(tmp_path: Path) -> None:
    assert import_sae(sdxl_unbox(tmp_path))[1] == {"n_dirs_local": WIDTH, "d_model": DIM, "k": K}


@pytest.mark.parametrize(
    "change",
    [
        {"latent_bias": torch.zeros(WIDTH + 1)},
        {"latent_bias": torch.zeros(WIDTH, 1)},
        {"decoder.weight": W.W_dec},
        {"encoder.weight": torch.zeros(WIDTH)},
        {"encoder.weight": torch.zeros(0, DIM)},
    ],
    ids=["longer", "matrix", "transposed", "flat", "empty"],
)
def test_tensor_of_another_shape_is_refused_by_name(
    tmp_path: Path, change: dict[str, Tensor]
) -> None:
    ((name, _),) = change.items()
    with pytest.raises(CorruptArtifactError, match=rf"{name} has shape"):
        import_sae(sdxl_unbox(tmp_path, **change))


def test_missing_tensor_is_refused_by_name(tmp_path: Path) -> None:
    stored = {"state_dict": {"encoder.weight": W.W_enc.T.contiguous()}}
    configured(tmp_path, "state_dict.pth", stored, {"k": K})
    with pytest.raises(CorruptArtifactError, match="no tensor latent_bias"):
        import_sae(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_weights_that_are_no_numbers_are_refused_by_row_and_column(
    tmp_path: Path, value: float
) -> None:
    weight = W.W_enc.T.double()
    weight[3, 2] = weight[7, 1] = value
    path = sdxl_unbox(tmp_path, **{"encoder.weight": weight})
    with pytest.raises(CorruptArtifactError, match=r"encoder\.weight holds NaN.*row 3, column 2"):
        import_sae(path)


def test_bias_that_is_no_number_is_refused_by_its_entry(tmp_path: Path) -> None:
    bias = W.b_enc.index_fill(0, torch.tensor([5]), float("nan"))
    with pytest.raises(CorruptArtifactError, match=r"latent_bias holds NaN.*in entry 5"):
        import_sae(sdxl_unbox(tmp_path, latent_bias=bias))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_stand_for_other_numbers_are_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    with pytest.raises(InvalidInputError, match=f"latent_bias holds {dtype}"):
        import_sae(sdxl_unbox(tmp_path, latent_bias=torch.ones(WIDTH).to(dtype)))


def test_sparse_tensor_is_no_tensor_of_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CorruptArtifactError, match="no tensor latent_bias"):
        import_sae(sdxl_unbox(tmp_path, latent_bias=torch.ones(WIDTH).to_sparse()))


def test_folded_weights_beyond_float32_are_refused(tmp_path: Path) -> None:
    path = write_msae(tmp_path / MSAE, scaling_factor=1e-39)
    with pytest.raises(CorruptArtifactError, match="do not fit float32"):
        import_sae(path)


def test_missing_setting_is_refused_by_name(tmp_path: Path) -> None:
    path = sdxl_unbox(tmp_path)
    (path / "config.json").write_text("{}")
    with pytest.raises(CorruptArtifactError, match="no k"):
        import_sae(path)


@pytest.mark.parametrize("k", [0, -1, 2.5, "3", True, None])
def test_k_that_is_no_positive_integer_is_refused(tmp_path: Path, k: Any) -> None:
    path = sdxl_unbox(tmp_path)
    (path / "config.json").write_text(json.dumps({"k": k}))
    with pytest.raises(CorruptArtifactError, match="not a positive integer"):
        import_sae(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"], ids=["empty", "cut", "list", "latin"])
def test_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    path = sdxl_unbox(tmp_path)
    (path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptArtifactError, match=r"config\.json"):
        import_sae(path)


def test_setting_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    path = sdxl_unbox(tmp_path)
    (path / "config.json").write_text('{"k": 3, "d_model": 5, "k": 2}')
    with pytest.raises(CorruptArtifactError, match="k stands there twice"):
        import_sae(path)


@pytest.mark.parametrize(
    "settings",
    [
        {f"unknown_{n}": n for n in range(100_000)},
        {"unknown" * 10_000: 1},
        {"unknown": list(range(100_000))},
        {"k": "3" * 100_000},
        {"unknown\n\x1b[31m": 1},
    ],
    ids=["many", "long-name", "long-value", "long-known-value", "control-characters"],
)
def test_message_is_a_few_lines_whatever_the_settings(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = sdxl_unbox(tmp_path)
    (path / "config.json").write_text(json.dumps({"k": K} | settings))
    with pytest.raises(VisionSaeError, match=r"config\.json") as raised:
        import_sae(path)
    assert len(str(raised.value)) < 1000
    assert str(raised.value).isprintable()


def test_message_about_tensors_is_a_few_lines_whatever_their_number(tmp_path: Path) -> None:
    others = {f"other_{n}": torch.zeros(1) for n in range(2_000)}
    with pytest.raises(InvalidInputError, match="and 1995 others") as raised:
        import_sae(sdxl_unbox(tmp_path, **others))
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_cut_torch_archive_is_refused(tmp_path: Path, share: float) -> None:
    file = sdxl_unbox(tmp_path) / "state_dict.pth"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(CorruptArtifactError, match=r"state_dict\.pth cannot be read"):
        import_sae(tmp_path)


def test_cut_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("{}")
    (tmp_path / "sae.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CorruptArtifactError, match=r"sae\.safetensors is damaged"):
        import_sae(tmp_path)


def test_unknown_files_are_refused_with_the_formats_there_are(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"?")
    with pytest.raises(InvalidInputError) as raised:
        import_sae(tmp_path)
    assert all(name in str(raised.value) for name in FORMATS.names)


def test_directory_with_a_part_of_the_files_is_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sae_weights.safetensors").write_bytes(b"")
    names = r"saelens also needs cfg\.json; llamascopium also needs config\.json"
    with pytest.raises(InvalidInputError, match=names):
        import_sae(tmp_path)


def test_missing_source_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        import_sae(tmp_path / "nowhere", "saelens")


def test_source_whose_name_no_file_can_have_is_refused_in_a_line() -> None:
    with pytest.raises(InvalidInputError, match="cannot be looked up") as raised:
        import_sae(Path("n" * 5000))
    assert len(str(raised.value)) < 200


def test_file_that_a_named_format_needs_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"cfg\.json"):
        import_sae(tmp_path, "saelens")


def test_unknown_format_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="'onnx'.*sparsify"):
        import_sae(tmp_path, "onnx")


def test_server_and_what_it_loads_never_read_foreign_checkpoints() -> None:
    root = Path(__file__).parents[3]
    sources = [p for d in ("server", "vision_sae") for p in (root / d).rglob("*.py")]
    own = root / "vision_sae/dictionaries/interop"
    users = [p for p in sources if "interop" in p.read_text() and own not in p.parents]
    assert {p.relative_to(root).as_posix() for p in users} == {
        "vision_sae/api/loading.py",  # `vision_sae.load_dictionary` of a foreign checkpoint
        "vision_sae/cli/dictionaries.py",
    }


def test_the_page_about_formats_has_a_row_for_each() -> None:
    page = (Path(interop.__file__).parent / "README.md").read_text("utf-8")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(FORMATS.names)


def test_formats_are_told_without_torch_and_described_for_documents() -> None:
    script = (
        "import sys; from vision_sae.dictionaries.interop.format import FORMATS; "
        "FORMATS.check('vit-prisma'); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    rows = {row["name"]: row for row in described()}
    assert list(rows) == list(FORMATS.names)
    assert all(row["version"] >= 1 and row["summary"] and row["versions"] for row in rows.values())
    assert [name for name, row in rows.items() if row["written"]] == ["saelens"]


def test_a_format_of_another_distribution_is_asked_for_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = TopKSae(k=1, w_enc=W.W_enc.T, b_enc=W.b_enc, w_dec=W.W_dec, b_dec=W.b_dec)
    other = Format(
        name="orchard",
        summary="an orchard's",
        versions="1",
        sign=Sign.RARE_NAMES,
        recognises=lambda path: (path / "tree.bin").is_file(),
        load=lambda path, ignored: (sae, {"from": path.name}),
    )
    monkeypatch.setattr(FORMATS, "_registered", {**FORMATS._registered, "orchard": other})
    (tmp_path / "tree.bin").write_bytes(b"")
    assert detect(tmp_path) == "orchard"
    assert import_sae(tmp_path) == (sae, {"from": tmp_path.name})
    with pytest.raises(InvalidInputError, match="read, not written; choose one of saelens"):
        export_sae(sae, tmp_path / "out", "orchard")
