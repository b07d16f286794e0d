"""The command predict: raw files to scores."""
