"""The kinds of dictionaries, one file each."""
