"""The version of the package, which pyproject.toml reads too."""

from pathlib import Path

CODE_VERSION = "0.2.0"


def build() -> str:
    """The version, and the git commit if the package was built from a checkout: ``0.2.0
    (1a2b3c4d5e6f)``."""
    commit = Path(__file__).with_name("_commit.txt")  # setup.py writes this file
    if not commit.is_file():
        return CODE_VERSION
    return f"{CODE_VERSION} ({commit.read_text('utf-8').strip()})"
