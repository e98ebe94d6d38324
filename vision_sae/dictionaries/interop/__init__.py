"""Dictionaries that other libraries trained: import, and export. README.md is normative."""
