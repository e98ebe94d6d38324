"""Bundles: one dictionary and all that was measured on it, bound by a manifest (see FORMAT.md)."""
