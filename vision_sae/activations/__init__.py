"""Site vectors: harvesting them from a model, and the store they live in (see FORMAT.md)."""
