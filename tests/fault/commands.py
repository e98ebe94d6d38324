"""Every command with one wrong argument at a time: what is tried, and what a run of it showed.

A case is a run that works, with one of its arguments replaced. Its answer may be success, where the
value happens to be fit, or a refusal; never a traceback, never a status that is not documented, and
a refusal names the argument or quotes its value.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import resource
import signal
import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, UnionType
from typing import Any, TypeAlias

import timm
import torch
import typer
from PIL import Image
from timm.models import save_for_hf
from typer.main import get_command
from typer.testing import CliRunner, Result
from vision_sae_client.cli import app as client

from tests.worlds.labels import made
from tests.worlds.tiny import noise_image
from vision_sae import exits
from vision_sae.bundles.publish import add_descriptions
from vision_sae.bundles.read import read_bundle
from vision_sae.cli import app as library
from vision_sae.labels.entries import Unit
from vision_sae.labels.store import LabelStore
from vision_sae.models.embedded.generator import new_pipeline, write_tokenizer

Table: TypeAlias = tuple[tuple[typer.Typer, tuple[str, ...]], ...]
"""Runs: of which program, with which arguments; ``{w}`` is the world, ``{t}`` an empty folder."""
STATUSES = frozenset({exits.DONE, exits.FAULT, exits.REFUSED, exits.INTERRUPTED, exits.UNREAD})
"""What `vision_sae.exits` says that a command may end with."""
SITE = "blocks.1.update"
_SIZES = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
_HUGE = "x" * 5000
_IN_THE_CONTRACT = {"score": "text", "abstain": "abstention_reason", "carry": "source_prompt"}
"""Options of the client that a server's refusal calls by the contract's name."""
_LASTING = frozenset({"serve", "demo", "web"})
"""Commands that go on until they are ended."""
LABELS = ("--labels", "{w}/labels.sqlite", "--guesses")
DRAWN = ("--model", "sdxl:{w}/generator", "--site", "mid_block.attentions.0.update")
_PROMPTS = ("--prompts", "{w}/prompts.txt")
PLAIN = ("--config", "{w}/config.yaml")
TRAIN = ("--expansion", "2", "--k", "4", "--steps", "20", *PLAIN)


@dataclass(frozen=True)
class Wrong:
    """One run: a command's whole arguments, one of which, under this name, is wrong."""

    program: typer.Typer
    args: tuple[str, ...]
    parameter: str
    options: tuple[str, ...]
    value: str

    @property
    def names(self) -> tuple[str, ...]:
        """What a refusal may call the argument."""
        name = Path(self.value).name
        quoted = [part[:40] for part in (self.value, name, ascii(name)[1:-1]) if part.strip()]
        if not self.value:  # an empty path is that of the folder one is in
            quoted = [". ", "'.'"]
        called = _IN_THE_CONTRACT.get(self.parameter, self.parameter.replace("_", " "))
        return (*self.options, self.parameter, called, *quoted, ascii(self.value)[:40])

    def __str__(self) -> str:
        return " ".join(a if len(a) < 60 else f"{a[:20]}... ({len(a)})" for a in self.args)


@dataclass(frozen=True)
class Seen:
    """What a run showed."""

    status: int | None
    """None when the clock ended it."""
    output: str
    traceback: str
    """What was thrown and not caught, or shown as a traceback; empty for nothing."""

    def unnamed(self, case: Wrong) -> bool:
        """Whether a refusal neither names the argument nor quotes its value."""
        said = re.sub(r"[\s│╭╮╰╯─]+", " ", self.output).lower()
        spaceless = said.replace(" ", "")
        return bool(self.status) and not any(
            name.lower() in said or re.sub(r"\s", "", name.lower()) in spaceless
            for name in case.names
        )


def make_world(root: Path) -> Path:
    """Pictures of two kinds, a model, and one of everything that commands make of them."""
    torch.manual_seed(0)
    module = timm.create_model("vit_tiny_patch16_224", **(_SIZES | {"num_classes": 2}))
    save_for_hf(
        module,
        root / "model",
        model_args=_SIZES | {"num_classes": 2},
        safe_serialization=True,
    )
    lines = []
    for kind, colour in (("cat", "red"), ("dog", "blue")):
        (root / "pictures" / kind).mkdir(parents=True)
        for i in range(8):
            picture = Image.blend(noise_image(40, 36, i), Image.new("RGB", (40, 36), colour), 0.7)
            picture.save(root / "pictures" / kind / f"{i}.png")
            lines.append(json.dumps({"file": f"{kind}/{i}.png", "caption": f"a {kind}"}))
    (root / "pictures" / "captions.jsonl").write_text("\n".join(lines) + "\n")
    (root / "config.yaml").write_text(
        "describe: {describer: caption-pmi, metrics: []}\ntrain: {batch_size: 64}\n"
    )
    (root / "annotations.csv").write_text(
        f"layer,unit,description\n{SITE},0,a cat\n{SITE},1,a dog\n"
    )
    (root / "prompts.txt").write_text("a red star\na blue ring\n")
    write_tokenizer(root / "tokenizer")
    new_pipeline(root / "tokenizer").save_pretrained(root / "generator")
    (root / "notes").mkdir()
    (root / "notes" / "thesis.txt").write_text("years of work\n")
    (root / "bytes.bin").write_bytes(bytes(range(256)) * 8)
    for args in (
        ("harvest", "{w}/pictures", "{w}/store", "--model", "{w}/model", "--site", SITE),
        ("train", "{w}/store", "{w}/d", *TRAIN),
        ("build", "{w}/store", "{w}/d", "{w}/bundle"),
        ("build", "{w}/store", "{w}/d", "{w}/other"),
        ("describe", "{w}/bundle", *PLAIN),
        ("harvest", "{w}/prompts.txt", "{w}/drawn-store", *DRAWN),
        ("train", "{w}/drawn-store", "{w}/drawn-d", *TRAIN),
        ("build", "{w}/drawn-store", "{w}/drawn-d", "{w}/drawn"),
        ("describe", "{w}/drawn", *PLAIN),
        ("export", "{w}/d", "{w}/exported"),
        ("label", "{w}/bundle", "--labels", "{w}/labels.sqlite", "--work", "{w}/work", *PLAIN),
    ):
        seen = run(library, tuple(filled(args, root)))
        assert seen.status == 0, f"{args}: {seen.output}{seen.traceback}"
    rows = [asdict(made(feature, "a star")) for feature in range(4)]
    add_descriptions(read_bundle(root / "drawn"), root / "drawn", rows, {})
    store = LabelStore(root / "labels.sqlite")
    for feature, text in enumerate(("a cat", "a dog", "a red cat", "fur")):
        store.edit(Unit("dictionaries/bundle", feature), text)
    store.close()
    return root


WORKING: Table = (
    (library, ("harvest", "{w}/pictures", "{t}/s", "--model", "{w}/model", "--site", SITE)),
    (library, ("train", "{w}/store", "{t}/d", *TRAIN)),
    (library, ("sweep", "{w}/store", "{t}/sw", *TRAIN)),
    (library, ("build", "{w}/store", "{w}/d", "{t}/b")),
    (library, ("export", "{w}/d", "{t}/x")),
    (library, ("import", "{w}/exported", "{t}/i", "--store", "{w}/store")),
    (library, ("describe", "{w}/bundle", *PLAIN)),
    (library, ("match", "{w}/bundle", "{w}/other")),
    (library, ("delete", "{w}/bundle", "--image", "cat/0.png")),
    (library, ("label", "{w}/bundle", "--labels", "{t}/l.sqlite", "--work", "{t}/w", *PLAIN)),
    (library, ("score", "{w}/bundle", "{w}/annotations.csv", *PLAIN)),
    (library, ("export-labels", "{w}/labels.sqlite", "{t}/l.csv")),
    (library, ("export-exemplars", "{w}/bundle", "{t}/e")),
    (library, ("review", "{w}/bundle", "--out", "{t}/r")),
    (library, ("audit", "{w}/bundle", "cat", *LABELS)),
    (library, ("analyse", "{w}/bundle", "--images", "{w}/pictures", *LABELS)),
    (library, ("edit", "{w}/bundle", "--images", "{w}/pictures", *LABELS, "--remove", "cat")),
    (library, ("dictionaries",)),
    (library, ("fetch", "demo:dinov2-s/blocks.10.update", "--to", "{t}/f")),
    (library, ("evaluate", "dictionary", "{w}/d", "--store", "{w}/store")),
    (library, ("evaluate", "labels", "{w}/annotations.csv", "{w}/annotations.csv")),
    (library, ("evaluate", "attribution", "{w}/bundle", "--images", "{w}/pictures")),
)
"""A run of each command that a tiny world has all for."""

REFUSED_ONLY: Table = (
    (library, ("serve", "{w}/bundle", "--port", "0")),
    (library, ("demo", "--out", "{t}/o", "--work", "{t}/k", "--once")),
    (
        library,
        ("evaluate", "blocks", "{w}/drawn", "--prompts", "{w}/prompts.txt", "--out", "{t}/b"),
    ),
    (library, ("evaluate", "causal", "{w}/drawn", "--prompts", "{w}/prompts.txt")),
    (library, ("evaluate", "edits", "{w}/drawn")),
)
"""Commands that would go on for long, or forever, were nothing wrong; the clock ends those."""

ASKING: Table = (
    (client, ("info",)),
    (client, ("encode", "{w}/pictures/cat/0.png")),
    (client, ("attribute", "{w}/pictures/cat/0.png", "--target", "class:1")),
    (client, ("intervene", "{w}/pictures/cat/0.png", "--ablate", "0")),
    (client, ("describe", "0")),
    (client, ("search", "--feature", "0")),
    (client, ("label", "--list")),
    (client, ("web", "--port", "0")),
)
"""Runs of the client, of a server of pictures that answers at ``--address``."""

DRAWING: Table = ((client, ("steer", "a red star", "--out", "{t}/steered", "--steps", "1")),)
"""The same, of a server that generates."""


def values_of(kind: Any) -> tuple[str, ...]:
    """Values that an argument of a kind should refuse, or survive."""
    if kind is Path:
        return (
            *("{t}/missing", "{w}/bytes.bin", "{w}/notes", "{w}/config.yaml", ""),
            *(_HUGE, "\udcff.png", "{t}/loop", "-", "{t}/a\nb"),
        )
    if kind is int:
        return ("-1", "0", str(2**70), "1.5", "one", "")
    if kind is float:
        return ("nan", "inf", "-1", "1e400", "one", "")
    return ("", _HUGE, "no such thing", "\udcff", "../..", "a\nb", "0", "-1", "{w}/bytes.bin", "%s")


def _kind(hint: Any) -> Any:
    """The type of one value of an argument: of ``list[Path] | None`` it is ``Path``."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return _kind(next(a for a in typing.get_args(hint) if a is not type(None)))
    if typing.get_origin(hint) in (list, tuple):
        return _kind(typing.get_args(hint)[0])
    return hint


def _found(program: typer.Typer, args: Sequence[str]) -> tuple[Any, int]:
    """(click's command, how many words name it)."""
    found: Any = get_command(program)
    words = 0
    while hasattr(found, "commands"):
        found, words = found.commands[args[words]], words + 1
    return found, words


def named(program: typer.Typer) -> set[str]:
    """Every command of a program, a group's with the group's name before it."""
    found: set[str] = set()
    for name, command in get_command(program).commands.items():  # type: ignore[attr-defined]
        found |= {f"{name} {inner}" for inner in getattr(command, "commands", ())} or {name}
    return found


def cases(working: Table, besides: Sequence[str] = ()) -> Iterator[Wrong]:
    """One case for each parameter of each command and each value that is wrong for its kind.

    ``besides`` are options that every run has, unless they are what is wrong.
    """
    for program, args in working:
        found, words = _found(program, args)
        place = words
        hints = typing.get_type_hints(inspect.unwrap(found.callback))
        for parameter in found.params:
            kind = _kind(hints.get(parameter.name, str))
            positional = parameter.param_type_name == "argument"
            at, place = place, place + positional
            if kind is bool or (positional and at >= len(args)):
                continue
            for value in values_of(kind):
                if positional:
                    whole = (*args[:at], value, *args[at + 1 :])
                    options: tuple[str, ...] = ()
                else:
                    options = tuple(parameter.opts)
                    whole = (*_without(args, options), options[0], value)
                whole = (*whole[:words], *besides, *whole[words:])
                yield Wrong(program, whole, parameter.name, options, value)


def _without(args: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """The arguments but these options, each with its value."""
    skip = False
    for arg in args:
        if skip:
            skip = False
        elif arg in options:
            skip = True
        else:
            yield arg


def filled(args: Sequence[str], world: Path, temporary: Path | None = None) -> Iterator[str]:
    """The arguments with the places of the world, and of an empty folder, in them."""
    for arg in args:
        yield arg.replace("{w}", str(world)).replace("{t}", str(temporary or world))


class _ClockEndedError(BaseException):
    """Not an ``Exception``, so that nothing takes it for a fault of a picture or a request."""


_AGAIN = 5.0
"""Seconds until the clock strikes again.

What it raises is lost where Python is just then in a finaliser or a weak reference's callback.
"""


@contextmanager
def _clock(seconds: int) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise _ClockEndedError

    before = signal.signal(signal.SIGALRM, end)
    begun = time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        if left:  # the clock of the test, which goes on
            left = max(left - (time.monotonic() - begun), 0.1)
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """What a server sets for its whole process, its log and its environment, is set back."""
    root, environment = logging.getLogger(), dict(os.environ)
    factory, handlers, level = logging.getLogRecordFactory(), root.handlers[:], root.level
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        root.handlers[:], root.level = handlers, level
        os.environ.clear()
        os.environ.update(environment)


def run(program: typer.Typer, args: Sequence[str], seconds: int = 30) -> Seen:
    """Run a command in this process."""
    try:
        with _as_it_was(), _clock(seconds):
            result: Result = CliRunner().invoke(program, list(args))
    except _ClockEndedError:
        return Seen(None, "", "")
    if isinstance(result.exception, _ClockEndedError):
        return Seen(None, result.output, "")
    wanted = result.exception is None or isinstance(result.exception, SystemExit)
    traceback = "" if wanted else repr(result.exception)[:300]
    return Seen(result.exit_code, result.output, traceback or told(result.output))


def told(output: str) -> str:
    """The first line of a traceback that the output shows; empty for none."""
    return next((line for line in output.splitlines() if "Traceback (most" in line), "")


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """As on a disk that is nearly full: no file may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def try_case(case: Wrong, world: Path, temporary: Path, seconds: int = 30) -> Seen:
    """Run a case; ``temporary`` is an empty folder, in which it may write."""
    seconds = 3 if case.args[0] in _LASTING else seconds
    loop = temporary / "loop"
    if not loop.is_symlink():
        os.symlink(loop, loop)
    return run(case.program, tuple(filled(case.args, world, temporary)), seconds)
