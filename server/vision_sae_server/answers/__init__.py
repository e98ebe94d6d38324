"""Translates the library's results to messages of the contract."""
