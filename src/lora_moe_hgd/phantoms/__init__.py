"""Synthetic cases: brains, tumours, contrast and the scanner."""
