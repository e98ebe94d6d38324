"""Dictionaries: what encodes a site vector into sparse feature activations and back."""
