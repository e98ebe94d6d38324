"""Metrics of dictionaries, attributions, edits and labels."""
