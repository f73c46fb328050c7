"""Readers of file formats, one file each; none knows another."""
