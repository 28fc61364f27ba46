"""Synthetic cases, called phantoms: brains, tumours, contrast and the scanner."""
