"""Natural-language descriptions of features, scored, with their evidence."""
