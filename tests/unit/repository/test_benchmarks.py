"""Benchmarks take --device, and what they measure on a GPU is computed right: tiny, on the CPU."""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from tests.benchmarks import (
    _cpu_choosing,
    _device,
    _gpu,
    _roofline,
    attribution,
    cpu,
    harvest,
    patch_index,
    sae_training,
)
from tests.benchmarks import devices as benchmark
from tests.benchmarks._roofline import Roofline
from tests.worlds import serving, wire
from tests.worlds.tiny import SITE, noise_image, picture_folder, tiny_model
from vision_sae import devices
from vision_sae.bundles import patch_index_gpu
from vision_sae.bundles.patch_index import PatchIndex
from vision_sae.config import HarvestConfig
from vision_sae.dictionaries import shortlist
from vision_sae.dictionaries.protocol import SiteDictionary
from vision_sae.pictures.folder import image_folder

WITHOUT_DEVICE = {
    "faults": "counts faults, whatever computes; its commands obey VISION_SAE_DEVICE",
    "house": "reads the code",
    "nnls": "its solver computes on the CPU alone",
}
"""{benchmark: why it has no --device}"""
LIMITS = Roofline(flops=1e12, bandwidth=1e9)


def test_a_benchmark_takes_a_device_or_is_known_to_need_none() -> None:
    folder = Path(_device.__file__).parent
    sources = {path.stem: path.read_text("utf-8") for path in folder.glob("[!_]*.py")}
    without = {name for name, source in sources.items() if "    report(" not in source}
    assert without == set(WITHOUT_DEVICE)
    own = 'add_argument("--device"'
    assert not [name for name, source in sources.items() if own in source]


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str | None]:
    """`_device.report` of a benchmark that sees the setting of the process."""
    seen: list[str | None] = []

    def measure(arguments: argparse.Namespace) -> dict[str, Any]:
        seen.append(os.environ.get(devices.DEVICE_VARIABLE))
        return {"rows": arguments.rows}

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=7)
    monkeypatch.setattr("sys.argv", ["benchmark", *words])
    _device.report(parser, measure)
    return seen


def test_the_report_names_its_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(devices.DEVICE_VARIABLE, raising=False)
    assert run(monkeypatch, "--device", "cpu") == ["cpu"]
    told = capsys.readouterr()
    assert json.loads(told.out) == {"device": devices.device_name("cpu"), "rows": 7}
    assert told.err == f"computing on {devices.shown('cpu')}\n"
    assert devices.DEVICE_VARIABLE not in os.environ


def test_the_report_has_the_memory_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "_accelerators", lambda: ("cuda:0",))
    monkeypatch.setattr(devices, "_compute_exactly", lambda: None)
    monkeypatch.setattr(devices, "device_name", lambda _: "a GPU")
    monkeypatch.setattr(devices, "shown", lambda _: "cuda:0 (a GPU)")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**20)
    assert run(monkeypatch, "--device", "cuda") == ["cuda:0"]
    assert json.loads(capsys.readouterr().out) == {"device": "a GPU", "rows": 7, "peak_gpu_mb": 3}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 0)
    assert _device.peak("cuda:0") == {}
    assert _device.peak("cpu") == {}


def test_an_absent_device_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--device", "cuda:77")
    assert ended.value.code == 2
    assert "this machine has no device cuda:77" in capsys.readouterr().err


def test_the_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LIMITS.step_seconds(10, 100) == pytest.approx(2 * 4096 * 1000 / 1e12 + 50 * 1000 / 1e9)
    calls: list[int] = []
    assert _roofline.fewest_seconds(lambda: calls.append(1), "cpu") > 0
    assert len(calls) == 30
    seconds: list[Any] = []

    def two_seconds(work: Any, _: str) -> float:
        seconds.append(work())
        return 2.0

    monkeypatch.setattr(_roofline, "fewest_seconds", two_seconds)
    assert _roofline.gemm_flops("cpu", (4, 5, 6)) == 2 * 4 * 5 * 6 / 2
    assert _roofline.bandwidth("cpu", 1000) == (4000 + 4000) / 2
    assert seconds[0].shape == (4, 6)


def test_training_against_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> Any:
        raise ImportError("No module named 'sparsify'")

    monkeypatch.setitem(sae_training.SYSTEMS, "sparsify", absent)
    measured, share = _gpu.training(16, 64, 4, "cpu", LIMITS)
    assert measured["training_vs_dense"]
    assert measured["training_vs_sparsify"] is None
    assert share >= 0
    stepped: list[float] = []

    def peer(*_: Any) -> Any:
        return lambda rows, rate: stepped.append(rate), None

    def peer_seconds(step: Any, *_: Any) -> float:
        step(torch.ones(1, 16))
        return 5.0

    monkeypatch.setitem(sae_training.SYSTEMS, "sparsify", peer)
    monkeypatch.setattr(sae_training, "median_seconds", peer_seconds)
    monkeypatch.setattr(sae_training, "step_seconds", lambda *_: 2.0)
    monkeypatch.setattr(sae_training, "dense_step_seconds", lambda *_: 6.0)
    measured, share = _gpu.training(1000, 16000, 4, "cpu", LIMITS)
    assert measured == {"training_vs_dense": 3.0, "training_vs_sparsify": 2.5}
    assert share == pytest.approx((2 * 4096 * 16e6 / 1e12 + 50 * 16e6 / 1e9) / 2, abs=1e-3)
    assert stepped == [1e-3]


def test_harvest_against_the_bare_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = image_folder(picture_folder(tmp_path / "pictures", 6))
    config = HarvestConfig(sites=(SITE,), thumbnail=16, batch_size=4)
    measured = harvest.compare(tiny_model(), pictures, config, 1)
    assert measured["images"] == 6
    assert measured["ratio"] > 0
    bare, whole = iter([9.0, 1, 3, 1]), iter([4.0, 2])
    monkeypatch.setattr(harvest, "bare_seconds", lambda *_: next(bare))
    monkeypatch.setattr(harvest, "harvest_seconds", lambda *_: next(whole))
    assert harvest.compare(tiny_model(), pictures, config, 2)["ratios"] == [0.5, 1.0]


def test_encode_over_grpc_against_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, files = wire.picture_state(tmp_path), []
    for seed in range(3):
        noise_image(24, 24, seed).save(data := io.BytesIO(), "PNG")
        files.append(data.getvalue())
    bundle = state.dictionaries[serving.DICTIONARY].bundle
    model, features = tiny_model(img_size=16), SiteDictionary(bundle.dictionary, bundle.site)
    with serving.address(state) as address:
        asked = (address, serving.DICTIONARY, model, features, files)
        assert _gpu.encode_time_ratio(*asked, calls=4, rounds=1) > 0
    rates = np.array([[2.0, 4, 4], [4.0, 4, 8], [9.0, 9, 9]])
    monkeypatch.setattr(attribution, "in_rounds", lambda *_: rates)
    assert _gpu.encode_time_ratio("", "", model, features, files) == 2.0


@pytest.mark.slow
def test_encode_over_grpc_with_the_server_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu, "BATCH", 2)
    monkeypatch.setattr(attribution, "_PASSES", 1)
    monkeypatch.setattr(attribution, "_CLIENTS", 2)
    assert _gpu.encode_ratio(calls=2, rounds=1) > 0


def test_the_index_against_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _gpu.index_ratio(rows=300, dim=8, queries=20) > 0
    cloned: list[object] = []

    def clone(_resources: object, _gpu_number: object, index: object) -> object:
        cloned.append(index)
        return index

    monkeypatch.setattr(PatchIndex, "use_gpu", lambda *_: True)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", clone, raising=False)
    assert _gpu.index_ratio(rows=300, dim=8, queries=20) > 0
    assert len(cloned) == 1


def test_the_figures_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = {"training_vs_dense": 3.0, "training_vs_sparsify": 2.0}
    shapes: list[tuple[int, int]] = []

    def training(dim: int, width: int, *_: Any) -> Any:
        shapes.append((dim, width))
        return ratios, 0.5

    monkeypatch.setattr(_gpu, "training", training)
    monkeypatch.setattr(_gpu, "harvest_ratio", lambda: 0.97)
    monkeypatch.setattr(_gpu, "encode_ratio", lambda: 1.05)
    monkeypatch.setattr(patch_index_gpu, "gpu_of", lambda _: None)  # no faiss-gpu
    monkeypatch.setattr(_roofline, "roofline", lambda _: Roofline(5e14, 4e12))
    monkeypatch.setattr(benchmark, "tests_of_gpu", lambda: "9 passed")
    assert benchmark.gpu() is None
    monkeypatch.setattr(devices, "chosen", lambda: "cuda:0")
    monkeypatch.setattr(devices, "device_name", lambda _: "a GPU")
    assert benchmark.gpu() == {
        "name": "a GPU",
        "tests": "9 passed",
        **ratios,
        "harvest_ratio": 0.97,
        "encode_ratio": 1.05,
        "index_ratio": None,
        "roofline": {"gemm_tflops": 500.0, "bandwidth_gb_per_s": 4000.0, "training_share": 0.5},
    }
    assert shapes == [(1024, 16 * 1024)]
    monkeypatch.setattr(patch_index_gpu, "gpu_of", lambda _: 0)
    monkeypatch.setattr(_gpu, "index_ratio", lambda: 0.99)
    assert _gpu.figures("cuda:0", LIMITS)["index_ratio"] == 0.99


@pytest.mark.skipif(not shortlist.is_available(), reason="this CPU lacks AVX2")
def test_choosing_and_encoding_are_compared_with_the_product() -> None:
    rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    chosen = _cpu_choosing.choosing(rows, 2000)
    assert chosen["rows_differing"] == 0
    assert chosen["product_ms"] > 0 < chosen["choose_ms"]
    encoded = _cpu_choosing.encoding(rows, 2000)
    assert encoded["rows_per_s"] > 0 < encoded["ratio_to_dense"]


def test_a_command_is_timed_with_the_cores_it_kept_busy() -> None:
    wall, busy = cpu.command("--version")
    assert 0 < busy < 2 * wall * (os.cpu_count() or 1)


def test_the_type_that_a_build_takes_stands_beside_the_fastest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def entry(kind: str, recall: float, per_s: float) -> dict[str, Any]:
        return {
            "rows": 7, "type": kind, "recall_at_10": recall, "per_s": per_s, "chosen": kind == "b"
        }  # fmt: skip

    monkeypatch.setattr(patch_index, "_TABLE_ROWS", (7,))
    types = [entry("a", 1.0, 10.0), entry("b", 0.96, 30.0), entry("c", 0.9, 90.0)]
    assert patch_index.choices(types) == {
        "7": {"chosen": "b", "per_s": 30.0, "best_candidate_per_s": 30.0}
    }
