"""The Dockerfile's rules, read from its text: no container engine is needed."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@dataclass
class Stage:
    """One FROM and the instructions under it, as (name, arguments)."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.instructions if name == instruction]

    def one(self, instruction: str) -> str:
        (arguments,) = self.all(instruction)
        return arguments


def parse(text: str) -> list[Stage]:
    """Stages of a Dockerfile without heredocs; ARGs before the first FROM fill in the bases."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    split = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    defaults: dict[str, str] = {}
    stages: list[Stage] = []
    for name, arguments in split:
        if name == "FROM":
            base, _, alias = arguments.partition(" AS ")
            for key, value in defaults.items():
                base = base.replace(f"${{{key}}}", value)
            stages.append(Stage(base, alias.strip()))
        elif stages:
            stages[-1].instructions.append((name, arguments.strip()))
        else:
            key, _, value = arguments.partition("=")
            defaults[key] = value
    return stages


STAGES = parse((ROOT / "Dockerfile").read_text())
BUILDER, RUNTIME = STAGES[0], STAGES[-1]
RUNS = [run for stage in STAGES for run in stage.all("RUN")]
PIP_INSTALLS = [
    command.strip() for run in RUNS for command in re.findall(r"pip install [^;&]*", run)
]


def environment(stage: Stage) -> dict[str, str]:
    pairs = [pair for line in stage.all("ENV") for pair in line.split()]
    return dict(pair.split("=", 1) for pair in pairs)


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps ``path`` out: its last matching rule decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]  # a folder's rule holds below
        candidates = parts if rule.startswith("**/") else above
        if any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates):
            out = not rule.startswith("!")
    return out


def test_the_parser_joins_lines_and_fills_in_the_base() -> None:
    (stage,) = parse("ARG P=python:3\n# a comment\nFROM ${P} AS b\nRUN one \\\n# inside\n  two\n")
    assert (stage.base, stage.name) == ("python:3", "b")
    assert stage.instructions == [("RUN", "one two")]


def test_it_builds_in_one_stage_and_runs_in_another() -> None:
    assert [stage.name for stage in STAGES] == ["builder", "runtime"]
    assert RUNTIME.all("COPY") == ["--from=builder /opt/venv /opt/venv"]
    assert RUNTIME.all("RUN") == []


def test_the_base_is_slim_and_pinned() -> None:
    assert BUILDER.base == RUNTIME.base
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", RUNTIME.base)


def test_a_build_argument_chooses_cpu_or_gpu() -> None:
    assert "VARIANT=cpu" in BUILDER.all("ARG")
    assert re.search(r'case "\$VARIANT" in cpu \| gpu\) .* \*\) .* exit 1', BUILDER.all("RUN")[0])
    assert any("[${VARIANT}" in command for command in PIP_INSTALLS)


def test_every_extra_it_installs_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for command in PIP_INSTALLS
        for extras in re.findall(r"\.\[([^\]]+)\]", command)
        for extra in extras.split(",")
    }
    assert "${VARIANT}" in named
    assert (named - {"${VARIANT}"}) | {"cpu", "gpu"} <= project["optional-dependencies"].keys()


def test_everything_it_installs_is_pinned() -> None:
    assert PIP_INSTALLS
    for command in PIP_INSTALLS:
        assert "--constraint constraints.txt" in command or "--no-deps" in command, command


def test_only_torch_comes_from_another_index() -> None:
    (command,) = [command for command in PIP_INSTALLS if "index" in command]
    assert command.startswith("pip install --no-deps ")
    assert command.split()[-2:] == ["torch", "torchvision"]


def test_no_package_cache_is_left() -> None:
    assert environment(BUILDER)["PIP_NO_CACHE_DIR"] == "1"
    names = [name for name, _ in BUILDER.instructions]
    assert names.index("ENV") < names.index("RUN")
    assert all("rm -rf /var/lib/apt/lists" in run for run in RUNS if "apt-get" in run)


def test_the_user_is_a_number_and_not_root() -> None:
    user, group = RUNTIME.one("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_health_is_asked_over_grpc() -> None:
    check = RUNTIME.one("HEALTHCHECK")
    assert json.loads(check[check.index("CMD") + 3 :]) == [
        "python",
        "-m",
        "vision_sae_server.health",
    ]
    assert (ROOT / "server/vision_sae_server/health.py").exists()


def test_sigterm_reaches_the_server() -> None:
    # In shell form /bin/sh would be process 1, and it hands no signal on.
    assert RUNTIME.one("STOPSIGNAL") == "SIGTERM"
    assert json.loads(RUNTIME.one("ENTRYPOINT")) == ["vision-sae", "serve"]
    assert isinstance(json.loads(RUNTIME.one("CMD")), list)


def test_binding_beyond_the_loopback_is_said_aloud() -> None:
    arguments = json.loads(RUNTIME.one("CMD"))
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"
    assert "--allow-insecure-bind" in arguments


def test_bundles_are_a_volume_and_ports_are_named() -> None:
    assert RUNTIME.one("VOLUME") == "/bundles"
    assert json.loads(RUNTIME.one("CMD"))[-1].startswith("/bundles/")
    assert RUNTIME.one("EXPOSE").split() == ["50051", "9464"]


def test_no_secret_and_nothing_fetched_by_address() -> None:
    assert [add for stage in STAGES for add in stage.all("ADD")] == []
    settings = [
        setting
        for stage in STAGES
        for setting in [*stage.all("ARG"), *(f"{k}=" for k in environment(stage))]
    ]
    secret = re.compile(r"(?i)passw|secret|token|credential|api_?key|private")
    assert [setting for setting in settings if secret.search(setting)] == []
    assert [run for run in RUNS if re.search(r"\b(curl|wget|git clone)\b", run)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "tests/conftest.py",
        "runs/demo/x",
        "proto/.venv/bin/buf",
        "vision_sae/demo/corpus/train/captions.jsonl",
        "vision_sae/models/__pycache__/vit.pyc",
    ],
)
def test_dockerignore_keeps_out(path: str) -> None:
    assert ignored(path)


def test_dockerignore_lets_in_what_is_copied() -> None:
    copied = [source for line in BUILDER.all("COPY") for source in line.split()[:-1]]
    assert {"pyproject.toml", "vision_sae", "server", "client"} <= set(copied)
    assert [source for source in copied if not (ROOT / source).exists()] == []
    assert [source for source in copied if ignored(source)] == []
    assert not ignored("vision_sae/v1/image_pb2.py")
