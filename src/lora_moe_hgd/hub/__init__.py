"""Share networks and adapters on the Hugging Face Hub."""
