"""Reading cases from disk, and phantoms that need no disk."""
