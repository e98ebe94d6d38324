"""The tour of ``make demo``: the whole job on a small captioned corpus."""

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
"""Redistributable captioned pictures: ``train/`` and ``heldout/``."""
