"""The network.

This flat folder is copied to the Hugging Face Hub unchanged. CONTRIBUTING.md says what its files may import.
"""
