"""Write the Python stubs of the contract and guard it: ``python proto/generate.py [--check]``.

Without an option: format the protos, lint them, refuse a change that breaks v1, then write
``vision_sae/v1/*_pb2*`` and the image ``proto/vision_sae.v1.binpb``. With ``--check`` nothing in
the repository changes, and the exit code is 1 when any of it is not as it should be.

The tools are pinned in ``proto/requirements.txt`` and live in ``proto/.venv``, made on first use.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROTO = Path(__file__).resolve().parent
ROOT = PROTO.parent
PACKAGE = Path("vision_sae/v1")
STUBS = ROOT / PACKAGE
IMAGE = PROTO / "vision_sae.v1.binpb"
REQUIREMENTS = PROTO / "requirements.txt"
VENDORED = "buf/validate/validate.proto"

# The stubs need the vendored file registered, but a module `buf` is not ours to install: another
# package may own it, and a file can be registered only once per process.
RULES_MODULE = "_rules"
RULES_SOURCE = '''\
"""Registers buf/validate/validate.proto, which the stubs of this package depend on.

Where another package brings `buf.validate`, that one is used: protobuf accepts a file only once.
"""

from google.protobuf import (  # noqa: F401
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    timestamp_pb2,
)

try:
    import buf.validate.validate_pb2  # type: ignore  # noqa: F401, PGH003
except ImportError:
    descriptor_pool.Default().AddSerializedFile(
        {content!r}
    )
'''


class ContractError(Exception):
    """The contract or its stubs are not as they should be; the message says what to do."""


def tool(name: str) -> Path:
    """Return the pinned tool ``name``, installing all of them on first use."""
    folder = PROTO / ".venv"
    wanted = f"{sys.version_info[:2]} {hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()}"
    stamp = folder / "requirements.sha256"
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        run([folder / "bin" / "python", "-m", "pip", "install", "-q", "-r", REQUIREMENTS])
        stamp.write_text(wanted)
    return folder / "bin" / name


def run(command: list[str | Path], *, cwd: Path = PROTO) -> bytes:
    """Run ``command`` and return what it printed; raise with its complaints when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        raise ContractError(f"`{' '.join(Path(part).name for part in command[:3])}`: {said}")
    return done.stdout


def lint() -> None:
    """Hold the protos against buf's STANDARD and COMMENTS rules."""
    run([tool("buf"), "lint"])


def breaking() -> None:
    """Hold the protos against the committed image: v1 stays compatible."""
    if not IMAGE.exists():
        raise ContractError(f"{IMAGE.name} is missing: restore it from the last commit")
    try:
        run([tool("buf"), "breaking", "--against", IMAGE])
    except ContractError as error:
        raise ContractError(
            f"{error}\nThis breaks callers of v1. Add a new field, value or rpc instead; "
            "proto/README.md says how."
        ) from None


def formatted(*, write: bool) -> None:
    """Check the format of the protos, or put it right."""
    mode = ["-w"] if write else ["-d", "--exit-code"]
    run([tool("buf"), "format", *mode, "--exclude-path", "buf"])


def image(*, source_info: bool = False) -> bytes:
    """Return the FileDescriptorSet of the contract and all it imports."""
    extra: list[str | Path] = [] if source_info else ["--exclude-source-info"]
    return run([tool("buf"), "build", *extra, "-o", "-#format=binpb"])


def stubs() -> dict[str, bytes]:
    """Generate all files of ``vision_sae/v1`` except its ``__init__.py``: {name: content}."""
    protos = sorted(str(path.relative_to(PROTO)) for path in (PROTO / PACKAGE).glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        descriptors = out / "rules.binpb"
        protoc: list[str | Path] = [
            *(tool("python"), "-m", "grpc_tools.protoc", "-I", PROTO),
            f"--plugin=protoc-gen-mypy={tool('protoc-gen-mypy')}",
            f"--plugin=protoc-gen-mypy_grpc={tool('protoc-gen-mypy_grpc')}",
        ]
        run([*protoc, f"--descriptor_set_out={descriptors}", VENDORED])
        outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        run([*protoc, *outputs, *protos])
        files = {
            path.name: _relocated(path.read_text()).encode()
            for path in sorted((out / PACKAGE).iterdir())
            # Only files with a service need a gRPC module.
            if "_grpc" not in path.name or "_service_" in path.name
        }
        files[f"{RULES_MODULE}.py"] = RULES_SOURCE.format(content=_only_file(descriptors)).encode()
    return files


def _relocated(source: str) -> str:
    """Let a stub import the vendored file from this package."""
    return source.replace(
        "from buf.validate import validate_pb2", f"from vision_sae.v1 import {RULES_MODULE}"
    )


def _only_file(descriptor_set: Path) -> bytes:
    """Return the FileDescriptorProto in a FileDescriptorSet of one: tag 0x0A, length, content."""
    data = descriptor_set.read_bytes()
    length, position = 0, 1
    while True:
        byte = data[position]
        length |= (byte & 0x7F) << (7 * (position - 1))
        position += 1
        if byte < 0x80:
            break
    if data[0] != 0x0A or len(data) != position + length:
        raise ContractError(f"{VENDORED}: expected a descriptor set of one file")
    return data[position:]


def differences(fresh: dict[str, bytes]) -> str:
    """Say how the committed stubs differ from ``fresh``; empty when they do not."""
    committed = {path.name: path.read_bytes() for path in STUBS.glob("*.py*") if path.is_file()}
    committed.pop("__init__.py", None)
    said = [f"{name}: not generated from any proto; delete it" for name in committed.keys() - fresh]
    for name, content in fresh.items():
        before = committed.get(name, b"").decode().splitlines(keepends=True)
        lines = difflib.unified_diff(before, content.decode().splitlines(keepends=True), name, name)
        said.append("".join(line[:200] for line in [*lines][:40]))
    return "\n".join(filter(None, said))


def check() -> None:
    """Raise `ContractError` unless protos, stubs and image agree and break nobody."""
    formatted(write=False)
    lint()
    breaking()
    if changed := differences(stubs()):
        raise ContractError(f"{changed}\nThe stubs are not current: run python proto/generate.py")
    if IMAGE.read_bytes() != image():
        raise ContractError(f"{IMAGE.name} is not current: run python proto/generate.py")


def write() -> None:
    """Write stubs and image, unless the change breaks v1."""
    formatted(write=True)
    lint()
    if IMAGE.exists():
        breaking()
    fresh = stubs()
    for path in STUBS.glob("*_pb2*"):
        if path.name not in fresh:
            path.unlink()
    for name, content in fresh.items():
        (STUBS / name).write_bytes(content)
    IMAGE.write_bytes(image())


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if not current"
    )
    try:
        check() if parser.parse_args().check else write()
    except ContractError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
