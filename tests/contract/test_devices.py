"""Every command that computes takes --device and --dtype, and computes by them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from tests.fault.commands import named
from vision_sae import devices
from vision_sae.cli import app
from vision_sae.cli import command as commands
from vision_sae.errors import InvalidInputError

WITHOUT_DEVICE = {
    "delete": "counts stored codes again, without model or dictionary",
    "dictionaries": "lists files",
    "doctor": "lists the devices",
    "export": "writes the weights of a dictionary in another format",
    "export-exemplars": "writes stored exemplars",
    "export-labels": "writes stored labels",
    "fetch": "copies files",
    "review": "shows stored exemplars and counts answers",
}
"""{command: why it has no device}"""


SEVERAL = "cuda:0,cuda:1"


def options(name: str) -> set[str]:
    """The options of a command, a group's commands with the group's name before theirs."""
    found = get_command(app)
    for word in name.split():
        found = found.commands[word]  # type: ignore[attr-defined]
    return {option for parameter in found.params for option in parameter.opts}


def test_a_command_computes_on_a_device_or_is_known_to_compute_nothing() -> None:
    setting = {"--device", "--dtype"}
    missing = {name for name in named(app) if not setting <= options(name)}
    assert missing == set(WITHOUT_DEVICE)
    assert not any(setting & options(name) for name in missing)


class Probe:
    """An app with one command that computes, and what its body saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        self.app = typer.Typer()

        @commands.command("probe", self.app, computes=True)
        def probe(config: commands.Configuration = None, fail: bool = False) -> None:
            self.seen.append((devices.requested(), devices.requested_dtype()))
            if fail:
                raise InvalidInputError("it failed", field="fail")

        @commands.command("spread", self.app, computes=True, on_several=True)
        def spread() -> None:
            self.seen += [(device, "auto") for device in devices.several()]

    def run(self, *arguments: object, command: str = "probe") -> int:
        words = [command, *map(str, arguments)]
        return CliRunner().invoke(self.app, words).exit_code


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Probe]:
    monkeypatch.delenv(devices.DEVICE_VARIABLE, raising=False)
    monkeypatch.delenv(devices.DTYPE_VARIABLE, raising=False)
    monkeypatch.setattr(devices, "_accelerators", lambda: ("cuda:0", "cuda:1"))
    monkeypatch.setattr(devices, "_compute_exactly", lambda: None)
    monkeypatch.setattr(devices, "device_name", lambda device: "a GPU")
    monkeypatch.setattr(devices, "available", lambda: ("cpu (a CPU)", "cuda:0 (a GPU, 9 GiB)"))
    yield Probe()
    assert not {devices.DEVICE_VARIABLE, devices.DTYPE_VARIABLE} & set(os.environ)


def test_a_flag_beats_the_environment_which_beats_the_file(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text("{device: cuda:1, dtype: float16}")
    file = ("--config", tmp_path / "c.yaml")
    probe.run()
    probe.run(*file)
    monkeypatch.setenv("VISION_SAE_DEVICE", "cuda:0")
    probe.run(*file)
    probe.run()
    probe.run(*file, "--device", "cpu", "--dtype", "float32")
    probe.run("--device", "auto")
    assert probe.seen == [
        ("auto", "auto"),
        ("cuda:1", "float16"),
        ("cuda:0", "float16"),
        ("cuda:0", "auto"),
        ("cpu", "float32"),
        ("auto", "auto"),
    ]
    monkeypatch.delenv("VISION_SAE_DEVICE")


@pytest.mark.parametrize(
    "arguments",
    [("--device", "gpu"), ("--device", "cuda:2"), ("--dtype", "int8"), ("--device", SEVERAL)],
)
def test_a_wrong_setting_is_refused_before_the_body(probe: Probe, arguments: tuple[str]) -> None:
    assert probe.run(*arguments) == 2
    assert probe.seen == []


def test_a_list_of_devices_is_for_commands_that_spread_their_work(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe.run("--device", SEVERAL, command="spread") == 0
    monkeypatch.setenv("VISION_SAE_DEVICE", SEVERAL)
    assert probe.run() == 2
    assert probe.run(command="spread") == 0
    assert probe.seen == [("cuda:0", "auto"), ("cuda:1", "auto")] * 2
    monkeypatch.delenv("VISION_SAE_DEVICE")


def test_the_setting_ends_with_a_command_that_fails(probe: Probe) -> None:
    assert probe.run("--device", "cuda:1", "--fail") == 2
    assert devices.requested() == "auto"
