"""The training store: how it is laid out, written and read."""
