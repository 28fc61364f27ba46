"""The network. This flat folder is copied to the Hub unchanged; CONTRIBUTING.md says what its files may import."""
