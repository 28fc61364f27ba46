"""Training: configuration, schedules, adapters and the loop."""
