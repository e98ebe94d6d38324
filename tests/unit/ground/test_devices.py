"""The device that a process computes on, on machines whose GPUs are pretended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vision_sae import devices
from vision_sae.errors import InvalidInputError

GIB = 2**30
GPUS = {"cuda:0": ("NVIDIA H200", 140, 1), "cuda:1": ("NVIDIA T4", 15, 12)}
"""{device: (product's name, GiB, free GiB)}"""
Pretend = Callable[[dict[str, tuple[str, int, int]]], None]


@pytest.fixture(autouse=True)
def no_setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the environment, and no choice from before."""
    for name in (devices.DEVICE_VARIABLE, devices.DTYPE_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_state", [devices._State()])
    devices.device_name.cache_clear()
    yield
    devices.device_name.cache_clear()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Give torch these GPUs, and no other accelerator."""

    def install(gpus: dict[str, tuple[str, int, int]]) -> None:
        def properties(device: str) -> SimpleNamespace:
            name, memory, _ = gpus[device]
            return SimpleNamespace(name=name, total_memory=memory * GIB)

        def free(device: str) -> tuple[int, int]:
            _, memory, left = gpus[device]
            return left * GIB, memory * GIB

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", free)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    install({})
    return install


def test_without_a_gpu_the_cpu_is_taken_in_silence(pretend: Pretend) -> None:
    told: list[str] = []
    with devices.using(tell=told.append):
        assert devices.chosen() == "cpu"
    assert told == []
    assert devices.available() == (f"cpu ({devices.device_name('cpu')})",)


def test_the_first_gpu_with_room_is_taken_once_and_told(pretend: Pretend) -> None:
    pretend(GPUS)
    told: list[str] = []
    with devices.using(tell=told.append):
        assert devices.chosen() == "cuda:1"  # the first one has 1 GiB free, less than 2
        assert devices.chosen(needed=100 * GIB) == "cuda:1"  # what computes together stays together
    assert told == ["computing on cuda:1 (NVIDIA T4, 15 GiB); --device chooses another"]


def test_what_does_not_fit_on_a_gpu_goes_to_the_cpu_and_is_told(pretend: Pretend) -> None:
    pretend(GPUS)
    told: list[str] = []
    with devices.using(tell=told.append):
        assert devices.chosen(needed=13 * GIB) == "cpu"
    (line,) = told
    assert line.endswith("no GPU has 13 GiB of memory free")


def test_apples_gpu_comes_behind_others(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.chosen() == "mps"
    assert devices.chosen("mps") == "mps"


@pytest.mark.parametrize(
    ("named", "taken"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_named_device_is_taken_however_full_it_is(
    pretend: Pretend, named: str, taken: str
) -> None:
    pretend(GPUS)
    assert devices.chosen(named) == taken


@pytest.mark.parametrize("named", ["cuda:2", "mps"])
def test_an_absent_device_is_refused_with_those_that_are_there(
    pretend: Pretend, named: str
) -> None:
    pretend(GPUS)
    with pytest.raises(InvalidInputError) as caught:
        devices.chosen(named)
    assert caught.value.field == "device"
    assert f"no device {named}" in str(caught.value)
    assert "cuda:0 (NVIDIA H200, 140 GiB), cuda:1 (NVIDIA T4, 15 GiB)" in str(caught.value)


ALIKE = {f"cuda:{number}": ("NVIDIA H200", 140, 139) for number in range(2)}


def test_several_gpus_are_for_work_that_can_be_spread(pretend: Pretend) -> None:
    pretend(ALIKE)
    with devices.using("cuda:1,cuda:0,cuda:1"):
        assert devices.several() == ("cuda:1", "cuda:0")
        for one in (devices.chosen, devices.requested_one):
            with pytest.raises(InvalidInputError, match="one device, not on cuda:1,") as caught:
                one()
            assert "--model-device MODEL=cuda:1,cuda:0" in str(caught.value)
            assert caught.value.field == "device"
    assert devices.several("cpu") == ("cpu",)
    assert devices.several() == ("auto",)  # a model that is loaded there knows what it needs
    with pytest.raises(InvalidInputError, match="no device cuda:2"), devices.using("cuda:0,cuda:2"):
        pytest.fail("the body ran")


def test_gpus_of_several_products_do_not_share_work(pretend: Pretend) -> None:
    pretend(GPUS)
    with (
        pytest.raises(InvalidInputError, match=r"H200.* and .*T4.* round differently") as caught,
        devices.using("cuda:0,cuda:1"),
    ):
        pytest.fail("the body ran")
    assert caught.value.field == "device"
    assert devices.several("cuda:1") == ("cuda:1",)


def test_an_error_of_the_gpu_itself_loses_it_and_a_lack_of_memory_does_not() -> None:
    error: Any = torch.AcceleratorError("CUDA error: out of memory")
    assert devices.is_lost(error)
    error.error_code = 2
    assert not devices.is_lost(error)
    assert not devices.is_lost(RuntimeError("CUDA error"))


@pytest.mark.parametrize(
    "named", ["", "gpu", "cuda:", "cuda:-1", "cuda:0,", "cpu,cpu", "CPU", "meta"]
)
def test_a_misspelt_device_is_refused(named: str) -> None:
    with pytest.raises(InvalidInputError, match="is no device; write auto, cpu") as caught:
        devices.chosen(named)
    assert caught.value.field == "device"


def test_the_environment_stands_behind_auto(
    pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(GPUS)
    monkeypatch.setenv("VISION_SAE_DEVICE", "cuda:0")
    assert devices.chosen() == "cuda:0"
    assert devices.chosen("cpu") == "cpu"
    with devices.using("cuda:1"):
        assert devices.chosen() == "cuda:1"
        with devices.using():
            assert devices.chosen() == "cuda:1"
        with devices.using("auto", tell=lambda _: None):
            assert devices.requested() == "auto"
    assert devices.chosen() == "cuda:0"


def test_a_choice_ends_with_the_body(pretend: Pretend) -> None:
    pretend(GPUS)
    with devices.using():
        assert devices.chosen() == "cuda:1"
    pretend({})
    assert devices.chosen() == "cpu"


def test_an_absent_device_is_refused_before_the_body_and_changes_nothing(pretend: Pretend) -> None:
    with pytest.raises(InvalidInputError, match="no device cuda:0"), devices.using("cuda"):
        pytest.fail("the body ran")
    assert devices.DEVICE_VARIABLE not in os.environ


def test_the_setting_is_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_SAE_DTYPE", "bfloat16")
    with pytest.raises(KeyError), devices.using("cpu", "float32"):
        assert devices.requested_dtype() == "float32"
        raise KeyError
    assert devices.requested_dtype() == "bfloat16"
    assert devices.DEVICE_VARIABLE not in os.environ


def test_processes_that_are_started_inherit_the_setting() -> None:
    code = "from vision_sae import devices; print(devices.requested(), devices.requested_dtype())"
    with devices.using("cpu", "float32"):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.split() == ["cpu", "float32"]


@pytest.mark.parametrize("named", ["int8", "half", "", "torch.float32"])
def test_an_unknown_precision_is_refused(named: str) -> None:
    with (
        pytest.raises(InvalidInputError, match="is no precision to compute in") as caught,
        devices.using(dtype=named),
    ):
        pytest.fail("the body ran")
    assert caught.value.field == "dtype"


def test_float32_is_not_rounded_on_a_gpu(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pretend(GPUS)
    devices.chosen("cuda")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_is_recorded_names_the_product(pretend: Pretend) -> None:
    pretend(GPUS)
    assert devices.recorded(torch.device("cuda:1"), torch.bfloat16) == {
        "device": "cuda:1",
        "device_name": "NVIDIA T4",
        "dtype": "bfloat16",
    }
    here = devices.recorded("cpu", "float32")
    assert here["device_name"] not in ("", "cpu")


def test_importing_the_setting_imports_no_torch() -> None:
    code = "import sys, vision_sae.devices, vision_sae.config; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "False"
