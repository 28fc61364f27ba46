"""A small Hugging Face Hub on this computer, on which pushes and pulls are tested."""
