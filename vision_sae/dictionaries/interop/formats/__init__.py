"""Foreign formats: one file a format, which registers itself when it is imported."""
