"""Admission, validation, threads, streams, ports, metrics and the log of the server."""
