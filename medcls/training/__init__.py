"""The loop and what it is handed: losses, optimizers, precision, tracking."""
