"""Training of networks and adapters: configuration, data, schedules and the training loop."""
