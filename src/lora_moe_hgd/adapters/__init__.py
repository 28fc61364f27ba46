"""LoRA adapters: presets, loading, merging and combining, commands, cards."""
