"""Training: configuration, loop, loss, optimiser, validation, checkpoints."""
