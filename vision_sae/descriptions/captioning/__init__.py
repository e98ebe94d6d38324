"""Captioners and language models of transformers: p(d | E) and p(d) for a text d."""
