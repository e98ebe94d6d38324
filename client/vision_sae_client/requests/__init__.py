"""Builds the request messages of both clients, one module per service."""
