"""Batches of units to label, in the label store's database, for any number of workers."""
