"""Translates requests to the library's types; every error names the field at fault."""
