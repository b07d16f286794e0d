"""The command train: a store to a run."""
