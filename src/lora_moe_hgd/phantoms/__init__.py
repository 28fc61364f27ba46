"""Made-up cases: brains, tumours, contrast and the scanner."""
