"""Words for labels: vocabularies, and the search for words that fit a unit's regions."""
