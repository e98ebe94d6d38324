from __future__ import annotations

from pathlib import Path

import pytest

from tests.worlds.plugin import install


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which the example plug-in is installed, once for all tests."""
    return install(tmp_path_factory.mktemp("plugin"))
