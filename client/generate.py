"""Write the blocking client, from the asyncio one: ``python client/generate.py [--check]``.

With ``--check`` nothing changes, and the exit code is 1 when the blocking client is not what would
be written.
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
    "The asyncio client, of which ``client/generate.py`` makes the blocking one: edit this file.": (
        "The blocking client, which ``client/generate.py`` makes of ``aio.py``: edit that one."
    ),
    "to be made inside a running event loop.": "safe to share between threads.",
    "async with AsyncClient(": "with Client(",
    "answer = await client.": "answer = client.",
}
"""What docstrings say, which `unasync` leaves alone."""


def blocking() -> str:
    """The source of the blocking client."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "aio" / TARGET.name
        place.parent.mkdir()
        text = SOURCE.read_text("utf-8")
        for said, instead in TEXTS.items():
            if said not in text:
                raise SystemExit(f"{SOURCE} does not say {said!r}; renew TEXTS of {__file__}")
            text = text.replace(said, instead)
        place.write_text(text, "utf-8")
        rule = unasync.Rule("/aio/", "/blocking/", additional_replacements=NAMES)
        unasync.unasync_files([str(place)], [rule])
        made = (Path(name) / "blocking" / TARGET.name).read_text("utf-8")
    fixed = _ruff("check", "--fix", "--unsafe-fixes", "--select", "I,UP", source=made)
    return _ruff("format", source=fixed)


def _ruff(*arguments: str, source: str) -> str:
    """What ruff makes of a source that lies where the client does."""
    command = [sys.executable, "-m", "ruff", *arguments, "--quiet"]
    place = ["--stdin-filename", str(TARGET), "-"]
    done = subprocess.run(
        [*command, *place], input=source, text=True, stdout=subprocess.PIPE, check=True
    )
    return done.stdout


def main() -> None:
    """Write it, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    made = blocking()
    if not check:
        TARGET.write_text(made, "utf-8")
        return
    there = TARGET.read_text("utf-8").splitlines()
    difference = list(difflib.unified_diff(there, made.splitlines(), str(TARGET), "generated"))
    if difference:
        print("\n".join(difference))
        raise SystemExit(f"{TARGET} is not what {SOURCE} makes; run `make clients`")


if __name__ == "__main__":
    main()
