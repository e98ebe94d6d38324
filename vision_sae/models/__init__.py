"""Frozen vision networks behind one protocol: see `protocol.Model` and `loading.load_model`."""
