"""Generate the blocking client from the asyncio client: ``python client/generate.py [--check]``.

With ``--check`` no file changes, and the exit code is 1 when the blocking client is out of date.
"""

from __future__ import annotations

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).resolve().parent / "vision_sae_client"
SOURCE, TARGET = PACKAGE / "aio.py", PACKAGE / "client.py"
NAMES = {"AsyncClient": "Client", "open_async_channel": "open_channel"}
TEXTS = {
    "The asyncio client. ``client/generate.py`` generates the blocking client from this file.": (
        "The blocking client, generated from ``aio.py`` by ``client/generate.py``: edit ``aio.py``."
    ),
    "it must be created inside a running event loop.": "threads may share it.",
    "async with AsyncClient(": "with Client(",
    "answer = await client.": "answer = client.",
    "grpc.aio.": "grpc.",
}
"""{text in the asyncio client: text in the blocking one}, for docstrings and the types of rpcs,
which `unasync` leaves unchanged."""


def blocking() -> str:
    """Generate the source of the blocking client."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "aio" / TARGET.name
        place.parent.mkdir()
        text = SOURCE.read_text("utf-8")
        for asyncio_text, blocking_text in TEXTS.items():
            if asyncio_text not in text:
                raise SystemExit(
                    f"{SOURCE} does not contain {asyncio_text!r}; update TEXTS in {__file__}"
                )
            text = text.replace(asyncio_text, blocking_text)
        place.write_text(text, "utf-8")
        rule = unasync.Rule("/aio/", "/blocking/", additional_replacements=NAMES)
        unasync.unasync_files([str(place)], [rule])
        written = (Path(name) / "blocking" / TARGET.name).read_text("utf-8")
    fixed = _ruff("check", "--fix", "--unsafe-fixes", "--select", "I,UP", source=written)
    return _ruff("format", source=fixed)


def _ruff(*arguments: str, source: str) -> str:
    """The output of ruff for a source, as if it were the file of the blocking client."""
    command = [sys.executable, "-m", "ruff", *arguments, "--quiet"]
    place = ["--stdin-filename", str(TARGET), "-"]
    done = subprocess.run(
        [*command, *place], input=source, text=True, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def main() -> None:
    """Write the blocking client, or compare it with the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    generated = blocking()
    if not check:
        TARGET.write_text(generated, "utf-8")
        return
    written = TARGET.read_text("utf-8").splitlines()
    difference = list(
        difflib.unified_diff(written, generated.splitlines(), str(TARGET), "generated")
    )
    if difference:
        print("\n".join(difference))
        raise SystemExit(f"{TARGET} is out of date with {SOURCE}; run `make clients`")


if __name__ == "__main__":
    main()
