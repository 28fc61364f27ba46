"""LoRA adapters: presets, loading, merging, combining, model cards, and the command `lora-moe-hgd adapters`."""
