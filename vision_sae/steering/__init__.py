"""Edits of what happens inside a model."""
