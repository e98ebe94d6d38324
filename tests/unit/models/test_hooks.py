"""Hooks on a chain of three modules: x -> x + 1 -> 2 x -> x - 3."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from vision_sae.models.hooks import Tap, capturing, replacing_site


class Map(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.function(x)  # type: ignore[operator]


class Tupled(nn.Module):
    """As attention modules: the output comes with something else."""

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return 2 * x, "weights"


@pytest.fixture
def chain() -> nn.Sequential:
    return nn.Sequential(Map(lambda x: x + 1), Map(lambda x: 2 * x), Map(lambda x: x - 3))


def hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


X = torch.tensor([[[5.0]]])


@pytest.mark.parametrize(("part", "value"), [("input", 6.0), ("output", 12.0), ("update", 6.0)])
def test_tap_reads_its_part(chain: nn.Sequential, part: str, value: float) -> None:
    with capturing({"s": Tap(chain[1], part)}) as captured:  # type: ignore[arg-type]
        chain(X)
    assert captured["s"].item() == value


@pytest.mark.parametrize(
    ("part", "result"),
    # 5 -> 6 -> 12 -> 9. The tapped value is replaced by 100: as the input of the doubling
    # 200 - 3, as its output 100 - 3, as its update (6 + 100) - 3.
    [("input", 197.0), ("output", 97.0), ("update", 103.0)],
)
def test_tap_writes_its_part(chain: nn.Sequential, part: str, result: float) -> None:
    tap = Tap(chain[1], part)  # type: ignore[arg-type]
    with replacing_site(tap, lambda x: torch.full_like(x, 100)):
        assert chain(X).item() == result


def test_several_sites_in_one_pass(chain: nn.Sequential) -> None:
    taps = {"a": Tap(chain[0], "output"), "b": Tap(chain[2], "output")}
    with capturing(taps) as captured:
        chain(X)
    assert {site: value.item() for site, value in captured.items()} == {"a": 6.0, "b": 9.0}


def test_tensor_of_a_tuple_is_read() -> None:
    module = Tupled()
    with capturing({"s": Tap(module, "output")}) as captured:
        module(X)
    assert captured["s"].item() == 10


def test_rest_of_a_tuple_survives_an_edit() -> None:
    module = Tupled()
    with replacing_site(Tap(module, "output"), lambda x: x + 1):
        value, rest = module(X)
    assert (value.item(), rest) == (11, "weights")


def test_stop_computes_nothing_behind_the_last_site(chain: nn.Sequential) -> None:
    with capturing({"s": Tap(chain[1], "output")}, stop=True) as captured:
        chain(X)
    assert captured["s"].item() == 12
    assert [module.calls for module in chain] == [1, 1, 0]


def test_stop_waits_for_every_site(chain: nn.Sequential) -> None:
    taps = {"late": Tap(chain[2], "output"), "early": Tap(chain[0], "output")}
    with capturing(taps, stop=True) as captured:
        chain(X)
    assert set(captured) == {"late", "early"}


def test_without_stop_everything_is_computed(chain: nn.Sequential) -> None:
    with capturing({"s": Tap(chain[0], "output")}):
        assert chain(X).item() == 9


def test_identity_edit_is_bit_identical(chain: nn.Sequential) -> None:
    x = torch.randn(1, 3, 1)
    plain = chain(x)
    with replacing_site(Tap(chain[1], "update"), lambda v: v):
        assert torch.equal(chain(x), plain)


def test_untouched_positions_are_bit_identical(chain: nn.Sequential) -> None:
    x = torch.randn(1, 3, 1)
    plain = chain(x)

    def edit(v: Tensor) -> Tensor:
        v = v.clone()
        v[:, 1] = 0
        return v

    with replacing_site(Tap(chain[1], "update"), edit):
        edited = chain(x)
    assert torch.equal(edited[:, [0, 2]], plain[:, [0, 2]])
    assert not torch.equal(edited[:, 1], plain[:, 1])


def test_hooks_are_removed(chain: nn.Sequential) -> None:
    taps = {part: Tap(chain[1], part) for part in ("input", "output", "update")}
    with capturing(taps), replacing_site(taps["input"], lambda x: x):  # type: ignore[arg-type]
        assert hooks(chain) == 4
    assert hooks(chain) == 0


def test_hooks_are_removed_after_an_exception(chain: nn.Sequential) -> None:
    tap = Tap(chain[1], "output")

    def fail(_x: Tensor) -> Tensor:
        raise ValueError("edit")

    with pytest.raises(ValueError, match="edit"), capturing({"s": tap}), replacing_site(tap, fail):
        chain(X)
    assert hooks(chain) == 0


def test_hooks_are_removed_after_stopping(chain: nn.Sequential) -> None:
    with capturing({"s": Tap(chain[0], "output")}, stop=True):
        chain(X)
    assert hooks(chain) == 0


def test_threads_see_their_own_edits_only(chain: nn.Sequential) -> None:
    opened = threading.Barrier(3, timeout=30)
    results: dict[float, float] = {}

    def run(value: float) -> None:
        with replacing_site(Tap(chain[1], "output"), lambda x: torch.full_like(x, value)):
            opened.wait()  # both edits are in place before anyone computes
            results[value] = chain(X).item()
            opened.wait()

    threads = [threading.Thread(target=run, args=(value,)) for value in (10.0, 20.0)]
    for thread in threads:
        thread.start()
    opened.wait()
    plain = chain(X).item()
    opened.wait()
    for thread in threads:
        thread.join()
    assert results == {10.0: 7.0, 20.0: 17.0}
    assert plain == 9.0


def test_threads_see_their_own_captures_only(chain: nn.Sequential) -> None:
    with capturing({"s": Tap(chain[0], "output")}) as captured:
        other = threading.Thread(target=chain, args=(X,))
        other.start()
        other.join()
    assert captured == {}
