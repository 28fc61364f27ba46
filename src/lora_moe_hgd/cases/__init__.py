"""Find, read, check and convert cases on disk."""
