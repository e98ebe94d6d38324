"""Describers: from evidence to words."""
