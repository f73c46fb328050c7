"""Compiled loops: the hot path."""
