"""Frozen vision networks behind one protocol: see `protocol.Model` and `registry.load_model`."""
