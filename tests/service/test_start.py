"""How a server starts: its ports come first, and its log holds no words of callers."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from vision_sae_server import start
from vision_sae_server.runtime.binding import bind, check_bind, serve_metrics
from vision_sae_server.runtime.logs import Steps, configure

from tests.worlds.serving import zoo
from vision_sae.config import ServeConfig
from vision_sae.errors import InvalidInputError

SECRET = "a large blue ring"
HOSTS = ["127.0.0.1", "::1", "[::1]"]


def skip_without(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), 0), family=family).close()
    except OSError as error:
        pytest.skip(f"this machine cannot bind {host}: {error}")


@pytest.mark.parametrize("host", HOSTS)
async def test_a_server_has_its_port_before_it_starts(host: str) -> None:
    skip_without(host)
    server, port = bind(ServeConfig(host=host, port=0))
    try:
        assert isinstance(server, grpc.aio.Server)
        with pytest.raises(InvalidInputError, match=f"{port} is in use") as caught:
            bind(ServeConfig(host=host, port=port))
        assert caught.value.field == "port"
    finally:
        await server.stop(0)


@pytest.mark.parametrize("host", HOSTS)
def test_metrics_are_served_in_both_families(host: str) -> None:
    skip_without(host)
    url = serve_metrics(ServeConfig(host=host, metrics_port=0))
    assert b"vision_sae_calls_inside" in urllib.request.urlopen(url, timeout=10).read()
    port = int(url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(InvalidInputError, match="--metrics-port"):
        serve_metrics(ServeConfig(host=host, metrics_port=port))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_leave(host: str) -> None:
    check_bind(host, allow_insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "example.org", "::ffff:10.0.0.1"])
def test_other_addresses_need_leave(host: str) -> None:
    with pytest.raises(InvalidInputError, match="--allow-insecure-bind"):
        check_bind(host, allow_insecure=False)
    check_bind(host, allow_insecure=True)


def test_an_empty_host_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        check_bind("", allow_insecure=True)


def test_models_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zoo(tmp_path, described=False).path
    monkeypatch.setattr(start, "weights_bytes", lambda name: {"tiny": 600, "demo:clip": 500}[name])
    monkeypatch.setattr(start, "check_contrastive", lambda _: None)
    monkeypatch.setattr("vision_sae.memory.available", lambda: 1000)
    start.check_served([path], ServeConfig())
    with pytest.raises(InvalidInputError, match=r"loading tiny and demo:clip takes at least"):
        start.check_served([path], ServeConfig(clip="demo:clip"))


@pytest.mark.parametrize("allowed", [False, True])
def test_hubs_are_asked_only_when_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    path = zoo(tmp_path, described=False).path
    seen: list[str | None] = []

    def stop(*_: object) -> None:
        seen.append(os.environ.get("HF_HUB_OFFLINE"))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "environ", {"PATH": ""})
    monkeypatch.setattr(start, "configure", lambda _: None)
    monkeypatch.setattr(start, "_loaded", stop)
    with pytest.raises(KeyboardInterrupt):
        start.run([path], ServeConfig(port=0), allow_downloads=allowed)
    assert seen == [None if allowed else "1"]


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """What `configure` changes of the process is put back."""
    root, factory = logging.getLogger(), logging.getLogRecordFactory()
    handlers, level = root.handlers[:], root.level
    with warnings.catch_warnings():
        yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.setLogRecordFactory(factory)
    for name in ("vision_sae", "vision_sae_server"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.usefixtures("logging_restored")
class TestLogs:
    def test_a_record_is_one_line_with_its_time_level_and_source(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        configure("info")
        logging.getLogger("vision_sae_server").info("draining")
        logging.getLogger("vision_sae_server").debug("not at this level")
        logging.getLogger("vision_sae").warning("unit %d has failed", 7)
        first, second = capfd.readouterr().err.splitlines()
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
        assert re.fullmatch(stamp + " INFO vision_sae_server: draining", first)
        assert re.fullmatch(stamp + " WARNING vision_sae: unit 7 has failed", second)

    def test_a_level_silences_what_is_less_severe(self, capfd: pytest.CaptureFixture[str]) -> None:
        configure("error")
        logging.getLogger("vision_sae_server").warning("draining")
        assert capfd.readouterr().err == ""

    def test_words_that_other_libraries_quote_are_left_out(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from diffusers.utils import logging as diffusers_logging

        configure("debug")
        said = diffusers_logging.get_logger("diffusers.pipelines.some")  # it has its own handler
        said.warning(f"The following part of your input was truncated: ['{SECRET}']")
        logging.getLogger("httpx").warning("POST /%s", SECRET)
        logging.getLogger("httpx").info("POST /%s", SECRET)
        said.error("failed", exc_info=ValueError(SECRET))
        logging.warning("to the root: %s", SECRET)
        warnings.warn(f"strange: {SECRET}", stacklevel=1)
        err = capfd.readouterr().err
        assert SECRET not in err
        for library in ("httpx", "root"):
            assert f"WARNING {library}: message left out: it may quote a caller" in err

    def test_an_exception_tells_where_and_of_which_class_but_not_its_words(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        configure("info")
        try:
            try:
                raise KeyError(SECRET)
            except KeyError as error:
                raise ValueError(f"no picture of {SECRET}") from error
        except ValueError:
            logging.getLogger("vision_sae_server").exception("Generate failed unexpectedly")
        err = capfd.readouterr().err
        assert SECRET not in err
        assert err.index("KeyError (message left out") < err.index("ValueError (message left out")
        assert "test_start.py" in err

    def test_steps_say_when_they_began(self, capfd: pytest.CaptureFixture[str]) -> None:
        configure("info")
        step = Steps()
        step("loading the model tiny")
        assert re.search(r": \[  0\.\d s\] loading the model tiny\n$", capfd.readouterr().err)


def test_loading_ends_at_once_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio would note the first Ctrl-C and go on until the next await."""
    path = zoo(tmp_path, described=False).path

    def load(*_: object) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "configure", lambda _: None)
    monkeypatch.setattr(start, "_loaded", load)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(KeyboardInterrupt):
        start.run([path], ServeConfig(port=0))


def test_a_model_that_is_not_served_has_no_device(tmp_path: Path) -> None:
    path = zoo(tmp_path, described=False).path
    start.check_served([path], ServeConfig(devices={"tiny": "cpu"}))
    with pytest.raises(
        InvalidInputError, match=r"demo:clip is not served.*served are tiny"
    ) as told:
        start.check_served([path], ServeConfig(devices={"demo:clip": "cuda:1"}))
    assert told.value.field == "serve.devices"


def test_several_devices_are_for_models_of_bundles(tmp_path: Path) -> None:
    path = zoo(tmp_path, described=False).path
    start.check_served([path], ServeConfig(devices={"tiny": "cuda:0,cuda:1"}))
    labelling = ServeConfig(clip="demo:clip", devices={"demo:clip": "cuda:0,cuda:1"})
    with pytest.raises(InvalidInputError, match="demo:clip labels, which takes one") as told:
        start.check_served([path], labelling)
    assert told.value.field == "serve.devices"
