"""The training loop and its parts: state, losses, optimizers, precision, checkpoints, tracking."""
