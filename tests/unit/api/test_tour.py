"""The notebook of the docs: what it stores, and that it still runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import vision_sae

NOTEBOOK = Path(vision_sae.__file__).parents[1] / "docs" / "notebooks" / "tour.ipynb"
_LARGEST = 1_500_000


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_was_run_from_top_to_bottom_and_is_small() -> None:
    code = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type in ("error", "stream")]
    assert any("text/html" in o.data for o in outputs)
    assert NOTEBOOK.stat().st_size < _LARGEST


def test_it_tells_no_path_of_the_machine_that_ran_it() -> None:
    text = NOTEBOOK.read_text("utf-8")
    assert "/home/" not in text
    assert "/tmp/" not in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_and_its_ledger_adds_up(tmp_path: Path) -> None:
    notebook = read()
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    results = [
        output.data["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code" and "abs(total" in cell.source
        for output in cell.outputs
    ]
    assert results == ["True"]
    assert (tmp_path / "runs" / "tour" / "released" / "manifest.json").is_file()
