"""Released dictionaries: trained artifacts with labels and a card, loaded by name."""
