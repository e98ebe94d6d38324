"""Every flow on a GPU that is not there: no mixed devices, no hidden transfers, no waits."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorDeviceMismatchError,
)

from tests.worlds import fake_flows
from tests.worlds.fake_cuda import DEVICE, fake_cuda, fake_sae
from vision_sae.transfers import Leaving, Placed, to_device, to_host


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    yield
    fake_flows.forget()


@pytest.mark.parametrize("name", fake_flows.FLOWS)
def test_flow(name: str) -> None:
    fake_flows.run(name)


def test_a_dictionary_on_another_device_than_its_vectors_is_caught() -> None:
    with fake_cuda(), pytest.raises(FakeTensorDeviceMismatchError):
        fake_sae(8, device="cpu").encode(torch.randn(2, 8, device=DEVICE))


def test_a_number_that_is_read_in_the_middle_is_caught() -> None:
    with fake_cuda():
        x = torch.randn(3, 4, device=DEVICE)
        with pytest.raises(DataDependentOutputException):
            x[0, 0].item()
        with pytest.raises(DataDependentOutputException):
            bool(x.isfinite().all())
        with pytest.raises(DynamicOutputShapeException):
            _ = x[x > 0]


def test_copies_are_counted_by_their_way_and_by_what_waits() -> None:
    with fake_cuda() as counts:
        x, host = torch.randn(3, 4, device=DEVICE), torch.randn(3, 4)
        before = copy(counts)
        x.cpu()
        assert counts.since(before).__dict__ == {"to_device": 0, "to_host": 1, "waits": 1}
        before = copy(counts)
        to_host(x, x + 1, host)
        assert counts.since(before).__dict__ == {"to_device": 0, "to_host": 2, "waits": 1}
        before = copy(counts)
        _ = to_device(host, DEVICE) + x[[0, 1, 2]]  # a list is copied, too
        assert counts.since(before).__dict__ == {"to_device": 2, "to_host": 0, "waits": 0}
        before = copy(counts)
        _ = x * 2.0 + torch.tensor(3.0)
        assert counts.since(before).__dict__ == {"to_device": 0, "to_host": 0, "waits": 0}


def test_a_placed_tensor_is_copied_once() -> None:
    with fake_cuda() as counts:
        placed, before = Placed(torch.randn(4)), copy(counts)
        assert placed.at(DEVICE) is placed.at(DEVICE)
        assert counts.since(before).to_device == 1


def test_on_the_cpu_nothing_is_copied() -> None:
    x = torch.randn(3)
    assert to_host(x)[0] is x
    assert Leaving(x).arrive()[0] is x
    assert to_device(x, torch.device("cpu")) is x
    assert Placed(x).at(torch.device("cpu")) is x
    assert to_host() == ()
