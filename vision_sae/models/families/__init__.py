"""Families of models: one file a scheme of names, which registers itself when it is imported."""
